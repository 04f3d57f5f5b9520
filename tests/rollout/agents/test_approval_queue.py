"""The folder of calls that wait for a person: what outlives whom, and that one answer counts."""

from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rollout.agents.approval_queue import ApprovalQueue, Request, answer, pending
from rollout.agents.decisions import Approved, Denied
from rollout.errors import UserError
from rollout.storage import LocalFolder
from rollout.trajectory import ToolCall

CALL = ToolCall("b", "bash", '{"command": "rm x"}')


def request(call: ToolCall = CALL, episode_id: str = "run-0-0", place: int = 0, now: float = 5.0) -> Request:
    return Request.of(call, episode_id, 2, place, "clerk", now)


def queue(folder: Path) -> ApprovalQueue:
    return ApprovalQueue(str(folder), poll_seconds=0.005)


async def test_requests_are_listed_the_oldest_first_until_they_are_answered(tmp_path: Path) -> None:
    asking = queue(tmp_path / "approvals")
    assert pending(asking.place) == ()
    late, early = request(place=1, now=7.0), request(now=6.0)
    await asking.put(late)
    await asking.put(early)
    assert pending(asking.place) == (early, late)
    answer(asking.place, early.id, "approve", by="ann")
    assert pending(asking.place) == (late,)
    assert await asking.wait(early.id, 5) == Approved()


async def test_an_answer_outlives_whoever_asked(tmp_path: Path) -> None:
    asked = await queue(tmp_path).put(request())
    waiting = asyncio.create_task(queue(tmp_path).wait(asked.id, 60))
    await asyncio.sleep(0)
    waiting.cancel()  # its runner is gone
    answer(str(tmp_path), asked.id, {"decision": "deny", "reason": "no"})
    again = await queue(tmp_path).put(request(now=99.0))
    assert again == asked, "the same call of the same turn, asked by the next attempt"
    assert await queue(tmp_path).wait(again.id, 5) == Denied("no")


def test_another_call_is_another_request() -> None:
    other = ToolCall("b", "bash", "{}")
    assert len({request().id, request(other).id, request(place=1).id, request(episode_id="run-0-1").id}) == 4
    assert "/" not in request(episode_id="a/b").id


async def test_one_answer_counts_of_many_at_once(tmp_path: Path) -> None:
    asked = await queue(tmp_path).put(request())

    def reply(number: int) -> int | None:
        try:
            answer(str(tmp_path), asked.id, {"decision": "deny", "reason": str(number)})
        except UserError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        won = [number for number in pool.map(reply, range(16)) if number is not None]
    assert len(won) == 1
    assert await queue(tmp_path).wait(asked.id, 5) == Denied(str(won[0]))
    assert len(os.listdir(tmp_path)) == 2, "no drafts are left"


async def test_a_request_whose_time_has_passed_takes_no_answer_and_may_be_asked_anew(tmp_path: Path) -> None:
    asking = queue(tmp_path)
    asked = await asking.put(request())
    assert await asking.wait(asked.id, 0.01) is None
    with pytest.raises(UserError, match="answered already"):
        answer(asking.place, asked.id, "approve")
    await asking.put(request())
    answer(asking.place, asked.id, "approve")
    assert await asking.wait(asked.id, 5) == Approved()


async def test_an_answer_that_was_faster_than_the_deadline_counts(tmp_path: Path) -> None:
    asking = ApprovalQueue(str(tmp_path), poll_seconds=60)
    asked = await asking.put(request())
    other = asyncio.create_task(asking.wait("nobody", 60))  # the watcher has looked, and sleeps
    await asyncio.sleep(0.05)
    answer(asking.place, asked.id, "approve")
    assert await asking.wait(asked.id, 0.01) == Approved()
    other.cancel()


@pytest.mark.parametrize(
    ("request_id", "reply", "line"),
    [
        ("nothing", "approve", "there is no request 'nothing'"),
        ("../../etc/passwd", "approve", "there is no request"),
        (None, "", "expected a decision"),
        (None, {"decision": "aprove"}, "did you mean 'approve'?"),
        (None, Approved(), "not JSON serializable"),
    ],
)
async def test_answers_that_are_none_are_refused(
    tmp_path: Path, request_id: str | None, reply: object, line: str
) -> None:
    asked = await queue(tmp_path).put(request())
    with pytest.raises(UserError) as caught:
        answer(str(tmp_path), request_id or asked.id, reply)
    assert line in str(caught.value)
    assert pending(str(tmp_path)) == (asked,)


async def test_an_answer_that_nobody_can_read_denies(tmp_path: Path) -> None:
    asked = await queue(tmp_path).put(request())
    (tmp_path / f"{asked.id}.answer.json").write_text('{"reply": ')
    found = await queue(tmp_path).wait(asked.id, 5)
    assert isinstance(found, Denied)
    assert "cannot be read" in found.reason


class Gone(LocalFolder):
    """A file system that has gone away."""

    def names(self) -> list[str]:
        raise OSError("stale file handle")


async def test_a_folder_that_cannot_be_read_is_told_to_all_who_wait(tmp_path: Path) -> None:
    asking = queue(tmp_path)
    asking._files = Gone(str(tmp_path))
    ends = await asyncio.gather(asking.wait("a", 60), asking.wait("b", 60), return_exceptions=True)
    assert [str(end) for end in ends] == ["stale file handle"] * 2
    asking._files = LocalFolder(str(tmp_path))
    asked = await asking.put(request())
    answer(asking.place, asked.id, "approve")
    assert await asking.wait(asked.id, 60) == Approved(), "whoever asks later is served again"


async def test_the_folder_may_be_on_an_object_store(tmp_path: Path) -> None:
    place = f"file://{tmp_path}"
    asking = ApprovalQueue(place, poll_seconds=0.005)
    asked = await asking.put(request())
    assert pending(place) == (asked,)
    answer(place, asked.id, "approve")
    with pytest.raises(UserError, match="answered already"):
        answer(place, asked.id, "approve")
    assert await asking.wait(asked.id, 60) == Approved()
    assert pending(place) == ()


async def test_requests_are_plain_files_that_say_who_asks(tmp_path: Path) -> None:
    asked = await queue(tmp_path).put(request())
    told = json.loads((tmp_path / f"{asked.id}.request.json").read_text())
    assert (told["episode_id"], told["turn"], told["tool"], told["asked_at"]) == ("run-0-0", 2, "bash", 5.0)
