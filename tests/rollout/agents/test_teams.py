"""Several agents: order of results, folds, rounds, failures of one among many, agents as tools."""

import asyncio
from collections.abc import Callable

import pytest

from rollout.agents.handoffs import Handoff
from rollout.agents.teams import (
    AgentTool,
    Result,
    Run,
    StopWhen,
    fan_out,
    folded,
    loop_pipeline,
    run_pipeline,
    spawn_subagents,
)
from rollout.errors import BoundaryError, ToolError, UserError
from rollout.trajectory import Failure, FailureKind, ToolCall

SECONDS = 5.0


class Agents:
    """Runs agents that are plain functions of (agent, input), and keeps what it was asked."""

    def __init__(self, answer: Callable[[str, str], Result]) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answer = answer
        self.running = self.most = 0

    async def __call__(self, agent: str, given: str) -> Result:
        self.asked.append((agent, given))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(9 - len(given)):  # the shorter the input, the later the end
                await asyncio.sleep(0)
            return self.answer(agent, given)
        finally:
            self.running -= 1


def echo(agent: str, given: str) -> Result:
    if given == "bad":
        raise ValueError("a child broke")
    return Result(f"{agent}({given})")


def ends_behind(last: str | None) -> StopWhen:
    async def stop(agent: str, result: Result) -> bool:
        return agent == last

    return stop


async def never(agent: str, given: str) -> Result:
    await asyncio.Event().wait()
    raise AssertionError


def hands_over(times: int, message: str = "m") -> Run:
    left = iter(range(times))
    return Agents(
        lambda agent, given: (
            Result("", Handoff(agent, "next", message)) if next(left, None) is not None else Result(given)
        )
    )


@pytest.mark.parametrize(("handoffs", "value", "ended"), [(0, "in", True), (10, "m", True), (11, "m", False)])
async def test_vector_13_a_pipeline_follows_ten_handoffs(handoffs: int, value: str, ended: bool) -> None:
    run = hands_over(handoffs)
    result = await run_pipeline(run, "first", "in", SECONDS)
    assert isinstance(run, Agents)
    assert result.value == value
    assert (result.handoff is None) == ended
    assert len(run.asked) == min(handoffs, 10) + 1
    assert [agent for agent, _ in run.asked] == ["first", *["next"] * min(handoffs, 10)]


async def test_vector_13_a_pipeline_keeps_the_old_input_where_the_message_is_empty() -> None:
    run = hands_over(2, " ")
    assert (await run_pipeline(run, "first", "in", SECONDS)).value == "in"


async def test_vector_13_a_loop_ends_after_five_rounds_with_text() -> None:
    run = Agents(lambda agent, given: Result({"n": len(given)}))
    result = await loop_pipeline(run, ["a", "b"], "in", ends_behind(None), SECONDS)
    assert result.value == '{"n": 8}'
    assert [agent for agent, _ in run.asked] == ["a", "b"] * 5
    assert run.asked[1] == ("b", '{"n": 2}')


async def test_vector_13_a_loop_asks_after_every_agent_and_gives_the_raw_result() -> None:
    run = Agents(lambda agent, given: Result({"by": agent}))
    result = await loop_pipeline(run, ["a", "b", "c"], "in", ends_behind("b"), SECONDS)
    assert result.value == {"by": "b"}
    assert len(run.asked) == 2
    for agents, rounds in (([], 5), (["a"], 0)):
        with pytest.raises(ValueError, match="at least one agent"):
            await loop_pipeline(run, agents, "in", ends_behind("a"), SECONDS, rounds)


async def test_vector_13_results_of_a_fan_out_are_in_order_and_bounded() -> None:
    run = Agents(echo)
    inputs = ["1", "22", "333", "4444", "55555"]
    results = await fan_out(run, "a", inputs, SECONDS, max_parallel=2)
    assert results == tuple(Result(f"a({given})") for given in inputs)
    assert run.most == 2


