"""A host of sessions, without Ray: its sessions are closed by whoever is left to do it."""

import asyncio
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from actors import resource_host
from actors.courier import Courier, Lost
from actors.resource_host import HostedSession, HostedSessions, ResourceHost
from resources.counter import Counter
from resources.ledger import Ledger
from rollout import logs
from rollout.errors import NotRestored, Unavailable
from rollout.load import HostLoad
from rollout.trajectory import StopReason, ToolCall, Transcript

TASK = replace(next(Counter(1).tasks(0)), data={"target": 4, "index": 0})


async def hosted(reference: str = "counter", **options: str) -> tuple[ResourceHost, HostedSessions]:
    """A host of counters and its client."""
    host = ResourceHost(reference, {"count": 1, **options}, 1)
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


async def test_its_sessions_and_how_long_they_took_to_open_come_home_with_the_trips() -> None:
    _, sessions = await hosted()
    seeded = [await sessions.seed_session(TASK, 0, 60) for _ in range(3)]
    assert sessions.loads() == {"host": HostLoad(open=3, expired=0, offloaded=0)}
    assert sessions.loads() == {}, "nothing was asked of it since"
    await seeded[0].session.close()
    assert sessions.loads() == {"host": HostLoad(open=2, expired=0, offloaded=0)}
    assert {cause: count for cause, bound, count in sessions.take_latencies().at_most() if bound == "+Inf"} == {
        "seed": 3
    }
    assert not list(sessions.take_latencies().sums())


async def test_its_log_lines_name_the_episode_that_asks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _, sessions = await hosted(f"{Path(__file__).parent / 'diary.py'}:Diary", path=os.devnull)

    async def play(episode: str, amount: int) -> None:
        logs.about(("run", episode, 1, 0))
        seeded = await sessions.seed_session(TASK, 0, 60)
        logs.turn(amount)
        await seeded.session.call(ToolCall("a", "add", f'{{"amount": {amount}}}'), 5)

    await asyncio.gather(*(asyncio.create_task(play(f"episode-{number}", number)) for number in (1, 2, 3)))
    lines = [vars(record) for record in caplog.records if record.filename == "diary.py"]
    assert sorted((line["episode"], line["turn"], line["message"]) for line in lines) == [
        (f"episode-{number}", number, f"the total is {number}") for number in (1, 2, 3)
    ], "they came in one trip"


async def test_a_host_that_stops_closes_what_is_left_and_takes_nothing_new() -> None:
    host, sessions = await hosted()
    kept, _, _ = [await sessions.seed_session(TASK, 0, 60) for _ in range(3)]
    await kept.session.close()
    await host.stop(5)
    assert await host.counts() == {"opened": 3, "closed": 3, "expired": 0, "open": 0}
    with pytest.raises(Unavailable):
        await sessions.seed_session(TASK, 0, 60)
    assert (await host.counts())["open"] == 0


async def test_what_a_runner_that_is_gone_has_left_is_closed_and_nothing_else() -> None:
    host = ResourceHost("counter", {"count": 1}, 1)
    offer = await host.offer()
    gone, there = (HostedSessions([Courier(host.exchange, "host")], offer, name) for name in ("a", "b"))
    for sessions in (gone, gone, there):
        await sessions.seed_session(TASK, 0, 60)
    await host.abandon("a")
    assert await host.counts() == {"opened": 3, "closed": 2, "expired": 0, "open": 1}
    with pytest.raises(Unavailable, match="the runner is gone"):
        await gone.seed_session(TASK, 0, 60)
    await there.seed_session(TASK, 0, 60)
    assert (await host.counts())["open"] == 2


def three(caps: int = 100) -> tuple[list[ResourceHost], list[Courier]]:
    """Hosts and their couriers."""
    hosts = [ResourceHost("counter", {"count": 1}, 1, caps) for _ in range(3)]
    return hosts, [Courier(host.exchange, f"host {number}") for number, host in enumerate(hosts)]


async def held(hosts: list[ResourceHost]) -> list[int]:
    return [(await host.counts())["open"] for host in hosts]


async def test_a_session_goes_to_the_host_with_the_fewest_of_ours() -> None:
    hosts, couriers = three()
    sessions = HostedSessions(couriers, await hosts[0].offer())
    seeded = [await sessions.seed_session(TASK, 0, 60) for _ in range(9)]
    assert await held(hosts) == [3, 3, 3]
    used = [one.session for one in seeded if isinstance(one.session, HostedSession)]
    for session in (session for session in used if session.host is used[0].host):
        await session.close()
        await session.close()  # which does not make its host look emptier
    assert sorted(await held(hosts)) == [0, 3, 3]
    await asyncio.gather(*(sessions.seed_session(TASK, 0, 60) for _ in range(6)))
    assert await held(hosts) == [4, 4, 4]


async def test_a_host_that_does_not_get_sessions_opened_is_asked_for_no_more_than_the_others() -> None:
    hosts, couriers = three()

    async def never(*_: object) -> bytes:
        return await asyncio.Future()

    sessions = HostedSessions([Courier(never, "stuck"), *couriers[1:]], await hosts[0].offer())
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(sessions.seed_session(TASK, 0, 60)) for _ in range(9)]
        for _, opened in zip(range(6), asyncio.as_completed(asked), strict=False):
            await opened
        for task in asked:
            task.cancel()
    assert await held(hosts) == [0, 3, 3]


async def test_where_one_host_is_full_another_one_is_asked_at_once() -> None:
    hosts, couriers = three(caps=2)
    offer = await hosts[0].offer()
    others = HostedSessions(couriers[:2], offer)
    for _ in range(4):
        await others.seed_session(TASK, 0, 60)
    sessions = HostedSessions(couriers, offer)
    for _ in range(2):
        await sessions.seed_session(TASK, 0, 60)
    assert await held(hosts) == [2, 2, 2]
    with pytest.raises(Unavailable, match="holds 2 sessions"):
        await sessions.seed_session(TASK, 0, 60)


async def test_a_host_that_dies_of_a_task_does_not_pass_it_on_by_itself_and_is_avoided() -> None:
    hosts, couriers = three()

    async def dies(*_: object) -> bytes:
        raise ConnectionError("gone")

    sessions = HostedSessions([Courier(dies, "dead"), *couriers[1:]], await hosts[0].offer())
    lost = 0
    for _ in range(9):
        try:
            await sessions.seed_session(TASK, 0, 60)
        except Lost:
            lost += 1
    assert lost == 1
    assert await held(hosts) == [0, 4, 4]


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
