"""The turn loop: how episodes end, what fails them, and that whatever happens their session is closed."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fakes import (
    ADD,
    GOLD,
    LIMITS,
    SUBMIT,
    TEMPLATE,
    TOKENIZER,
    Fault,
    FaultyPolicy,
    FaultySessions,
    completion,
    counter,
    hang,
    lease,
    raising,
    says,
    setting,
)

from resources.calculator import Calculator
from rollout.agents.retry import RetryingPolicy
from rollout.episode import run_episode
from rollout.errors import ContextExceeded, ResourceDown, ToolError, Unavailable, UserError
from rollout.protocols import Policy
from rollout.resource import Resource, Step, StepResource, tool
from rollout.rows import to_table
from rollout.scripted import ScriptedPolicy
from rollout.segments import hermes
from rollout.sessions import LocalSessions, SessionTable
from rollout.template import ChatTemplate
from rollout.tokens import TokenLedger
from rollout.trajectory import (
    Agent,
    Completion,
    FailureKind,
    FinishReason,
    Limits,
    Message,
    Prompt,
    Sampling,
    Score,
    Status,
    StopReason,
    Task,
    ToolResult,
    Trajectory,
    Transcript,
)

TOLD = len(TEMPLATE.encode(ADD)) + 1
"""Tokens of ADD and the end of turn."""
HASTE = replace(
    LIMITS, seed_seconds=0.05, turn_seconds=0.05, tool_seconds=0.05, verify_seconds=0.05, close_seconds=0.05
)


async def test_the_gold_solution_is_played_to_its_reward() -> None:
    table = SessionTable(counter())
    played = await run_episode(lease(), setting(says(*GOLD), LocalSessions(table)))
    assert (played.status, played.stop_reason) == (Status.COMPLETED, StopReason.ENVIRONMENT)
    assert (played.reward, played.failure) == (1.0, None)
    assert [use.result.content for turn in played.turns for use in turn.tool_uses] == ["1", "2", "2"]
    roles = [message["role"] for message in played.messages]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant", "tool"]
    assert (table.opened, table.closed) == (1, 1)
    assert played.num_tool_calls == 3
    assert played.num_sampled == sum(len(turn.completion.ids or ()) for turn in played.turns)


async def test_another_resource_is_played_by_its_own_gold_solution() -> None:
    resource = Calculator(count=1)
    task = next(iter(resource.tasks(0)))
    gold = resource.gold(task)
    lines = [
        f'<tool_call>{{"name": "{name}", "arguments": {{"expression": "{given["expression"]}"}}}}</tool_call>'
        for name, given in gold.calls
    ]
    played = await run_episode(lease(task), setting(says(*lines, gold.answer), resource))
    assert (played.reward, played.stop_reason) == (1.0, StopReason.DONE)
    assert played.messages[0] == {"role": "system", "content": resource.instructions}


@pytest.mark.parametrize(
    ("lines", "changes", "stop", "turns"),
    [
        (("I give up.",), {}, StopReason.DONE, 1),
        ((ADD, SUBMIT), {}, StopReason.ENVIRONMENT, 2),
        ((ADD,), {"max_turns": 2}, StopReason.MAX_TURNS, 2),
        ((ADD,), {"max_tokens": 2 * TOLD + 5}, StopReason.MAX_TOKENS, 3),
        (("word " * 100,), {"turn_tokens": 10}, StopReason.MAX_TOKENS, 1),
    ],
)
async def test_an_episode_says_why_it_ended(
    lines: tuple[str, ...], changes: dict[str, Any], stop: StopReason, turns: int
) -> None:
    played = await run_episode(lease(), setting(says(*lines), limits=replace(LIMITS, **changes)))
    assert (played.stop_reason, len(played.turns)) == (stop, turns)
    assert played.status is (Status.TRUNCATED if stop.truncated else Status.COMPLETED)
    assert played.reward == 0.0, "a truncated episode is judged like any other"
    assert played.num_sampled <= (changes.get("max_tokens") or LIMITS.max_tokens)


async def test_a_prompt_that_does_not_fit_the_model_truncates() -> None:
    opening = len(TEMPLATE.opening(lease().task.messages, SessionTable(counter()).specs))
    played = await run_episode(lease(), setting(says(ADD), context=opening))
    assert (played.stop_reason, played.turns) == (StopReason.CONTEXT, ())
    later = await run_episode(lease(), setting(says(ADD), context=opening + TOLD + 5))
    assert later.stop_reason is StopReason.CONTEXT
    assert len(later.turns) == 1


async def test_a_completion_cut_by_the_end_of_the_context_says_so() -> None:
    opening = len(TEMPLATE.opening(lease().task.messages, SessionTable(counter()).specs))
    played = await run_episode(lease(), setting(says("word " * 100), context=opening + 10))
    assert (played.stop_reason, played.num_sampled) == (StopReason.CONTEXT, 10)


async def test_an_engine_that_alone_knows_its_context_truncates() -> None:
    policy = FaultyPolicy(says(ADD), raising(ContextExceeded("4097 of 4096")), turn=1)
    played = await run_episode(lease(), setting(policy))
    assert (played.stop_reason, played.failure, len(played.turns)) == (StopReason.CONTEXT, None, 1)


async def test_the_episodes_own_deadline_truncates_and_the_models_does_not() -> None:
    policy = FaultyPolicy(says(ADD), hang, turn=1)
    short = replace(LIMITS, episode_seconds=0.3, verify_seconds=0.1, close_seconds=0.1)
    late, slow = await asyncio.gather(
        run_episode(lease(), setting(policy, limits=short)),
        run_episode(lease(), setting(policy, limits=replace(LIMITS, turn_seconds=0.05))),
    )
    assert (late.stop_reason, late.reward, len(late.turns)) == (StopReason.TIMEOUT, 0.0, 1)
    assert slow.failure is not None
    assert slow.failure.kind is FailureKind.MODEL


@pytest.mark.parametrize("fault", [raising(ResourceDown("no replica")), raising(OSError("reset"))])
async def test_invariant_2_a_model_that_breaks_late_in_the_episode_has_failed(fault: Fault) -> None:
    async def break_late() -> None:
        time.sleep(0.15)  # noqa: ASYNC251 - so that the error comes after the episode's time, yet before its alarm
        await fault()

    seconds = {"episode_seconds": 2.1, "verify_seconds": 1.0, "close_seconds": 1.0}
    played = await run_episode(lease(), setting(FaultyPolicy(says(ADD), break_late), limits=replace(LIMITS, **seconds)))
    assert (played.status, played.reward) == (Status.FAILED, None)


async def abort(prompt: Prompt) -> Completion:
    return completion([5], FinishReason.ABORT, replica="replica-3")


class Aborting:
    async def complete(self, prompt: Prompt) -> Completion:
        return await abort(prompt)


@pytest.mark.parametrize("fault", [raising(OSError("refused")), raising(ValueError("odd")), hang])
async def test_invariant_2_a_model_that_breaks_fails_the_episode_without_a_reward(fault: Fault) -> None:
    played = await run_episode(lease(), setting(FaultyPolicy(says(*GOLD), fault, turn=1), limits=HASTE))
    assert (played.status, played.stop_reason, played.reward) == (Status.FAILED, StopReason.FAILED, None)
    assert played.failure is not None
    assert (played.failure.kind, played.failure.where) == (FailureKind.MODEL, "scripted")
    assert played.failure.message
    assert len(played.turns) == 1, "what was sampled before stays"


async def test_invariant_2_a_completion_the_engine_aborted_is_no_turn() -> None:
    played = await run_episode(lease(), setting(Aborting()))
    assert (played.failure is not None and played.failure.where, played.reward, played.turns) == ("replica-3", None, ())


class Babbling:
    async def complete(self, prompt: Prompt) -> Completion:
        return completion([2**31 - 1])


async def test_invariant_2_a_completion_no_engine_can_have_sampled_is_no_turn() -> None:
    played = await run_episode(lease(), setting(Babbling(), vocabulary=377))
    assert played.failure is not None
    assert (played.failure.kind, played.reward, played.turns) == (FailureKind.MODEL, None, ())


@pytest.mark.parametrize("verb", ["seed", "call", "verify"])
@pytest.mark.parametrize("fault", [raising(ResourceDown("gone")), raising(AssertionError("foreign"))])
async def test_invariant_2_a_resource_that_breaks_fails_the_episode_without_a_reward(verb: str, fault: Fault) -> None:
    sessions = FaultySessions({verb: fault})
    played = await run_episode(lease(), setting(says(*GOLD), sessions, limits=HASTE))
    assert (played.status, played.reward, played.score) == (Status.FAILED, None, None)
    assert played.failure is not None
    kinds = {"seed": FailureKind.SEED, "call": FailureKind.TOOL, "verify": FailureKind.VERIFY}
    assert played.failure.kind is kinds[verb]
    assert (sessions.table.opened, len(sessions.table)) == (int(verb != "seed"), 0)


@dataclass
class Judged(Resource):
    """Its verifier gives whatever it is told to."""

    name = "judged"
    score: Any = 0.0

    async def seed_session(self, task: Task, seed: int) -> None:
        return None

    async def verify(self, session: None, transcript: Transcript) -> Score | float:
        return self.score


@pytest.mark.parametrize(
    "score",
    [
        float("nan"),
        float("inf"),
        None,
        "1",
        Score(None),  # pyright: ignore[reportArgumentType]
        Score("good"),  # pyright: ignore[reportArgumentType]
        Score(1.0, {"a": None}),  # pyright: ignore[reportArgumentType]
        Score(1.0, None),  # pyright: ignore[reportArgumentType]
    ],
)
async def test_invariant_2_a_verifier_that_gives_no_number_has_failed(score: Any) -> None:
    played = await run_episode(lease(), setting(says("done"), Judged(score)))
    if score == "1":
        assert played.reward == 1.0, "a number written as text is still a number"
        return
    assert (played.status, played.reward) == (Status.FAILED, None)
    assert played.failure is not None
    assert played.failure.kind is FailureKind.VERIFY


@pytest.mark.parametrize("score", [True, 1, Score(1, {"a": True}, {"b": 2})])
async def test_scores_are_plain_numbers(score: Any) -> None:
    played = await run_episode(lease(), setting(says("done"), Judged(score)))
    assert played.score is not None
    numbers = [played.score.reward, *played.score.components.values(), *played.score.metrics.values()]
    assert {type(number) for number in numbers} == {float}


class Tools(Resource):
    """A tool for everything a tool can do."""

    name = "tools"

    async def seed_session(self, task: Task, seed: int) -> None:
        return None

    @tool
    async def fine(self, session: None, what: str) -> str:
        """Says it."""
        return what

    @tool
    async def refuses(self, session: None) -> str:
        """Tells the policy off."""
        raise ToolError("not like this")

    @tool
    async def buggy(self, session: None) -> str:
        """Raises."""
        raise KeyError("x")

    @tool
    async def odd(self, session: None) -> ToolResult:
        """Returns what is no text."""
        return ToolResult(5)  # pyright: ignore[reportArgumentType]

    @tool
    async def endless(self, session: None) -> ToolResult:
        """Gives a reward that is no number."""
        return ToolResult("", reward=float("inf"))

    @tool
    async def broken(self, session: None) -> str:
        """Cannot work."""
        raise ResourceDown("out of order")

    async def verify(self, session: None, transcript: Transcript) -> float:
        return 1.0


def calling(*names: str) -> str:
    given = {"fine": '{"what": "said"}'}
    bodies = [f'{{"name": "{name}", "arguments": {given.get(name, "{}")}}}' if name else "{" for name in names]
    return "".join(f"<tool_call>{body}</tool_call>" for body in bodies)


async def test_invariant_4_every_call_has_one_result_in_order_whatever_became_of_it() -> None:
    names = ["fine", "nothing", "", "refuses", "buggy", "fine"]
    played = await run_episode(lease(), setting(says(calling(*names), "done"), Tools()))
    uses = played.turns[0].tool_uses
    assert [use.call.name for use in uses] == names
    assert [use.result.skipped for use in uses] == [False, True, True, False, False, False]
    assert [use.result.error is None for use in uses] == [True, False, False, False, False, True]
    told = [message for message in played.messages if message["role"] == "tool"]
    assert [message.get("tool_call_id") for message in told] == [use.call.id for use in uses]
    assert [message["content"] for message in told] == [use.result.content for use in uses]
    assert all(message["content"] for message in told)


async def test_invariant_4_a_call_that_breaks_has_a_result_in_the_row_too() -> None:
    played = await run_episode(lease(), setting(says(calling("fine", "broken", "fine")), Tools()))
    assert (played.status, played.reward, len(played.turns)) == (Status.FAILED, None, 1)
    results = [use.result for use in played.turns[0].tool_uses]
    assert [result.content for result in results] == ["said", "", "said"]
    assert "out of order" in str(results[1].error)
    assert played.failure is not None
    assert (played.failure.kind, played.failure.where) == (FailureKind.TOOL, "broken")
    assert sum(message["role"] == "tool" for message in played.messages) == 3


@pytest.mark.parametrize("name", ["odd", "endless"])
async def test_a_tool_that_returns_what_no_row_can_hold_is_out_of_order(name: str) -> None:
    played = await run_episode(lease(), setting(says(calling(name)), Tools()))
    assert played.failure is not None
    assert (played.failure.kind, played.failure.where) == (FailureKind.TOOL, name)


async def test_invariant_4_calls_of_a_completion_that_was_cut_are_skipped() -> None:
    line = calling("fine", "fine")
    room = len(TEMPLATE.encode(line)) - 2
    limits = replace(LIMITS, turn_tokens=room)
    played = await run_episode(lease(), setting(says(line), Tools(), limits=limits))
    uses = played.turns[0].tool_uses
    assert (played.stop_reason, [use.call.name for use in uses]) == (StopReason.MAX_TOKENS, ["fine", ""])
    assert all(use.result.skipped and use.result.error for use in uses)


async def test_an_agent_gets_only_the_tools_it_is_given() -> None:
    agent = Agent(tools=("fine",), instructions="Be brief.")
    seen = list[Prompt]()

    def script(prompt: Prompt) -> list[str]:
        seen.append(prompt)
        return [calling("fine", "refuses"), "done"]

    played = await run_episode(lease(), setting(ScriptedPolicy(TEMPLATE, script), Tools(), agent=agent))
    assert [spec.name for spec in seen[0].tools] == ["fine"]
    assert [use.result.skipped for use in played.turns[0].tool_uses] == [False, True]
    assert played.messages[0] == {"role": "system", "content": "Be brief."}


async def test_a_model_call_knows_its_bounds() -> None:
    seen = list[Prompt]()

    def script(prompt: Prompt) -> list[str]:
        seen.append(prompt)
        return [ADD]

    limits = replace(LIMITS, max_turns=3, turn_seconds=17.0, turn_tokens=TOLD + 3, max_tokens=TOLD + 10)
    await run_episode(lease(attempt=2), setting(ScriptedPolicy(TEMPLATE, script), limits=limits))
    assert [prompt.turn for prompt in seen] == [0, 1]
    assert len({prompt.request_id for prompt in seen}) == 2
    assert {prompt.session_id for prompt in seen} == {"run-0-0"}
    assert [prompt.max_tokens for prompt in seen] == [TOLD + 3, 10]
    assert all(0 < prompt.seconds <= 17.0 for prompt in seen)


@dataclass
class Keeping:
    """Keeps a place for the calls of a session."""

    inner: Policy
    asked: list[Prompt] = field(default_factory=list[Prompt])
    ended: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """Sessions, and how many calls had been made by then."""

    async def complete(self, prompt: Prompt) -> Completion:
        self.asked.append(prompt)
        return await self.inner.complete(prompt)

    def closed(self, session_id: str) -> None:
        self.ended.append((session_id, len(self.asked)))


@pytest.mark.parametrize("wrap", [lambda policy: policy, lambda policy: RetryingPolicy(policy, "m")])
async def test_a_model_call_tells_its_group_and_late_turns_go_first(wrap: Callable[[Any], Any]) -> None:
    policy = Keeping(says(*GOLD))
    played = await run_episode(lease(), setting(wrap(policy)))
    assert len(played.turns) > 2
    assert {prompt.group for prompt in policy.asked} == {"run-0"}
    assert [prompt.priority for prompt in policy.asked] == [-turn for turn in range(len(played.turns))]
    assert policy.ended == [("run-0-0", len(played.turns))], "its place is free behind the last call"
    await run_episode(lease(longer=4.0), setting(slow := Keeping(says(*GOLD))))
    assert [prompt.priority for prompt in slow.asked] == [-turn - 2 for turn in range(len(played.turns))]


async def test_an_episode_that_breaks_leaves_its_place() -> None:
    policy = Keeping(FaultyPolicy(says(*GOLD), raising(ResourceDown("gone"))))
    assert (await run_episode(lease(), setting(policy))).failure is not None
    assert policy.ended == [("run-0-0", 1)]


class Walk(StepResource):
    """Say `on` twice."""

    name = "walk"

    async def reset(self, task: Task, seed: int) -> tuple[list[str], str]:
        return [], "You stand at the start."

    async def act(self, session: list[str], action: str) -> Step:
        if action != "on":
            raise ToolError("say on")
        session.append(action)
        return Step(f"step {len(session)}", 0.5, terminated=len(session) == 2)


async def test_plain_text_is_the_action_where_a_resource_takes_it() -> None:
    played = await run_episode(lease(), setting(says("on", "back", "on"), Walk()))
    assert (played.stop_reason, played.reward) == (StopReason.ENVIRONMENT, 1.0)
    assert [turn.reward for turn in played.turns] == [0.5, None, 0.5]
    said = [(message["role"], message["content"]) for message in played.messages[1:]]
    assert said[0] == ("user", "You stand at the start.")
    assert said[2:5] == [("user", "step 1"), ("assistant", "back"), ("user", "error: say on")]


async def test_plain_text_ends_the_episode_where_the_agent_has_not_that_tool() -> None:
    played = await run_episode(lease(), setting(says("on"), Walk(), agent=Agent(tools=())))
    assert (played.stop_reason, played.num_tool_calls) == (StopReason.DONE, 0)


async def test_an_example_answer_in_the_task_is_not_the_policys() -> None:
    class Echo(Judged):
        async def verify(self, session: None, transcript: Transcript) -> float:
            return float(transcript.answer == "42")

    example: tuple[Message, ...] = ({"role": "assistant", "content": "42"}, {"role": "user", "content": "And 6 * 7?"})
    task = Task("t", ({"role": "user", "content": "21 * 2?"}, *example))
    silent = await run_episode(lease(task), setting(says("42"), Echo(), context=1))
    spoken = await run_episode(lease(task), setting(says("42"), Echo()))
    assert (silent.stop_reason, silent.reward) == (StopReason.CONTEXT, 0.0)
    assert spoken.reward == 1.0


async def test_invariant_5_no_hang_outlasts_its_deadline() -> None:
    def hanging(verb: str) -> Awaitable[Trajectory]:
        return run_episode(lease(), setting(says(*GOLD), FaultySessions({verb: hang}), limits=HASTE))

    model = run_episode(lease(), setting(FaultyPolicy(says(), hang), limits=HASTE))
    *broken, closed = await asyncio.gather(model, hanging("seed"), hanging("call"), hanging("verify"), hanging("close"))
    assert all(played.failure is not None for played in broken)
    assert closed.reward == 1.0, "a session that cannot be closed does not cost the episode"


@pytest.mark.parametrize("fault", [raising(ResourceDown("gone")), raising(UserError("odd")), raising(ValueError("x"))])
async def test_invariant_6_a_close_that_breaks_does_not_cost_the_episode(fault: Fault) -> None:
    played = await run_episode(lease(), setting(says(*GOLD), FaultySessions({"close": fault})))
    assert played.reward == 1.0


@pytest.mark.parametrize("verb", ["call", "verify"])
@pytest.mark.parametrize("error", [UserError("the job is wrong"), ResourceDown("gone"), KeyError("x")])
async def test_invariant_6_a_session_is_closed_whatever_is_raised(verb: str, error: Exception) -> None:
    sessions = FaultySessions({verb: raising(error)})
    try:
        await run_episode(lease(), setting(says(*GOLD), sessions))
    except UserError as raised:
        assert raised is error
    assert (sessions.table.opened, sessions.table.closed, len(sessions.table)) == (1, 1, 0)


async def test_invariant_6_a_session_is_closed_when_our_own_code_is_wrong() -> None:
    class Forgetful:
        async def complete(self, prompt: Prompt) -> Completion:
            return Completion(FinishReason.STOP)

    sessions = FaultySessions({})
    with pytest.raises(AssertionError, match="token ids"):
        await run_episode(lease(), setting(Forgetful(), sessions))
    assert (sessions.table.opened, sessions.table.closed) == (1, 1)


@dataclass
class Gate:
    """A place where an episode waits to be cancelled."""

    reached: asyncio.Event
    opened: asyncio.Event

    async def __call__(self) -> None:
        self.reached.set()
        await self.opened.wait()


def gate() -> Gate:
    return Gate(asyncio.Event(), asyncio.Event())


@pytest.mark.parametrize("verb", ["seed", "complete", "call", "verify", "close"])
async def test_invariant_6_a_session_is_closed_wherever_its_episode_is_cancelled(verb: str) -> None:
    place = gate()
    sessions = FaultySessions({verb: place})
    policy = FaultyPolicy(says(*GOLD), place) if verb == "complete" else says(*GOLD)
    episode = asyncio.create_task(run_episode(lease(), setting(policy, sessions)))
    await place.reached.wait()
    episode.cancel()
    place.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await episode
    await settled(lambda: len(sessions.table) == 0)
    assert sessions.table.opened == sessions.table.closed == int(verb != "seed")


@pytest.mark.parametrize(("verb", "turns"), [("seed", 0), ("complete", 0), ("call", 1), ("verify", 3)])
async def test_invariant_11_an_episode_that_is_dropped_is_kept_as_far_as_it_came(verb: str, turns: int) -> None:
    place, drops = gate(), dict[str, str]()
    sessions = FaultySessions({verb: place})
    policy = FaultyPolicy(says(*GOLD), place) if verb == "complete" else says(*GOLD)
    episode = asyncio.create_task(run_episode(lease(), setting(policy, sessions), drops=drops))
    await place.reached.wait()
    drops[lease().episode_id] = "straggler"
    episode.cancel()
    place.opened.set()
    played = await episode
    assert (played.status, played.stop_reason, played.drop_reason) == (Status.DROPPED, StopReason.DROPPED, "straggler")
    assert (len(played.turns), played.reward, played.failure) == (turns, None, None)
    calls = [part.call for turn in played.turns for part in turn.segments if part.call is not None]
    assert [use.call for turn in played.turns for use in turn.tool_uses] == calls, "invariant 4"
    to_table([played])
    await settled(lambda: len(sessions.table) == 0)
    assert sessions.table.opened == sessions.table.closed == int(verb != "seed")


async def test_an_episode_that_has_its_score_is_not_dropped_while_its_session_closes() -> None:
    place = gate()
    episode = asyncio.create_task(
        run_episode(
            lease(), setting(says(*GOLD), FaultySessions({"close": place})), drops={lease().episode_id: "straggler"}
        )
    )
    await place.reached.wait()
    episode.cancel()
    place.opened.set()
    played = await episode
    assert (played.status, played.reward) == (Status.COMPLETED, 1.0)


async def test_invariant_6_a_session_is_closed_when_its_episode_is_cancelled_again_while_closing() -> None:
    place = gate()
    sessions = FaultySessions({"verify": hang, "close": place})
    episode = asyncio.create_task(run_episode(lease(), setting(says(*GOLD), sessions)))
    await settled(lambda: len(sessions.table) == 1)
    episode.cancel()
    await place.reached.wait()
    episode.cancel()
    with pytest.raises(asyncio.CancelledError):
        await episode
    assert len(sessions.table) == 1
    place.opened.set()
    await settled(lambda: len(sessions.table) == 0)


async def settled(condition: Callable[[], bool]) -> None:
    """Lets everything else run until the condition holds. Nothing is concluded from how long it took."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for knows nothing of tests
            await asyncio.sleep(0.001)


