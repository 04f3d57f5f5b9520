"""A host of sessions, without Ray: its sessions are closed by whoever is left to do it."""

import asyncio
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from actors import resource_host
from actors.courier import Courier
from actors.resource_host import HostedSessions, ResourceHost
from resources.counter import Counter
from rollout import logs
from rollout.errors import Unavailable
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
    assert (await seeded.session.call(ToolCall("a", "add", '{"amount": 4}'), 5)).content == "4"
    assert (await seeded.session.call(ToolCall("b", "submit", "{}"), 5)).done
    assert (await seeded.session.verify(Transcript((), StopReason.ENVIRONMENT), 5)).reward == 1.0
    await seeded.session.close()
    assert await host.counts() == {"opened": 1, "closed": 1, "expired": 0, "open": 0}


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
