"""The conformance test is tested with resources that are broken in one way each."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from rollout.conformance import check
from rollout.errors import ResourceDown, ToolError
from rollout.resource import Resource, Solution, Step, StepResource, tool
from rollout.trajectory import Message, Score, Task, ToolResult, Transcript


@dataclass
class Purse:
    wanted: int
    coins: int = 0


class Good(Resource):
    """Put as many coins into the purse as the task wants."""

    name = "good"
    instructions = "Use the tools."

    def tasks(self, seed: int) -> Iterator[Task]:
        for index in itertools.count():
            wanted = random.Random(f"{seed}/{index}").randint(2, 9)
            message: Message = {"role": "user", "content": f"I want {wanted} coins."}
            yield Task(f"good-{index}", (message,), {"wanted": wanted}, index)

    async def seed_session(self, task: Task, seed: int) -> Purse:
        return Purse(task.data["wanted"])

    @tool
    async def put(self, session: Purse, coins: int) -> int:
        """Put coins in.

        Args:
            coins: How many.
        """
        session.coins += coins
        return session.coins

    async def verify(self, session: Purse, transcript: Transcript) -> Score | float:
        return float(session.coins == session.wanted)

    def gold(self, task: Task) -> Solution:
        return Solution((("put", {"coins": 1}),) * task.data["wanted"], "Done.")

    def wrong(self, task: Task) -> Solution:
        return Solution((("put", {"coins": 1}),))


class Endless(Good):
    def tasks(self, seed: int) -> Iterator[Task]:
        message: Message = {"role": "user", "content": "2"}
        while True:
            yield Task("the same", (message,), {"wanted": 2})


class Fickle(Good):
    def tasks(self, seed: int) -> Iterator[Task]:
        return super().tasks(random.randrange(10**9))


class Unreadable(Good):
    def opening(self, session: Any, task: Task) -> tuple[Message, ...]:
        return ({"role": "human", "content": "Hello."}, *task.messages)


class Undescribed(Good):
    @tool
    async def put(self, session: Purse, coins: int) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Put coins in."""
        session.coins += coins
        return session.coins


class NoDocstring(Good):
    @tool
    async def shake(self, session: Purse) -> str:
        return "it rattles"


class WrongGold(Good):
    def gold(self, task: Task) -> Solution:
        return Solution((("putt", {"coins": task.data["wanted"]}),))


class NoGold(Good):
    def gold(self, task: Task) -> Solution:
        raise NotImplementedError("nobody knows")


class Generous(Good):
    async def verify(self, session: Purse, transcript: Transcript) -> Score | float:
        return 1.0


class Shared(Good):
    """Keeps the state on the resource: right for one session at a time."""

    purse: Purse

    async def seed_session(self, task: Task, seed: int) -> Purse:
        self.purse = Purse(task.data["wanted"])
        return self.purse

    async def put(self, session: Purse, coins: int) -> int:
        return await super().put(self.purse, coins)


class Pooled(Good):
    """Forgets to empty the purse that the last session left."""

    left: ClassVar[list[Purse]] = []

    async def seed_session(self, task: Task, seed: int) -> Purse:
        return self.left.pop() if self.left else Purse(task.data["wanted"])

    async def close(self, session: Purse) -> None:
        self.left.append(session)