async def test_a_call_that_was_cancelled_over_there_fails_the_episode_and_does_not_lose_it() -> None:
    fault = raising(asyncio.CancelledError())
    for sessions in (
        FaultySessions({"call": fault}),
        FaultySessions({"verify": fault}),
        FaultySessions({"seed": fault}),
    ):
        played = await run_episode(lease(), setting(says(*GOLD), sessions))
        assert played.failure is not None
        assert "cancelled over there" in played.failure.message
        assert len(sessions.table) == 0


async def test_a_host_that_is_not_there_yet_is_asked_again() -> None:
    away = [Unavailable("restarting"), Unavailable("restarting")]

    async def sometimes() -> None:
        if away:
            raise away.pop()

    sessions = FaultySessions({"seed": sometimes})
    played = await run_episode(lease(), setting(says(*GOLD), sessions))
    assert (played.reward, sessions.asked) == (1.0, 3)


async def test_a_host_that_stays_away_says_why() -> None:
    sessions = FaultySessions({"seed": raising(Unavailable("host 3 is down"))})
    played = await run_episode(lease(), setting(says(*GOLD), sessions, limits=replace(LIMITS, seed_seconds=0.25)))
    assert played.failure is not None
    assert (played.failure.kind, sessions.asked > 1) == (FailureKind.SEED, True)
    assert "host 3 is down" in played.failure.message


