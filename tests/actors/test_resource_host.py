"""A host of sessions, without Ray: its sessions are closed by whoever is left to do it."""

import asyncio

import pytest

from actors import resource_host
from actors.courier import Courier
from actors.resource_host import HostedSessions, ResourceHost
from resources.counter import Counter
from resources.ledger import Ledger
from rollout.errors import NotRestored, Unavailable
from rollout.trajectory import StopReason, ToolCall, Transcript

TASK = next(Counter(1).tasks(0))


async def hosted() -> tuple[ResourceHost, HostedSessions]:
    """A host of counters and its client."""
    host = ResourceHost("counter", {"count": 1}, 1)
    return host, HostedSessions([Courier(host.exchange, "host")], await host.offer())


async def test_a_hosted_session_is_used_as_one_in_this_process() -> None:
    host, sessions = await hosted()
    seeded = await sessions.seed_session(TASK, 0, 60)
    assert seeded.messages == TASK.messages
    assert {spec.name for spec in seeded.tools} == {"add", "submit"}
    added, _ = await seeded.session.call(ToolCall("a", "add", '{"amount": 4}'), 5)
    submitted, _ = await seeded.session.call(ToolCall("b", "submit", "{}"), 5)
    assert (added.content, submitted.done) == ("4", True)
    assert (await seeded.session.verify(Transcript((), StopReason.ENVIRONMENT), 5)).reward == 1.0
    await seeded.session.close()
    assert await host.counts() == {"opened": 1, "closed": 1, "expired": 0, "open": 0}


async def test_a_session_goes_on_at_another_host_from_the_snapshot_it_left() -> None:
    task = next(Ledger(1).tasks(0))
    hosts = [ResourceHost("ledger", {"count": 1}, 1) for _ in range(2)]
    here, there = [HostedSessions([Courier(host.exchange, "host")], await host.offer()) for host in hosts]
    left = await here.seed_session(task, 0, 60)
    _, snapshot = await left.session.call(ToolCall("a", "open_account", '{"owner": "Zoe"}'), 5)
    assert snapshot is not None
    found = await there.restore_session(task, 0, snapshot, 60)
    result, _ = await found.session.call(ToolCall("b", "balance", '{"owner": "Zoe"}'), 5)
    assert (result.content, found.messages) == ("0", task.messages)
    with pytest.raises(NotRestored):
        await there.restore_session(task, 0, b"no database", 60)
    assert (await hosts[1].offer()).restores == "snapshot"


async def test_a_host_that_stops_closes_what_is_left_and_takes_nothing_new() -> None:
    host, sessions = await hosted()
    kept, _, _ = [await sessions.seed_session(TASK, 0, 60) for _ in range(3)]
    await kept.session.close()
    await host.stop(5)
    assert await host.counts() == {"opened": 3, "closed": 3, "expired": 0, "open": 0}
    with pytest.raises(Unavailable):
        await sessions.seed_session(TASK, 0, 60)
    assert (await host.counts())["open"] == 0


async def test_sessions_end_with_their_time_also_at_a_host_that_was_never_asked_what_it_offers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that Ray has restarted."""
    monkeypatch.setattr(resource_host, "SWEEP_SECONDS", 0.01)
    offer = await ResourceHost("counter", {"count": 1}, 1).offer()
    host = ResourceHost("counter", {"count": 1}, 1)
    sessions = HostedSessions([Courier(host.exchange, "host")], offer)
    await sessions.seed_session(TASK, 0, 0)
    async with asyncio.timeout(20):
        while (await host.counts())["open"]:  # noqa: ASYNC110 - the host tells nobody
            await asyncio.sleep(0.01)
    assert await host.counts() == {"opened": 1, "closed": 1, "expired": 1, "open": 0}
