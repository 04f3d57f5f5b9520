"""The policy that Serve's replicas sample for: token ids out, completions back.

One courier a slot carries the turns of all episodes of this process that live there (`actors.router` says where).
A turn whose replica died is asked again with the same ids, so nothing of the episode is lost with a replica.
"""

from __future__ import annotations

import asyncio
import zlib
from array import array
from typing import Any, cast

from actors.courier import SILENT_SECONDS, Courier
from actors.engine import GenerateReply, GenerateRequest, Listening, pack_ids, unpack_ids
from actors.mend import slot_part
from rollout.errors import ResourceDown, Unavailable
from rollout.load import Load
from rollout.streaming import Delta, Heard
from rollout.trajectory import Completion, Prompt
from rollout.waits import HERE, MODEL_CALL

BACKOFF_SECONDS = (0.1, 0.5, 2.0)
"""Pauses before a lost turn is asked for again."""


class ServedPolicy:
    """A Policy over the handle of a model's deployment, spread over `slots` replicas by session."""

    def __init__(self, handle: Any, slots: int, silent_seconds: float = SILENT_SECONDS) -> None:
        exchanges = [handle.options(session_id=str(slot)).exchange.remote for slot in range(slots)]
        parts = [slot_part(slot) for slot in range(slots)]
        self._couriers = [
            Courier(HERE.heard_by(part, exchange), part, silent_seconds=silent_seconds)
            for part, exchange in zip(parts, exchanges, strict=True)
        ]

    async def complete(self, prompt: Prompt) -> Completion:
        """Samples one completion. Raises ResourceDown when no replica answers, however often it is asked."""
        return await self._sampled(prompt, None)

    async def stream(self, prompt: Prompt, heard: Heard) -> Completion:
        """See StreamingPolicy. A replica that dies before anything was heard is another's turn, as ever."""
        return await self._sampled(prompt, heard)

    async def _sampled(self, prompt: Prompt, heard: Heard | None) -> Completion:
        request = GenerateRequest(
            request_id=prompt.request_id,
            session_id=prompt.session_id,
            turn=prompt.turn,
            prompt_ids=pack_ids(prompt.ids),
            max_tokens=prompt.max_tokens,
            sampling=prompt.sampling,
            extras=prompt.extras,
        )
        listening = None if heard is None else Listening(lambda ids: heard(Delta(ids)))
        reply = await self._ask(request, prompt.seconds, listening)
        if listening is not None:
            listening.end(unpack_ids(reply.ids))
        return Completion(
            finish_reason=reply.finish_reason,
            ids=array("i", reply.ids),
            logprobs=array("f", reply.logprobs),
            versions=reply.versions,
            cached_tokens=reply.cached_tokens,
            prompt_tokens=reply.prompt_tokens,
            replica=reply.replica,
            queue_seconds=reply.queue_seconds,
        )

    def loads(self) -> dict[str, Load]:
        """By replica, what its engine told since this was asked last. A replica with work of ours tells at least
        every courier.HOLD_SECONDS."""
        told: list[tuple[str, Load] | None] = [courier.take_status() for courier in self._couriers]
        return dict(entry for entry in told if entry is not None)

    async def _ask(self, request: GenerateRequest, seconds: float, listening: Listening | None) -> GenerateReply:
        clock = asyncio.get_running_loop()
        deadline = clock.time() + seconds
        heard = None if listening is None else listening.take
        courier = self._couriers[slot_of(request.session_id, len(self._couriers))]
        for asked, pause in enumerate((*BACKOFF_SECONDS, None), start=1):
            try:
                with HERE.on(MODEL_CALL, courier.where):
                    reply = cast(GenerateReply, await courier.ask(request, heard=heard))
                HERE.met(courier.where, reply.replica)
                return reply
            except Unavailable as error:
                begun = listening is not None and listening.count > 0
                if begun or pause is None or clock.time() + pause >= deadline:
                    raise ResourceDown(f"{error}; asked {asked} time{'s' if asked > 1 else ''}") from error
                await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")


def slot_of(session_id: str, slots: int) -> int:
    """The slot of an episode: the same for all its turns, in every process."""
    return zlib.crc32(session_id.encode()) % slots