async def test_a_resource_that_refuses_a_task_is_not_asked_again() -> None:
    sessions = FaultySessions({"seed": raising(ResourceDown("bad task"))})
    await run_episode(lease(), setting(says(*GOLD), sessions))
    assert sessions.asked == 1


def refusing(role: str) -> Callable[[], TokenLedger]:
    source = (
        TEMPLATE.source + "{% if messages[-1].role == '" + role + "' %}{{ raise_exception('not that') }}{% endif %}"
    )
    return lambda: TokenLedger(ChatTemplate(TOKENIZER, source, {}, TEMPLATE.eos_ids), hermes)


async def test_a_conversation_the_template_refuses_fails_its_episode_only() -> None:
    played = await run_episode(lease(), setting(says(*GOLD), new_ledger=refusing("user")))
    assert played.failure is not None
    assert (played.failure.kind, played.failure.where) == (FailureKind.SEED, "chat template")


async def test_a_template_that_cannot_go_on_is_the_jobs_fault() -> None:
    sessions = FaultySessions({})
    with pytest.raises(UserError, match="not that"):
        await run_episode(lease(), setting(says(*GOLD), sessions, new_ledger=refusing("tool")))
    assert (sessions.table.opened, sessions.table.closed) == (1, 1)


async def test_invariant_9_two_runs_of_an_episode_agree_but_for_times() -> None:
    def timeless(played: Trajectory) -> Trajectory:
        turns = [
            replace(
                turn,
                model_seconds=0.0,
                tool_uses=tuple(replace(use, result=replace(use.result, seconds=0.0)) for use in turn.tool_uses),
            )
            for turn in played.turns
        ]
        bare = replace(played, turns=tuple(turns), started_at=0.0, finished_at=0.0)
        return replace(bare, seconds=type(played.seconds)())

    runs = [await run_episode(lease(), setting(says(calling("add"), *GOLD))) for _ in range(2)]
    assert timeless(runs[0]) == timeless(runs[1])


async def test_times_are_told_by_cause() -> None:
    limits = Limits(max_turns=3)
    agent = Agent("solver", sampling=Sampling(temperature=0.5))
    played = await run_episode(lease(), setting(ScriptedPolicy(TEMPLATE, GOLD, 0.01), limits=limits, agent=agent))
    seconds = played.seconds
    assert seconds.model > 0
    assert seconds.total >= seconds.model + seconds.tool + seconds.verify
    assert seconds.idle >= 0
    assert played.finished_at >= played.started_at > 0
    assert {(turn.agent, turn.sampling.temperature) for turn in played.turns} == {("solver", 0.5)}
