"""Answers that come in parts: letters, and completions of a replica in this process over plain awaits."""

import asyncio
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from actors.courier import Courier, Mailbox
from actors.engine import Listening, Part, Parts, ScriptedEngine
from actors.model import ModelReplica
from actors.served_policy import ServedPolicy
from rollout.errors import ResourceDown, Unavailable
from rollout.streaming import Delta
from rollout.trajectory import Prompt, Sampling

PATIENCE = 20.0
LINE = list(range(100, 140))


@dataclass
class Reader:
    """Reads a letter aloud, word by word."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: list[str] = field(default_factory=list[str])

    async def __call__(self, letter: str, tell: Callable[[str], None] | None = None) -> str:
        try:
            for word in letter.split():
                if word == "wait":
                    await self.gate.wait()
                elif tell is not None:
                    tell(word)
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.stopped.append(letter)
            raise
        return letter


def line() -> tuple[Reader, Courier]:
    reader = Reader()
    return reader, Courier(Mailbox(reader).exchange, "host 1")


async def test_parts_come_before_the_answer_and_only_to_who_listens() -> None:
    _, courier = line()
    heard: list[str] = []
    assert await courier.ask("a b c", heard=heard.append) == "a b c"
    assert heard == ["a", "b", "c"]
    assert await courier.ask("a b c") == "a b c"
    assert heard == ["a", "b", "c"]


async def test_parts_come_while_the_answer_is_still_to_come() -> None:
    reader, courier = line()
    heard, came = list[str](), asyncio.Event()

    def hears(word: str) -> None:
        heard.append(word)
        came.set()

    task = asyncio.create_task(courier.ask("a wait b", heard=hears))
    await asyncio.wait_for(came.wait(), PATIENCE)
    assert heard == ["a"]
    assert await courier.ask("quick") == "quick", "nobody waits for it"
    reader.gate.set()
    assert await task == "a wait b"
    assert heard == ["a", "b"]


async def test_who_listens_badly_costs_only_itself() -> None:
    reader, courier = line()

    def breaks(word: str) -> None:
        raise ValueError(word)

    other = asyncio.create_task(courier.ask("x wait"))
    with pytest.raises(ValueError, match="a"):
        await courier.ask("a wait", heard=breaks)
    reader.gate.set()
    assert await other == "x wait"


async def test_who_goes_away_ends_the_work_over_there() -> None:
    reader, courier = line()
    came = asyncio.Event()
    task = asyncio.create_task(courier.ask("a wait", heard=lambda _: came.set()))
    await asyncio.wait_for(came.wait(), PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(PATIENCE):
        while not reader.stopped:  # noqa: ASYNC110 - the reader knows nothing of tests
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_handed_on_in_order_whatever_order_they_come_in(seed: int) -> None:
    chance, parts, heard = random.Random(seed), list[Part](), list[int]()
    tell = Parts(parts.append)
    for start in range(0, len(LINE), 3):
        tell(LINE[start : start + 3])
    chance.shuffle(parts)
    listening = Listening(heard.extend)
    for part in parts[: chance.randrange(len(parts) + 1)]:
        listening.take(part)
        assert heard == LINE[: len(heard)]
    listening.end(array("i", LINE))
    assert heard == LINE


def policy(replicas: Sequence[ModelReplica]) -> ServedPolicy:
    """Over a handle that leads to these, one after the other."""
    left = list(replicas)

    async def exchange(name: str, letters: bytes, hold: float) -> bytes:
        return await left[0].exchange(name, letters, hold)

    handle: Any = SimpleNamespace(exchange=SimpleNamespace(remote=exchange))
    handle.options = lambda session_id: handle
    return ServedPolicy(handle, 1)


def asked(max_tokens: int = 64) -> Prompt:
    return Prompt("r", "s", 0, [7, 8, 9], (), (), max_tokens, Sampling(), PATIENCE)


@pytest.mark.parametrize("latency", [0.0, 0.1])
@pytest.mark.parametrize("most", [64, 7])
async def test_a_streamed_completion_of_a_replica_is_the_one_that_comes_whole(latency: float, most: int) -> None:
    served = policy([ModelReplica(partial(ScriptedEngine, [LINE], latency, 0.0, 0), 4, 1.0)])
    heard: list[Delta] = []
    streamed = replace(await served.stream(asked(most), heard.append), queue_seconds=0.0)
    assert streamed == replace(await served.complete(asked(most)), queue_seconds=0.0)
    assert [number for one in heard for number in one.ids] == list(streamed.ids or ())


async def test_a_turn_of_which_something_was_heard_is_not_asked_for_again() -> None:
    class Dies(ScriptedEngine):
        async def generate(self, request: Any, told: Any = None) -> Any:
            if told is not None:
                told(LINE[:2])
                await asyncio.sleep(0.2)
            raise Unavailable("gone")

    served = policy([ModelReplica(partial(Dies, [LINE], 0.0, 0.0, 0), 4, 1.0)])
    heard: list[Delta] = []
    with pytest.raises(ResourceDown, match=r"asked 1 time$"):
        await served.stream(asked(), heard.append)
    assert [list(one.ids) for one in heard] == [LINE[:2]]


async def test_a_listener_that_breaks_costs_its_own_letter_alone() -> None:
    _, courier = line()

    def breaks(word: str) -> None:
        raise ValueError("deaf")

    asked = (courier.ask("a b", heard=breaks), courier.ask("quick"))
    broken, quick = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(broken, ValueError)
    assert quick == "quick"
    assert await courier.ask("again") == "again"