async def test_vector_13_a_fold_is_strictly_from_the_left() -> None:
    run = Agents(lambda agent, given: Result(given))
    results = await fan_out(run, "a", ["1", "2", "3"], SECONDS)
    assert folded(results, lambda left, right: f"({left}-{right})") == "((1-2)-3)"
    assert folded(results[:1], lambda left, right: "never") == "1"


async def test_vector_13_nothing_fans_out_to_nothing_and_folds_to_an_error() -> None:
    assert await fan_out(Agents(echo), "a", [], SECONDS) == ()
    with pytest.raises(ValueError, match="no result to fold"):
        folded([], max)


async def test_one_failure_costs_its_own_result() -> None:
    results = await spawn_subagents(Agents(echo), [("a", "x"), ("b", "bad"), ("c", "y")], SECONDS)
    assert results == (
        Result("a(x)"),
        Failure(FailureKind.TOOL, "agent b", "ValueError: a child broke"),
        Result("c(y)"),
    )
    assert folded(results, lambda left, right: left + right) == "a(x)c(y)"


async def test_without_isolation_the_first_failure_ends_the_others() -> None:
    ended: list[str] = []

    async def run(agent: str, given: str) -> Result:
        if given == "bad":
            raise ValueError("a child broke")
        try:
            return await never(agent, given)
        finally:
            ended.append(agent)

    with pytest.raises(BoundaryError, match="a child broke"):
        await spawn_subagents(run, [("a", "x"), ("b", "bad")], SECONDS, return_exceptions=False)
    assert ended == ["a"]


async def test_wrong_input_of_the_job_is_nobodys_result() -> None:
    def refuses(agent: str, given: str) -> Result:
        raise UserError("agents.b: no such agent")

    with pytest.raises(UserError, match="no such agent"):
        await fan_out(Agents(refuses), "b", ["x", "y"], SECONDS)


async def test_every_child_has_a_deadline() -> None:
    (failure,) = await fan_out(never, "a", ["x"], 0.01)
    assert isinstance(failure, Failure)
    assert "no answer within" in failure.message
    with pytest.raises(BoundaryError, match="no answer within"):
        await run_pipeline(never, "a", "x", 0.01)


async def test_an_agent_is_a_tool() -> None:
    run = Agents(lambda agent, given: Result({"seen": given}))
    tool = AgentTool(run, "researcher", "research", "Looks things up.")
    (spec,) = tool.specs
    assert (spec.name, spec.parameters["required"]) == ("research", ["task"])
    result = await tool.call(ToolCall("c", "research", '{"task": "owls"}'), SECONDS)
    assert (result.content, result.error) == ('{"seen": "owls"}', None)
    assert run.asked == [("researcher", "owls")]
    wrong = await tool.call(ToolCall("c", "research", '{"tusk": 1}'), SECONDS)
    assert wrong.error == "expected a JSON object with the text `task`"
    await tool.close()


async def test_what_breaks_in_an_agent_that_is_a_tool() -> None:
    call = ToolCall("c", "research", '{"task": "bad"}')
    with pytest.raises(BoundaryError, match="a child broke"):
        await AgentTool(Agents(echo), "a", "research", "").call(call, SECONDS)
    told = await AgentTool(Agents(echo), "a", "research", "", feed_back=True).call(call, SECONDS)
    assert told.error == "tool at agent a: ValueError: a child broke"

    def too_deep(agent: str, given: str) -> Result:
        raise ToolError("no agent can be called from here")

    told = await AgentTool(Agents(too_deep), "a", "research", "").call(call, SECONDS)
    assert told.content == "error: no agent can be called from here"


async def test_a_tool_that_is_cancelled_cancels_its_child() -> None:
    ended = asyncio.Event()

    async def run(agent: str, given: str) -> Result:
        try:
            return await never(agent, given)
        finally:
            ended.set()

    task = asyncio.create_task(AgentTool(run, "a", "t", "").call(ToolCall("c", "t", '{"task": "x"}'), SECONDS))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