class Random(Good):
    @tool
    async def put(self, session: Purse, coins: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Put coins in.

        Args:
            coins: How many.
        """
        return f"{await super().put(session, coins)} at {random.random()}"


class Careless(Good):
    @tool
    async def put(self, session: Purse, coins: Any = 1) -> int:
        """Put coins in.

        Args:
            coins: How many.
        """
        return await super().put(session, coins if isinstance(coins, int) else 0)

    def bound_tools(self) -> Any:
        found = super().bound_tools()
        found["put"].arguments.model_config["extra"] = "ignore"
        found["put"].arguments.model_rebuild(force=True)
        return found


class Fragile(Good):
    async def verify(self, session: Purse, transcript: Transcript) -> Score | float:
        last = transcript.messages[-1]
        if "tool_call_id" not in last and last["role"] != "assistant":
            raise IndexError("no turn to judge")
        return await super().verify(session, transcript)


class Unlike(Good):
    """Says how often it was opened: no replay gives the same."""

    restores = "replay"
    opened: ClassVar[int] = 0

    async def seed_session(self, task: Task, seed: int) -> Purse:
        Unlike.opened += 1
        return await super().seed_session(task, seed)

    def opening(self, session: Any, task: Task) -> tuple[Message, ...]:
        return ({"role": "user", "content": f"Visit {self.opened}."}, *task.messages)


class Emptied(Good):
    """Forgets in its snapshots what is in the purse."""

    restores = "snapshot"

    async def snapshot(self, session: Purse) -> bytes:
        return b""

    async def restore(self, task: Task, seed: int, snapshot: bytes) -> Purse:
        return await self.seed_session(task, seed)


class Promising(Good):
    restores = "snapshot"


class Restored(Emptied):
    async def snapshot(self, session: Purse) -> bytes:
        return bytes([session.coins])

    async def restore(self, task: Task, seed: int, snapshot: bytes) -> Purse:
        return Purse(task.data["wanted"], snapshot[0])


class Looking(Good):
    """Judges the purse, and says that the conversation is enough."""

    rescores = "transcript"


class Retold(Good):
    rescores = "replay"


class Leaky(Good):
    async def close(self, session: Purse) -> None:
        raise RuntimeError("the purse is stuck")


class Down(Good):
    async def seed_session(self, task: Task, seed: int) -> Purse:
        raise ResourceDown("no purses")


class Asserting(Good):
    async def verify(self, session: Purse, transcript: Transcript) -> Score | float:
        assert session.coins > 0, "an empty purse"
        return await super().verify(session, transcript)


class Talk(StepResource):
    """Played by saying; gold answers in words."""

    name = "talk"

    def tasks(self, seed: int) -> Iterator[Task]:
        yield Task("talk-0", ({"role": "user", "content": "Say please."},))

    async def reset(self, task: Task, seed: int) -> tuple[str, str]:
        return "", "What do you say?"

    async def act(self, session: str, action: str) -> Step:
        if not action:
            raise ToolError("say something")
        return Step("Thank you.", float(action == "please"), terminated=True)

    def gold(self, task: Task) -> Solution:
        return Solution((), "please")


async def failed(resource: Resource) -> dict[str, str]:
    return {finding.name: finding.detail for finding in await check(resource) if not finding.ok}


@pytest.mark.parametrize("resource", [Good(), Talk(), Restored(), Retold()])
async def test_a_good_resource_passes(resource: Resource) -> None:
    assert await failed(resource) == {}


@pytest.mark.parametrize(
    ("resource", "name", "detail"),
    [
        (Endless(), "tasks repeat and have ids of their own", "ids repeat: the same, the same, the same"),
        (Fickle(), "tasks repeat and have ids of their own", "two readings of seed 0 differ"),
        (Unreadable(), "messages are well-formed", "a message needs a role"),
        (Undescribed(), "tools are described", "put: argument 'coins' is not in the docstring's Args"),
        (NoDocstring(), "tools are described", "shake has no docstring"),
        (WrongGold(), "gold scores 1.0", "a call failed: there is no tool 'putt'"),
        (NoGold(), "gold scores 1.0", "nobody knows"),
        (Generous(), "wrong scores less", "the wrong solution scores 1"),
        (Random(), "equal seeds play equally", "call 0 gives"),
        (Pooled(), "equal seeds play equally", "good-0: call 0 gives"),
        (Shared(), "sessions do not share state", "played beside other sessions, call 1 gives"),
        (Careless(), "bad calls are told to the policy", "put has no complaint"),
        (Fragile(), "a truncated episode can be judged", "no turn to judge"),
        (Unlike(), "a session is restored as it says", "the restored session opens with"),
        (Emptied(), "a session is restored as it says", "steps and restored, call"),
        (Promising(), "a session is restored as it says", "there is no snapshot after call"),
        (Looking(), "an episode is judged again as it says", "judged again by transcript, the score is"),
        (Leaky(), "sessions close, once", "the purse is stuck"),
        (Down(), "gold scores 1.0", "no purses"),
        (Asserting(), "a truncated episode can be judged", "an empty purse"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Resource) else "",
)
async def test_each_fault_is_found_by_the_check_that_looks_for_it(resource: Resource, name: str, detail: str) -> None:
    Pooled.left.clear()
    assert detail in (await failed(resource))[name]


@pytest.mark.parametrize(
    "resource", [NoGold(), Undescribed(), Generous(), Shared(), Fragile(), Unlike(), Emptied(), Promising(), Looking()]
)
async def test_a_single_fault_fails_nothing_else(resource: Resource) -> None:
    assert len(await failed(resource)) == 1


async def test_a_tool_that_ends_the_episode_ends_the_play() -> None:
    class Ending(Good):
        async def put(self, session: Purse, coins: int) -> Any:
            return ToolResult("full", done=await super().put(session, coins) >= session.wanted)

        def gold(self, task: Task) -> Solution:
            return Solution((("put", {"coins": task.data["wanted"]}), ("put", {"coins": 1})))

    assert await failed(Ending()) == {}
