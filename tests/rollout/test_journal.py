"""Finished turns in files: what is found again after a runner was killed, and what is gone when nobody needs it."""

import asyncio
import resource
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import counter, lease

from rollout import journal as module
from rollout.journal import Earlier, Journal, left_behind, taken_up
from rollout.saved import HEADER, Saved, record, scan
from rollout.trajectory import Completion, FinishReason, Segment, ToolCall, ToolResult, ToolUse, Turn, VersionSpan

CALL = ToolCall("c", "add", '{"amount": 1}')


def saved(number: int, **more: object) -> Saved:
    completion = Completion(
        FinishReason.STOP,
        array("i", [number, 2, 3]),
        array("f", [-0.1, -0.2, -0.3]),
        (VersionSpan("v3", 0, 3),),
        cached_tokens=5,
        prompt_tokens=9,
        replica="r",
    )
    segments = (Segment("reasoning", "hm"), Segment("tool_call", "{}", CALL))
    uses = (ToolUse(CALL, ToolResult("é", error="no", reward=0.5, seconds=0.25)),)
    turn = Turn("agent", 0, array("i", [7, 8]), completion, segments, uses, model_seconds=1.5)
    opening = ({"role": "user", "content": "Add."},) if number == 0 else ()
    return replace(Saved(turn, b"state", opening), **more)  # pyright: ignore[reportArgumentType]


@asynccontextmanager
async def journal(folder: Path, name: str = "runner-a-0", segment_bytes: int = 1 << 20) -> AsyncIterator[Journal]:
    """One that writes at once."""
    running = Journal(folder, name, every=0.0, segment_bytes=segment_bytes)
    try:
        yield running
    finally:
        await running.close()


