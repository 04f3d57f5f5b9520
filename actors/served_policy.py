"""The policy that Serve's replicas sample for: token ids out, completions back.

One courier a slot carries the turns that go there; `actors.slots` says which do, and `actors.router` where that is.
A turn whose replica died is asked again with the same ids, so nothing of the episode is lost with a replica.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from typing import Any, cast

from actors.courier import SILENT_SECONDS, Courier, Lost
from actors.engine import GenerateReply, GenerateRequest, Listening, pack_ids, unpack_ids
from actors.mend import slot_part
from actors.slots import Slots
from rollout.errors import ResourceDown, RolloutError, Unavailable
from rollout.load import Load
from rollout.serving.routing import Router
from rollout.streaming import Delta, Heard
from rollout.trajectory import Completion, Prompt, Sampling
from rollout.waits import HERE, MODEL_CALL

BACKOFF_SECONDS = (0.1, 0.5, 2.0)
"""Pauses before a lost turn is asked for again."""
LOOK = GenerateRequest("look", "", 0, pack_ids([0] * 8), 1, Sampling(), priority=-1_000_000)
"""What is asked of a slot to see whether somebody has its seat: one token, before all others."""


class ServedPolicy:
    """A Policy over the handle of a model's deployment, spread over the replicas behind `slots` of it."""

    def __init__(
        self, handle: Any, slots: int, silent_seconds: float = SILENT_SECONDS, router: Router | None = None
    ) -> None:
        exchanges = [handle.options(session_id=str(slot)).exchange.remote for slot in range(slots)]
        parts = [slot_part(slot) for slot in range(slots)]
        self._couriers = {
            part: Courier(HERE.heard_by(part, exchange), part, silent_seconds=silent_seconds)
            for part, exchange in zip(parts, exchanges, strict=True)
        }
        self._slots = Slots(parts, Router() if router is None else router)
        self._told: dict[str, Load] = {}
        """What replicas told of themselves and nobody has taken, by their names."""
        self._looks: set[asyncio.Task[None]] = set()
        self._look_seconds = silent_seconds

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
            priority=prompt.priority,
            salt=prompt.salt,
        )
        listening = None if heard is None else Listening(lambda ids: heard(Delta(ids)))
        reply = await self._ask(request, prompt, listening)
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
        now = asyncio.get_running_loop().time()
        for courier in self._couriers.values():
            self._hear(courier, now)
        told, self._told = self._told, {}
        return told

    def take_routed(self) -> Counter[str]:
        """Calls by why they went where they went (`rollout.serving.routing.Why`), since this was asked last."""
        return self._slots.take_routed()

    def closed(self, session_id: str) -> None:
        """See Placing."""
        self._slots.router.close(session_id)

    async def _ask(self, request: GenerateRequest, prompt: Prompt, listening: Listening | None) -> GenerateReply:
        clock = asyncio.get_running_loop()
        deadline = clock.time() + prompt.seconds
        for asked, pause in enumerate((*BACKOFF_SECONDS, None), start=1):
            try:
                return await self._asked(request, prompt.group, listening, clock)
            except Unavailable as error:
                begun = listening is not None and listening.count > 0
                if begun or pause is None or clock.time() + pause >= deadline:
                    raise ResourceDown(f"{error}; asked {asked} time{'s' if asked > 1 else ''}") from error
                await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def _asked(
        self,
        request: GenerateRequest,
        group: str | None,
        listening: Listening | None,
        clock: asyncio.AbstractEventLoop,
    ) -> GenerateReply:
        """Asks once, where the call belongs now."""
        slots, now = self._slots, clock.time()
        for slot in slots.due(now):
            self._looks.add(look := asyncio.create_task(self._look(slot)))
            look.add_done_callback(self._looks.discard)
        route = slots.route(request.session_id, group, now)
        courier = self._couriers[route.replica]
        try:
            with HERE.on(MODEL_CALL, courier.where):
                reply = cast(
                    GenerateReply, await courier.ask(request, heard=None if listening is None else listening.take)
                )
        except Lost:
            slots.lost(route.replica, clock.time())
            raise
        finally:
            slots.router.ended(route)
        HERE.met(courier.where, reply.replica)
        slots.answered(route.replica, reply.replica)
        self._hear(courier, clock.time())
        return reply

    def _hear(self, courier: Courier, now: float) -> None:
        told: tuple[str, Load] | None = courier.take_status()
        if told is not None:
            replica, load = told
            self._told[replica] = load
            self._slots.hear(courier.where, load, now)

    async def _look(self, slot: str) -> None:
        """Asks who has the seat of a slot that is out; nobody may have."""
        try:
            async with asyncio.timeout(self._look_seconds):
                reply = cast(GenerateReply, await self._couriers[slot].ask(LOOK))
        except (RolloutError, TimeoutError):
            return
        self._slots.seen(slot, reply.replica)
