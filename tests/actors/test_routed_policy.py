"""The policy over several replicas in this process: who gets which call, and what becomes of a replica that dies."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from actors import served_policy
from actors.engine import GenerateReply, GenerateRequest, ScriptedEngine, Told
from actors.model import ModelReplica
from actors.served_policy import ServedPolicy
from rollout.config import RoutingConfig
from rollout.errors import ResourceDown, Unavailable
from rollout.serving.routing import Router
from rollout.trajectory import Prompt, Sampling

LINE = [1, 2, 3]
PATIENCE = 20.0


class Heeding(ScriptedEngine):
    """Keeps what it is asked, in order."""

    def __init__(self, latency: float = 0.0) -> None:
        super().__init__([LINE], latency, 0.0, 0)
        self.asked: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest, told: Told | None = None) -> GenerateReply:
        self.asked.append(request)
        if request.session_id == "refused":
            raise Unavailable("not now")
        return await super().generate(request, told)


class Named(ModelReplica):
    """A replica with a name of its own, outside Serve."""

    def __init__(self, name: str, engine: Heeding, places: int = 64, priority_seconds: float = 10.0) -> None:
        super().__init__(lambda: engine, places, 1.0, priority_seconds=priority_seconds)
        self._name = name


class Served:
    """Replicas in seats, as `actors.router` would have them: a dead one's slot leads to the next that lives."""

    def __init__(self, *replicas: Named) -> None:
        self.seats: list[Named | None] = list(replicas)

    def options(self, session_id: str) -> Any:
        return SimpleNamespace(exchange=SimpleNamespace(remote=partial(self._exchange, int(session_id))))

    async def _exchange(self, slot: int, name: str, letters: bytes, hold: float) -> bytes:
        replica = next(one for one in (*self.seats[slot:], *self.seats[:slot]) if one is not None)
        answer = asyncio.ensure_future(replica.exchange(name, letters, hold))
        while not answer.done():
            await asyncio.wait([answer], timeout=0.01)
            if replica not in self.seats:
                answer.cancel()
                raise ConnectionError("the replica died")
        return answer.result()


def prompt(
    session: str, turn: int = 0, group: str | None = None, priority: int = 0, seconds: float = PATIENCE
) -> Prompt:
    name = f"{session}-{turn}"
    salt = "tenant" if session == "salted" else None
    return Prompt(
        name, session, turn, [7, 8], (), (), 9, Sampling(), seconds, group=group, priority=priority, salt=salt
    )


def served(count: int, latency: float = 0.0) -> tuple[Served, ServedPolicy]:
    handle = Served(*(Named(f"r{number}", Heeding(latency)) for number in range(count)))
    return handle, ServedPolicy(handle, count, PATIENCE, Router(RoutingConfig(uneven=0)))


async def places(policy: ServedPolicy, sessions: list[str], turn: int = 0, group: str | None = None) -> dict[str, str]:
    asked = [policy.complete(prompt(session, turn, group)) for session in sessions]
    return {session: one.replica for session, one in zip(sessions, await asyncio.gather(*asked), strict=True)}


async def test_sessions_are_spread_evenly_and_stay() -> None:
    _, policy = served(4)
    sessions = [f"s{number}" for number in range(32)]
    first = await places(policy, sessions)
    assert set(Counter(first.values()).values()) == {8}
    assert await places(policy, sessions, 1) == first
    assert policy.take_routed() == {"placed": 32, "sticks": 32}
    assert set(policy.loads()) == {"r0", "r1", "r2", "r3"}
    assert policy.loads() == {}, "what was told is told once"


async def test_a_group_begins_on_one_replica_and_closed_sessions_make_room() -> None:
    handle = Served(*(Named(f"r{number}", Heeding()) for number in range(4)))
    policy = ServedPolicy(handle, 4, PATIENCE, Router(RoutingConfig(uneven=8)))
    homes: list[str] = []
    for group in range(40):
        sessions = [f"g{group}-{number}" for number in range(4)]
        home = set((await places(policy, sessions, group=f"g{group}")).values())
        assert len(home) == 1
        homes += home
        for session in sessions:
            policy.closed(session)
    assert policy.take_routed() == {"placed": 40, "group": 120}
    assert min(Counter(homes).values()) >= 3, "all get some"


async def test_turns_of_a_dead_replica_are_sampled_by_all_others_and_it_gets_new_ones_when_it_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actors.slots.LOOK_SECONDS", 0.05)
    handle, policy = served(4, latency=0.1)
    sessions = [f"s{number}" for number in range(32)]
    before = await places(policy, sessions)
    turns = asyncio.create_task(places(policy, sessions, 1))
    await asyncio.sleep(0.05)
    handle.seats[2] = None
    during = await turns
    moved = Counter(replica for session, replica in during.items() if before[session] == "r2")
    assert set(moved) == {"r0", "r1", "r3"}
    assert all(during[session] == replica for session, replica in before.items() if replica != "r2")
    fresh = await places(policy, [f"t{number}" for number in range(12)])
    assert "r2" not in fresh.values()
    handle.seats[2] = Named("r9", Heeding(0.01))
    async with asyncio.timeout(PATIENCE):
        number = 0
        while "r9" not in fresh.values():
            number += 1
            fresh = await places(policy, [f"u{number}-{each}" for each in range(8)])
    assert await places(policy, sessions, 2) == during, "it moves nobody back"


async def test_an_engine_that_refuses_a_call_keeps_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_policy, "BACKOFF_SECONDS", (0.01,))
    _, policy = served(2)
    with pytest.raises(ResourceDown, match="not now; asked 2 times"):
        await policy.complete(prompt("refused"))
    assert len(set((await places(policy, ["a", "b"])).values())) == 2


@pytest.mark.parametrize("counts", [True, False])
async def test_where_calls_wait_late_turns_go_first(counts: bool) -> None:
    engine = Heeding(0.02)
    handle = Served(Named("r0", engine, places=1, priority_seconds=10.0 if counts else 0.0))
    policy = ServedPolicy(handle, 1, PATIENCE)
    turns = [0, 0, 3, 1, 2]
    await asyncio.gather(*(policy.complete(prompt(f"s{n}", turn, None, -turn)) for n, turn in enumerate(turns)))
    assert [request.turn for request in engine.asked] == ([0, 3, 2, 1, 0] if counts else turns)


async def test_the_salt_reaches_the_engine() -> None:
    handle, policy = served(1)
    await places(policy, ["salted", "plain"])
    replica = handle.seats[0]
    assert replica is not None and isinstance(engine := replica._engine, Heeding)
    assert [request.salt for request in engine.asked] == ["tenant", None]