async def settled(condition: Callable[[], bool]) -> None:
    """Nothing is concluded from how long it took."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the writer tells nobody
            await asyncio.sleep(0.001)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


async def test_another_runner_finds_the_turns_as_they_were(tmp_path: Path) -> None:
    async with journal(tmp_path / "turns") as dying:
        for number in range(3):
            dying.add("run-0-0", number, saved(number))
        dying.add("run-1-0", 0, saved(0))
    async with journal(tmp_path / "turns", "runner-a-1") as running:
        found = await running.take_over("run-0-0", "runner-a-0")
        assert found == tuple(saved(number) for number in range(3))
        assert found[0].turn.completion.ids == array("i", [0, 2, 3])
        assert await running.take_over("run-9-0", "runner-a-0") == ()
        assert await running.take_over("run-0-0", None) == ()
    async with journal(tmp_path / "turns", "runner-a-2") as third:
        assert await third.take_over("run-0-0", "runner-a-1") == found, "the second one has copied them"


async def test_a_torn_tail_costs_only_itself(tmp_path: Path) -> None:
    async with journal(tmp_path) as dying:
        for number in range(3):
            dying.add("run-0-0", number, saved(number))
    file = tmp_path / "runner-a-0-0000.turns"
    whole = file.read_bytes()
    ends = [len(HEADER), *(end for *_, end in scan(file))]
    assert ends[-1] == len(whole)
    for cut in sorted({*range(0, len(whole), 11), *ends, *(end - 1 for end in ends)}):
        file.write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends[1:])
        found = await Earlier(tmp_path).turns("runner-a-0", "run-0-0")
        assert found == tuple(saved(number) for number in range(kept))
    flipped = bytearray(whole)
    flipped[ends[1] + 30] ^= 1
    file.write_bytes(flipped)
    assert await Earlier(tmp_path).turns("runner-a-0", "run-0-0") == (saved(0),), "and what follows is not trusted"
    file.write_bytes(whole[: ends[1]] + bytes(5000))  # as a node leaves it that lost its power
    assert await Earlier(tmp_path).turns("runner-a-0", "run-0-0") == (saved(0),)


@pytest.mark.parametrize("bad", [b"rollout turns 1, written by 0.0.0\n", b"\x00" * 400])
async def test_a_file_of_another_version_means_to_start_again_and_is_told_once(
    tmp_path: Path, bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "runner-a-0-0000.turns").write_bytes(bad + record("run-0-0", 0, saved(0)))
    earlier = Earlier(tmp_path)
    assert [await earlier.turns("runner-a-0", "run-0-0") for _ in range(3)] == [(), (), ()]
    assert caplog.text.count("cannot be used") == 1
    assert left_behind(tmp_path) == {}


async def test_files_roll_and_go_when_no_unfinished_episode_stands_in_them(tmp_path: Path) -> None:
    async with journal(tmp_path, segment_bytes=2000) as running:
        for episode in range(6):
            running.add(f"run-{episode}-0", 0, saved(0))
            await settled(lambda last=episode: f"runner-a-0-{last:04}.turns" in files(tmp_path))
            running.add(f"run-{episode}-0", 1, saved(1, snapshot=bytes(2000)))
            await settled(lambda last=episode: len(list(scan(tmp_path / f"runner-a-0-{last:04}.turns"))) == 2)
        assert len(files(tmp_path)) == 6
        running.settle(["run-1-0", "run-4-0"])
        assert files(tmp_path) == [f"runner-a-0-{number:04}.turns" for number in (0, 2, 3, 5)]
        running.settle([f"run-{episode}-0" for episode in range(5)])
        assert await running.take_over("run-5-0", "runner-a-0") == (saved(0), saved(1, snapshot=bytes(2000)))
        running.settle(["run-5-0"])
        running.add("run-6-0", 0, saved(0, snapshot=bytes(2000)))
        await settled(lambda: "runner-a-0-0006.turns" in files(tmp_path))
        await settled(lambda: len(files(tmp_path)) == 1)
        assert not running._places.keys() - {"run-6-0"}, "memory follows what is in flight"  # pyright: ignore[reportPrivateUsage]
        await settled(lambda: sum(running._live.values()) == 1)  # pyright: ignore[reportPrivateUsage]


async def test_an_episode_that_ends_before_its_turns_are_written_is_not_written(tmp_path: Path) -> None:
    running = Journal(tmp_path, "runner-a-0")
    running.add("run-0-0", 0, saved(0))
    running.add("run-1-0", 0, saved(0))
    running.settle(["run-0-0"])
    await running.close()
    assert left_behind(tmp_path) == {"run-1-0": "runner-a-0"}


async def test_an_attempt_after_one_that_failed_here_goes_on_too_written_or_not(tmp_path: Path) -> None:
    running = Journal(tmp_path, "runner-a-0")
    running.add("run-0-0", 0, saved(0))
    running.leave("run-0-0")
    assert await running.take_over("run-0-0", "runner-a-0") == (saved(0),)
    await running.close()
    assert await running.take_over("run-0-0", "runner-a-0") == (saved(0),)
    running.add("run-0-0", 1, saved(1))
    assert await running.take_over("run-0-0", "runner-a-0") == (saved(0), saved(1))
    running.add("run-0-0", 0, saved(4))
    assert await running.take_over("run-0-0", "runner-a-0") == (saved(4),), "it started again"
    await running.close()
    assert await Earlier(tmp_path).turns("runner-a-0", "run-0-0") == (saved(4),)


async def test_an_attempt_that_failed_is_forgotten_after_a_while_unless_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    async with journal(tmp_path) as running:
        running.add("run-0-0", 0, saved(0))
        running.add("run-1-0", 0, saved(0))
        running.leave("run-0-0")
        running.leave("run-1-0")
        await running.take_over("run-1-0", "runner-b-0")
        await settled(lambda: not running._leaving)  # pyright: ignore[reportPrivateUsage]
    assert left_behind(tmp_path) == {"run-1-0": "runner-a-0"}


async def test_a_living_runners_files_are_read_again_as_they_grow_and_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = Earlier(tmp_path)
    async with journal(tmp_path) as living:
        assert await earlier.turns("runner-a-0", "run-0-0") == ()
        living.add("run-0-0", 0, saved(0))
        await settled(lambda: bool(left_behind(tmp_path)))
        assert await earlier.turns("runner-a-0", "run-0-0") == (saved(0),)
        living.add("run-0-0", 1, saved(1))
    assert await earlier.turns("runner-a-0", "run-0-0") == (saved(0), saved(1))
    (tmp_path / "runner-a-0-0000.turns").unlink()
    assert await earlier.turns("runner-a-0", "run-0-0") == ()
    assert not caplog.text, "a file that its runner no longer needs is no fault"


async def test_a_disk_that_is_full_costs_turns_and_no_episode(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with journal(tmp_path) as running:
        running.add("run-0-0", 0, saved(0))
        await settled(lambda: bool(left_behind(tmp_path)))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # no file may grow beyond: as good as full
            running.add("run-0-0", 1, saved(1, snapshot=bytes(3000)))
            await settled(lambda: running._broken)  # pyright: ignore[reportPrivateUsage]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        running.add("run-0-0", 2, saved(2))
        running.settle(f"run-{episode}-0" for episode in range(1, 9))
        assert not running._settled | running._places.keys() - {"run-0-0"}  # pyright: ignore[reportPrivateUsage]
    assert caplog.text.count("not kept any more") == 1
    assert (tmp_path / "runner-a-0-0000.turns").stat().st_size == 2000
    assert await Earlier(tmp_path).turns("runner-a-0", "run-0-0") == (saved(0),)


async def test_a_folder_that_cannot_be_made_costs_turns_and_no_episode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with journal(tmp_path / "none" / "turns") as running:
        running.add("run-0-0", 0, saved(0))
        await settled(lambda: running._broken)  # pyright: ignore[reportPrivateUsage]
    assert caplog.text.count("not kept any more") == 1


async def test_a_turn_that_no_file_can_hold_costs_only_itself(tmp_path: Path) -> None:
    async with journal(tmp_path) as running:
        running.add("run-0-0", 0, saved(0))
        running.add("run-0-0", 1, saved(1, snapshot=object()))
        running.add("run-0-0", 2, saved(2))
    assert await Earlier(tmp_path).turns("runner-a-0", "run-0-0") == (saved(0),)


async def test_a_resumed_run_names_who_has_most_of_each_episode(tmp_path: Path) -> None:
    async with journal(tmp_path, "runner-a-0") as first, journal(tmp_path, "runner-a-11") as second:
        first.add("run-0-0", 0, saved(0))
        for number in range(2):
            second.add("run-0-0", number, saved(number))
        first.add("run-2-0", 0, saved(0))
    left = left_behind(tmp_path)
    assert left == {"run-0-0": "runner-a-11", "run-2-0": "runner-a-0"}
    leases = [lease(task) for task in counter().tasks(0)]
    assert [one.played_by for one in taken_up(iter(leases), left)] == ["runner-a-11", None, "runner-a-0"]
    assert left_behind(tmp_path / "none") == {}
