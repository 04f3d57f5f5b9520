"""Episodes that were broken off: continued from any turn they end as if they had never been."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from fakes import (
    ADD,
    GOLD,
    LIMITS,
    TEMPLATE,
    FaultySessions,
    completion,
    counter,
    lease,
    raising,
    says,
    setting,
)
from hypothesis import given
from hypothesis import strategies as st

from resources.counter import Count, Counter
from resources.gymnasium_adapter import GymnasiumResource
from resources.ledger import Books, Ledger
from rollout.episode import run_episode
from rollout.errors import ResourceDown
from rollout.resource import BoundTool, Resource, ToolFunction, tool
from rollout.saved import Saved, decoded, record
from rollout.scripted import ScriptedPolicy
from rollout.sessions import SessionTable
from rollout.tokens import MessageLedger
from rollout.trajectory import Completion, FinishReason, Limits, Message, Prompt, Seconds, Task, Trajectory

LINES = st.lists(
    st.sampled_from([ADD, ADD + ADD, GOLD[-1], "<tool_call>{</tool_call>", ADD.replace("add", "odd"), "That is all."]),
    min_size=1,
    max_size=6,
)


async def played(resource: Resource, lines: Sequence[str], task: Task | None = None) -> tuple[Trajectory, list[Saved]]:
    """An uninterrupted episode, and the turns it left as they come out of a file."""
    kept: list[Saved] = []

    def keep(episode_id: str, number: int, saved: Saved) -> None:
        assert (episode_id, number) == ("run-0-0", len(kept))
        kept.append(through_a_file(saved))

    whole = await run_episode(lease(task), setting(says(*lines), resource, keep=keep))
    return whole, kept


def through_a_file(saved: Saved) -> Saved:
    written = record("", 0, saved)
    return decoded(written[written.index(b"\x85\xa4turn") :])


class Unasked:
    """A policy that says its lines from a turn on and must not be asked for those before."""

    def __init__(self, lines: Sequence[str], since: int) -> None:
        self.inner = says(*lines)
        self.since = since

    async def complete(self, prompt: Prompt) -> Completion:
        assert prompt.turn >= self.since, f"turn {prompt.turn} was asked again"
        return await self.inner.complete(prompt)


def timeless(trajectory: Trajectory) -> Trajectory:
    turns = [
        replace(
            turn,
            model_seconds=0.0,
            tool_uses=tuple(replace(use, result=replace(use.result, seconds=0.0)) for use in turn.tool_uses),
        )
        for turn in trajectory.turns
    ]
    bare = replace(trajectory, turns=tuple(turns), started_at=0.0, finished_at=0.0, restored_turns=None)
    return replace(bare, seconds=Seconds(), lease=replace(bare.lease, attempt=1))


@given(LINES, st.data())
async def test_an_episode_continued_from_any_turn_is_the_uninterrupted_one(
    lines: list[str], data: st.DataObject
) -> None:
    whole, kept = await played(counter(), lines)
    assert len(kept) == len(whole.turns)
    cut = data.draw(st.integers(1, len(kept)))
    again = setting(Unasked(lines, cut), counter(), restores="replay")
    continued = await run_episode(lease(attempt=2), again, kept[:cut])
    assert timeless(continued) == timeless(whole)
    assert continued.restored_turns == cut
    assert continued.restored_tokens == sum(turn.completion.num_sampled for turn in whole.turns[:cut])
    assert continued.turns[:cut] == whole.turns[:cut], "with the times of the attempt that played them"


async def test_the_models_time_of_restored_turns_stays_in_the_row() -> None:
    whole, kept = await played(counter(), GOLD)
    slow = [replace(saved, turn=replace(saved.turn, model_seconds=100.0)) for saved in kept[:2]]
    continued = await run_episode(lease(), setting(says(*GOLD), restores="replay"), slow)
    assert continued.seconds.model == pytest.approx(200 + continued.turns[2].model_seconds)
    assert continued.seconds.total >= continued.seconds.model
    assert whole.seconds.total < 100


def books() -> tuple[Ledger, Task, list[str]]:
    resource = Ledger(count=1)
    task = next(resource.tasks(0))
    calls = [
        f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>' for name, arguments in _calls(task)
    ]
    return resource, task, [calls[0] + calls[1], *calls[2:], "Done."]


def _calls(task: Task) -> list[tuple[str, str]]:
    return [(name, str(arguments).replace("'", '"')) for name, arguments in task.data["calls"]]


async def test_a_snapshot_brings_the_session_back_and_no_tool_runs_twice() -> None:
    resource, task, lines = books()
    whole, kept = await played(resource, lines, task)
    assert whole.reward == 1.0
    assert all(saved.snapshot is not None for saved in kept[:-1])

    class Watched(Ledger):
        ran = 0

        def bound_tools(self) -> dict[str, BoundTool]:
            return {
                name: replace(bound, function=self._counted(bound.function))
                for name, bound in super().bound_tools().items()
            }

        def _counted(self, function: ToolFunction) -> ToolFunction:
            async def counted(session: Books, **arguments: Any) -> Any:
                self.ran += 1
                return await function(session, **arguments)

            return counted

    for cut in range(1, len(kept) + 1):
        watched = Watched(count=1)
        again = setting(Unasked(lines, cut), watched, restores="snapshot")
        continued = await run_episode(lease(task), again, kept[:cut])
        assert timeless(continued) == timeless(whole)
        assert continued.restored_turns == cut
        assert watched.ran == sum(len(turn.tool_uses) for turn in whole.turns[cut:])


async def test_a_turn_whose_snapshot_is_missing_is_played_again() -> None:
    resource, task, lines = books()
    whole, kept = await played(resource, lines, task)
    holed = [kept[0], replace(kept[1], snapshot=None)]
    continued = await run_episode(lease(task), setting(Unasked(lines, 1), resource, restores="snapshot"), holed)
    assert (timeless(continued), continued.restored_turns) == (timeless(whole), 1)
    nothing = await run_episode(lease(task), setting(says(*lines), resource, restores="snapshot"), holed[1:])
    assert (timeless(nothing), nothing.restored_turns) == (timeless(whole), 0)


async def test_a_snapshot_that_no_session_can_be_made_from_starts_the_episode_again() -> None:
    resource, task, lines = books()
    whole, kept = await played(resource, lines, task)
    broken = [replace(kept[0], snapshot=b"no database")]
    table = SessionTable(resource)
    again = setting(says(*lines), FaultySessions({}, table), restores="snapshot")
    continued = await run_episode(lease(task), again, broken)
    assert (timeless(continued), continued.restored_turns) == (timeless(whole), 0)
    assert (table.opened, len(table)) == (1, 0)


class Forgetful(Counter):
    """Answers otherwise than it did before."""

    restores = "replay"

    @tool
    async def add(self, session: Count, amount: int) -> int:
        """Add to the total and return it.

        Args:
            amount: What to add.
        """
        return await super().add(session, amount) + 10


class Retold(Counter):
    """Opens otherwise than it did before."""

    def opening(self, session: Count, task: Task) -> tuple[Message, ...]:
        return (*task.messages, {"role": "user", "content": "And quickly."})


@pytest.mark.parametrize("changed", [Forgetful(3, 2), Retold(3, 2)])
async def test_a_replay_with_another_result_starts_the_episode_again(
    changed: Resource, caplog: pytest.LogCaptureFixture
) -> None:
    _, kept = await played(counter(), GOLD)
    table = SessionTable(changed)
    again = setting(says(*GOLD), FaultySessions({}, table), restores="replay")
    continued = await run_episode(lease(), again, kept[:2])
    fresh = await run_episode(lease(), setting(says(*GOLD), changed))
    assert (timeless(continued), continued.restored_turns) == (timeless(fresh), 0)
    assert (table.opened, table.closed, len(table)) == (2, 2, 0)
    assert "run-0-0 starts again" in caplog.text


async def test_step_rewards_ends_and_errors_are_compared_too() -> None:
    _, kept = await played(counter(), GOLD)
    for change in ({"reward": 1.0}, {"done": True}, {"error": "no"}, {"skipped": True}, {"content": "1 "}):
        use = kept[0].turn.tool_uses[0]
        other = replace(use, result=replace(use.result, **change))
        changed = replace(kept[0], turn=replace(kept[0].turn, tool_uses=(other,)))
        continued = await run_episode(lease(), setting(says(*GOLD), restores="replay"), [changed])
        assert (continued.restored_turns, continued.reward) == (0, 1.0)


async def test_a_resource_that_does_not_say_how_starts_again() -> None:
    whole, kept = await played(counter(), GOLD)
    continued = await run_episode(lease(), setting(says(*GOLD)), kept)
    assert (timeless(continued), continued.restored_turns) == (timeless(whole), 0)


async def test_a_host_that_is_away_during_the_replay_fails_the_attempt_and_not_the_record() -> None:
    _, kept = await played(counter(), GOLD)
    sessions = FaultySessions({"call": raising(ResourceDown("gone"))})
    continued = await run_episode(lease(), setting(says(*GOLD), sessions, restores="replay"), kept[:2])
    assert continued.failure is not None
    assert len(sessions.table) == 0


async def test_a_game_of_chance_is_replayed_from_its_seed() -> None:
    resource = GymnasiumResource(count=1, env_options={"is_slippery": True})
    task = next(resource.tasks(0))
    lines = ["right", "down", "left", "right", "down", "down", "right"]
    whole, kept = await played(resource, lines, task)
    for cut in range(1, len(kept) + 1):
        again = setting(Unasked(lines, cut), resource, restores="replay")
        continued = await run_episode(lease(task), again, kept[:cut])
        assert (timeless(continued), continued.restored_turns) == (timeless(whole), cut)


async def test_an_endpoint_that_speaks_messages_is_not_asked_again_either() -> None:
    class Chat:
        asked = 0

        async def complete(self, prompt: Prompt) -> Completion:
            self.asked += 1
            made = {
                "id": f"c{prompt.turn}",
                "type": "function",
                "function": {"name": "add", "arguments": '{"amount": 1}'},
            }
            message: Message = {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [made]}
            return Completion(FinishReason.STOP, message=message, sampled_tokens=7)

    limits = Limits(max_turns=4)
    kept: list[Saved] = []
    chat = Chat()
    base = setting(chat, new_ledger=MessageLedger, limits=limits, restores="replay")
    first = replace(base, keep=lambda _id, _number, saved: kept.append(through_a_file(saved)))
    whole = await run_episode(lease(), first)
    continued = await run_episode(lease(), base, kept[:3])
    assert (timeless(continued), continued.restored_turns) == (timeless(whole), 3)
    assert (chat.asked, continued.restored_tokens) == (5, 21)
    again = await run_episode(lease(), replace(base, sessions=setting(chat, Retold(3, 2)).sessions), kept[:3])
    assert again.restored_turns == 0, "no ids would have told that it opens otherwise"


async def test_a_completion_that_was_cut_ends_the_episode_again() -> None:
    cut = TEMPLATE.encode(ADD)[:5]

    class Cutting:
        async def complete(self, prompt: Prompt) -> Completion:
            return completion(cut, FinishReason.LENGTH)

    kept: list[Saved] = []
    whole = await run_episode(lease(), setting(Cutting(), keep=lambda _id, _number, saved: kept.append(saved)))
    policy = ScriptedPolicy(TEMPLATE, lambda prompt: pytest.fail("asked again"))
    continued = await run_episode(lease(), setting(policy, limits=LIMITS, restores="replay"), kept)
    assert (timeless(continued), continued.restored_turns) == (timeless(whole), 1)
