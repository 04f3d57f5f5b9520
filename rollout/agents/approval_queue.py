"""Tool calls that wait for a person, as files in a folder that outlive whoever asked.

    ID.request.json     who asks: episode, turn, tool, arguments, since when
    ID.answer.json      the reply, or that its time has passed; the first to be there counts

An ID follows from the episode, the turn and the call, not from the attempt: who is asked the same again, in a run that
was resumed, has the answer at once. The folder may be on an object store. `pending` and `answer` are what a command or
a route calls; they block, as files do.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote
from uuid import uuid4

from rollout.agents.decisions import Decision, Denied, decision
from rollout.errors import UserError, nearest
from rollout.storage import Folder, LocalFolder, folder
from rollout.thread import DISK_SECONDS, threaded
from rollout.trajectory import ToolCall

REQUESTS = "approvals"
"""The folder of a run where they wait; it goes when all rows are there."""
_REQUEST, _ANSWER = ".request.json", ".answer.json"


@dataclass(frozen=True, slots=True)
class Request:
    """One call that waits for approval."""

    id: str
    episode_id: str
    turn: int
    agent: str
    call_id: str
    tool: str
    arguments: str
    """JSON text, as the call would be made."""
    asked_at: float
    """Unix seconds; of the first time it was asked."""

    @staticmethod
    def of(call: ToolCall, episode_id: str, turn: int, place: int, agent: str, now: float) -> Request:
        """The request for a call that stands at `place` in its turn."""
        what = blake2b(f"{call.name}\0{call.arguments}".encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        request_id = f"{_prefix(episode_id)}{turn}.{place}.{what}"
        return Request(request_id, episode_id, turn, agent, call.id, call.name, call.arguments, now)


def pending(place: str) -> tuple[Request, ...]:
    """The requests in a folder that nobody has answered, the oldest first. Raises OSError."""
    return _pending(folder(place))


def answer(place: str, request_id: str, reply: Any, by: str | None = None) -> None:
    """Answers a request, for good. `reply` is as `decisions.decision` takes it.

    Raises UserError when there is no such request, when it is answered already, and for a reply that says nothing.
    """
    files = folder(place)
    try:
        decision(reply)
        json.dumps(reply)
    except (ValueError, TypeError) as error:
        raise UserError(f"{request_id}: {error}") from None
    names = files.names()
    if request_id + _REQUEST not in names:
        known = [one.id for one in _pending(files)]
        raise UserError(f"{place}: there is no request '{request_id}'{nearest(request_id, known) if known else ''}")
    if not _first(files, request_id, {"reply": reply, "by": by, "at": time.time()}):
        raise UserError(f"{place}: {request_id} is answered already")


@dataclass(slots=True)
class ApprovalQueue:
    """The asking side: many episodes wait, and one listing of the folder at a time serves them all."""

    place: str
    poll_seconds: float = 1.0
    clock: Callable[[], float] = time.time
    _files: Folder = field(init=False)
    _waiting: dict[str, asyncio.Future[Decision | None]] = field(
        default_factory=dict[str, "asyncio.Future[Decision | None]"]
    )
    _watcher: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._files = folder(self.place)

    async def put(self, request: Request) -> Request:
        """Writes a request, unless it is there from before; as it stands in the folder. Raises OSError."""
        return await threaded(lambda: _put(self._files, request), DISK_SECONDS, f"ask for {request.id}")

    async def wait(self, request_id: str, seconds: float) -> Decision | None:
        """The answer to a request that was put; None when there was none within `seconds`, and there will be none.

        Raises OSError when the folder cannot be read.
        """
        found = asyncio.get_running_loop().create_future()
        found.add_done_callback(_seen)
        self._waiting[request_id] = found
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())
        try:
            await asyncio.wait([found], timeout=seconds)
        finally:
            if self._waiting.get(request_id) is found:
                del self._waiting[request_id]
        if found.done():
            return found.result()
        return await threaded(lambda: _expire(self._files, request_id), DISK_SECONDS, f"withdraw {request_id}")

    async def _watch(self) -> None:
        """Looks for answers as long as anybody waits for one."""
        while self._waiting:
            asked = tuple(self._waiting)
            try:
                answers = await threaded(partial(_answers, self._files, asked), DISK_SECONDS, "look for answers")
            except (OSError, TimeoutError) as error:
                for found in self._waiting.values():
                    if not found.done():
                        found.set_exception(error)
                return
            for request_id, said in answers.items():
                if (found := self._waiting.get(request_id)) is not None and not found.done():
                    found.set_result(said)
            await asyncio.sleep(self.poll_seconds)


def _put(files: Folder, request: Request) -> Request:
    held = files.read(request.id + _ANSWER)
    if held is not None and _said(held) is None:
        files.delete([request.id + _ANSWER])  # its time had passed: it is asked anew
    try:
        files.put(request.id + _REQUEST, json.dumps(asdict(request)).encode(), new=True)
    except FileExistsError:
        return _request(files, request.id + _REQUEST) or request
    return request


def _pending(files: Folder) -> tuple[Request, ...]:
    names = set(files.names())
    open_ = [one for one in names if one.endswith(_REQUEST) and one.removesuffix(_REQUEST) + _ANSWER not in names]
    found = [_request(files, name) for name in open_]
    return tuple(sorted((one for one in found if one is not None), key=lambda one: (one.asked_at, one.id)))


def _request(files: Folder, name: str) -> Request | None:
    """None when it was deleted meanwhile, or is none of ours."""
    if (held := files.read(name)) is None:
        return None
    try:
        return Request(**json.loads(held))
    except (ValueError, TypeError):
        return None


def _answers(files: Folder, asked: tuple[str, ...]) -> dict[str, Decision | None]:
    names = set(files.names())
    held = {one: files.read(one + _ANSWER) for one in asked if one + _ANSWER in names}
    return {one: _said(content) for one, content in held.items() if content is not None}


def _said(content: bytes) -> Decision | None:
    """What an answer says; None for one that says that its time has passed. One that nobody can read denies."""
    try:
        told = cast(Mapping[str, Any], json.loads(content))
        return None if told.get("expired") else decision(told["reply"])
    except (ValueError, LookupError, AttributeError) as error:
        return Denied(f"the answer cannot be read: {error}")


def _expire(files: Folder, request_id: str) -> Decision | None:
    """Closes a request without an answer; the answer, where one was faster."""
    if _first(files, request_id, {"expired": True, "at": time.time()}):
        return None
    held = files.read(request_id + _ANSWER)
    return None if held is None else _said(held)


def _first(files: Folder, request_id: str, told: Mapping[str, Any]) -> bool:
    """Writes the answer, whole, unless there is one: of two people and a deadline exactly one is the first."""
    name, content = request_id + _ANSWER, json.dumps(told).encode()
    if not isinstance(files, LocalFolder):
        return _put_new(files, name, content)
    draft = f".{name}.{uuid4().hex}"  # of one's own, and a link decides: looking first and then writing would not
    files.put(draft, content)
    try:
        Path(files.place, name).hardlink_to(Path(files.place, draft))
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        return _put_new(files, name, content)
    finally:
        files.delete([draft])
    return True


def _put_new(files: Folder, name: str, content: bytes) -> bool:
    try:
        files.put(name, content, new=True)
    except FileExistsError:
        return False
    return True


def _prefix(episode_id: str) -> str:
    return quote(episode_id, safe="") + "."


def _seen(found: asyncio.Future[Decision | None]) -> None:
    """An error that nobody waits for any more is nobody's."""
    if not found.cancelled():
        found.exception()
