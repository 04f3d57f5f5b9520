"""Agents that begin runs of others, in whole episodes: children are rows of their own, in their parent's session."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import ADD, SUBMIT, TEMPLATE, FaultyPolicy, counter, hang, lease, raising, setting

from rollout.agents.chatting import Chatting
from rollout.agents.loading import Around, load_agent
from rollout.agents.parts import Budget
from rollout.agents.pricing import Price, Prices
from rollout.agents.section import AgentConfig
from rollout.episode import run_episode
from rollout.errors import UserError
from rollout.family import Child, Family
from rollout.invariants import check_rows
from rollout.protocols import Policy
from rollout.row_rules import Known
from rollout.rows import to_table
from rollout.samples import to_samples
from rollout.scripted import ScriptedPolicy
from rollout.sessions import LocalSessions, SessionTable
from rollout.streaming import CallResult, StreamEvent
from rollout.trajectory import (
    Agent,
    Completion,
    FailureKind,
    Lease,
    Limits,
    Prompt,
    Sampling,
    Status,
    StopReason,
    Trajectory,
    Turn,
)

FUNCTIONS = """
def enough(agent, answer):
    return answer == "enough"

def broken(agent, answer):
    raise RuntimeError("no end")
"""


def call(name: str, /, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


def spawn(*jobs: tuple[str, str]) -> str:
    return call("spawn_subagents", jobs=[{"agent": agent, "input": given} for agent, given in jobs])


def told(prompt: Prompt) -> str:
    """Whose run a model call is of: agents here have their names for instructions."""
    return prompt.messages[0]["content"].partition("\n")[0]


def by_agent(**lines: tuple[str, ...]) -> ScriptedPolicy:
    return ScriptedPolicy(TEMPLATE, lambda prompt: lines[told(prompt)])


def member(name: str, /, **section: Any) -> dict[str, Any]:
    return {"instructions": name, "use": "tool", **section}


def boss(*names: str, **section: Any) -> dict[str, Any]:
    """An agent that has those of these names as tools."""
    return {"name": "boss", "instructions": "boss", "sub_agents": {name: member(name) for name in names}, **section}


async def play(policy: Policy, section: dict[str, Any], budget: Budget | None = None, **changes: Any) -> Trajectory:
    """One episode; its one session was opened and closed once, and all its rows keep the rules."""
    loaded = await load_agent(AgentConfig.model_validate(section), Around(Sampling(), None, budget))
    table = SessionTable(counter())
    job = setting(policy, LocalSessions(table), conduct=loaded.conduct, agent=loaded.parts.agent)
    played = await run_episode(lease(), replace(job, **changes))
    await loaded.close()
    assert (table.opened, table.closed) == (1, 1)
    assert found(played) == []
    return played


def found(*played: Trajectory) -> list[tuple[str, str]]:
    (batch,) = to_table(played).combine_chunks().to_batches()
    findings, _ = check_rows(batch, Known())
    return [(finding.rule, finding.episode_id) for finding in findings]


def names(played: Trajectory) -> list[str]:
    return [one.lease.episode_id for one in played.family]


async def test_an_agent_that_is_a_tool_plays_an_episode_of_its_own_in_the_same_session() -> None:
    policy = by_agent(boss=(call("adder", task="Add two."), SUBMIT), adder=(ADD, ADD, "It is two."))
    played = await play(policy, boss("adder"))
    (child,) = played.children
    assert (played.reward, played.stop_reason, len(played.turns)) == (1.0, StopReason.ENVIRONMENT, 2)
    assert played.turns[0].tool_uses[0].result.content == "It is two."
    assert names(played) == ["run-0-0", "run-0-0.1"]
    assert (child.lease.parent_episode_id, child.lease.group_id) == ("run-0-0", "run-0.adder")
    assert (child.agent, child.status, child.stop_reason) == ("adder", Status.COMPLETED, StopReason.DONE)
    assert [message["content"] for message in child.messages[:2]] == ["adder", "Add two."]
    assert {turn.agent for turn in child.turns} == {"adder"}
    assert [turn.segment for turn in child.turns] == [0, 0, 0]
    assert (child.reward, child.score and child.score.components) == (1.0, {"shared": 1.0})
    (event,) = played.events
    assert (event.turn, event.kind, event.name) == (0, "child", "adder")
    assert event.detail == {"episode_id": "run-0-0.1", "status": "completed", "stop": "done"}


async def test_a_row_counts_its_own_tokens_and_a_child_is_a_sample_of_its_own_agent() -> None:
    policy = by_agent(boss=(call("adder", task="Add two."), SUBMIT), adder=(ADD, ADD, "It is two."))
    section = boss("adder")
    played = await play(policy, section)
    rows = to_table([played])
    parent, child = rows.to_pylist()
    assert (parent["parent_episode_id"], child["parent_episode_id"]) == (None, "run-0-0")
    assert (parent["num_turns"], child["num_turns"]) == (2, 3)
    assert parent["completion_tokens"] == sum(turn.completion.num_sampled for turn in played.turns)
    assert child["sample_index"] == parent["sample_index"]
    samples = to_samples(rows).to_pylist()
    assert [(one["group_id"], one["agent"], one["weight"]) for one in samples] == [
        ("run-0", "boss", 1.0),
        ("run-0.adder", "adder", 1.0),
    ]
    section["sub_agents"]["adder"]["trainable"] = False
    frozen = await play(policy, section)
    assert [one["agent"] for one in to_samples(to_table([frozen])).to_pylist()] == ["boss"]


async def test_children_run_side_by_side_and_answer_in_order() -> None:
    running, most = 0, 0

    class Counted:
        async def complete(self, prompt: Prompt) -> Completion:
            nonlocal running, most
            running += "." in prompt.session_id
            most = max(most, running)
            for _ in range(9):
                await asyncio.sleep(0)
            running -= "." in prompt.session_id
            return await inner.complete(prompt)

    def lines(prompt: Prompt) -> tuple[str, ...]:
        return (asked, "Done.") if told(prompt) == "boss" else (f"{told(prompt)}: {prompt.messages[1]['content']}",)

    inner = ScriptedPolicy(TEMPLATE, lines)
    asked = spawn(("a", "one"), ("b", "two"), ("a", "three"), ("nobody", "four"))
    played = await play(Counted(), boss("a", "b", children={"spawn": True, "max_parallel": 2}))
    results = json.loads(played.turns[0].tool_uses[0].result.content)
    assert [one.get("result") for one in results] == ["a: one", "b: two", "a: three", None]
    assert "there is no agent 'nobody'" in results[3]["error"]
    assert most == 2
    assert names(played)[1:] == ["run-0-0.1", "run-0-0.2", "run-0-0.3"]
    assert [child.lease.group_id for child in played.children] == ["run-0.a", "run-0.b", "run-0.a"]
    assert [event.detail["episode_id"] for event in played.events] == names(played)[1:]


async def test_two_calls_of_a_turn_run_their_agents_at_once() -> None:
    both = call("a", task="one") + "\n" + call("b", task="two")
    played = await play(by_agent(boss=(both, "Done."), a=("A",), b=("B",)), boss("a", "b"))
    assert [use.result.content for use in played.turns[0].tool_uses] == ["A", "B"]
    assert names(played)[1:] == ["run-0-0.1", "run-0-0.2"]


async def test_children_have_children_as_deep_as_they_may() -> None:
    deeper = member("b", sub_agents={"c": member("c", sub_agents={"d": member("d")})})
    section = boss("a") | {"sub_agents": {"b": deeper}}
    lines = {"boss": "b", "b": "c", "c": "d"}
    policy = by_agent(**{one: (call(other, task="Go on."), "Done.") for one, other in lines.items()}, d=("Deep.",))
    played = await play(policy, section)
    assert names(played) == ["run-0-0", "run-0-0.1", "run-0-0.1.1"]
    assert [one.lease.group_id for one in played.family] == ["run-0", "run-0.b", "run-0.b.c"]
    last = list(played.family)[-1]
    assert last.turns[0].tool_uses[0].result.error == "no agent can be called from here: they are 2 deep at most"
    assert [one.reward for one in played.family] == [0.0, 0.0, 0.0]
    deep = await play(policy, section | {"children": {"max_depth": 3}})
    assert names(deep)[-1] == "run-0-0.1.1.1"


async def test_a_run_begins_so_many_others_and_no_more() -> None:
    policy = by_agent(boss=(*[call("a", task="Go.")] * 3, "Done."), a=("A",))
    played = await play(policy, boss("a", children={"max_children": 2}))
    results = [use.result for turn in played.turns for use in turn.tool_uses]
    assert [result.error for result in results] == [
        None,
        None,
        "no further agent can be called: there were 2 already",
    ]
    assert len(played.children) == 2


async def test_tokens_of_children_are_their_parents_too() -> None:
    policy = by_agent(boss=(call("a", task="Go."), "Done."), a=(ADD,))
    whole = await play(policy, boss("a"))
    first = whole.turns[0].completion.num_sampled
    one = whole.children[0].turns[0].completion.num_sampled
    most = first + 2 * one
    limits = Limits(max_turns=8, max_tokens=most, turn_tokens=400)
    played = await play(policy, boss("a"), limits=limits)
    (child,) = played.children
    assert (child.num_sampled, child.stop_reason) == (2 * one, StopReason.MAX_TOKENS)
    assert (played.stop_reason, played.num_sampled) == (StopReason.MAX_TOKENS, first)
    assert played.turns[0].tool_uses[0].result.error == "a gave no answer: max_tokens"


async def test_children_spend_their_parents_budget() -> None:
    budget = Budget(Prices({"scripted": Price(1.0, 1.0)}), "scripted", episode_usd=0.0008)
    policy = by_agent(boss=(call("a", task="Go."), "Done."), a=(ADD,))
    played = await play(policy, boss("a"), budget, priced=lambda turns: budget.used(turns).usd)
    (child,) = played.children
    assert (played.stop_reason, child.stop_reason) == (StopReason.COST, StopReason.COST)
    assert played.cost is not None
    assert child.cost is not None
    assert played.cost < 0.0008 <= played.cost + child.cost


async def test_a_child_that_breaks_fails_its_parent_or_is_told() -> None:
    def policy() -> Policy:
        inner = by_agent(boss=(call("a", task="Go."), "Done."), a=("A",))
        return OfChildren(FaultyPolicy(inner, raising(ConnectionError("gone"))), inner)

    failed = await play(policy(), boss("a"))
    assert failed.failure is not None
    assert (failed.failure.kind, failed.reward) == (FailureKind.MODEL, None)
    assert [child.status for child in failed.children] == [Status.FAILED]
    told_so = await play(policy(), boss("a", children={"on_child_error": "feed_back"}))
    assert told_so.stop_reason is StopReason.DONE
    assert "ConnectionError: gone" in (told_so.turns[0].tool_uses[0].result.error or "")
    assert [(child.status, child.reward) for child in told_so.children] == [(Status.FAILED, None)]


class OfChildren:
    """One policy for children, another for those that are none."""

    def __init__(self, theirs: Policy, own: Policy) -> None:
        self.theirs, self.own = theirs, own

    async def complete(self, prompt: Prompt) -> Completion:
        return await (self.theirs if "." in prompt.session_id else self.own).complete(prompt)


async def test_one_that_breaks_among_several_costs_its_own_result() -> None:
    class OneBreaks:
        async def complete(self, prompt: Prompt) -> Completion:
            if told(prompt) == "b":
                raise ConnectionError("gone")
            return await inner.complete(prompt)

    inner = by_agent(boss=(spawn(("a", "one"), ("b", "two"), ("a", "three")), "Done."), a=("A",))
    played = await play(OneBreaks(), boss("a", "b", children={"spawn": True}))
    results = json.loads(played.turns[0].tool_uses[0].result.content)
    assert [one.get("result") for one in results] == ["A", None, "A"]
    assert [child.status.value for child in played.children] == ["completed", "failed", "completed"]
    assert [child.reward for child in played.children] == [0.0, None, 0.0]
    strict = {"spawn": True, "return_exceptions": False}
    assert (await play(OneBreaks(), boss("a", "b", children=strict))).failure is not None


async def test_what_the_environment_ends_and_pays_in_a_child_it_ends_and_pays_in_the_parent() -> None:
    policy = by_agent(boss=(call("a", task="Finish."), "Never said."), a=(ADD, ADD, SUBMIT))
    played = await play(policy, boss("a"))
    (child,) = played.children
    assert (child.stop_reason, played.stop_reason) == (StopReason.ENVIRONMENT, StopReason.ENVIRONMENT)
    assert (len(played.turns), played.reward) == (1, 1.0)


@pytest.mark.parametrize(
    ("sharing", "parent", "child"), [("shared", 1.0, 1.0), ("own", 1.0, 0.0), ("none", 1.0, None), ("split", 0.5, 0.5)]
)
async def test_a_reward_is_shared(sharing: str, parent: float, child: float | None) -> None:
    policy = by_agent(boss=(call("a", task="Finish."),), a=(ADD, ADD, SUBMIT))
    played = await play(policy, boss("a", children={"reward_sharing": sharing}))
    assert (played.reward, played.children[0].reward) == (parent, child)
    if sharing == "split":
        assert played.score is not None
        assert played.score.components["children"] == -0.5


async def test_what_a_child_did_wrong_is_taken_from_what_it_gets() -> None:
    form = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    section = boss("a")
    section["sub_agents"]["a"] |= {"output_schema": form, "parse_penalty": 0.25}
    wrong, right = call("final_answer", sum="two"), call("final_answer", sum=2)
    played = await play(by_agent(boss=(call("a", task="Add."), ADD, ADD, SUBMIT), a=(wrong, right)), section)
    (child,) = played.children
    assert played.turns[0].tool_uses[0].result.content == '{"sum": 2}'
    assert (played.reward, child.reward) == (1.0, 0.75)
    assert child.score is not None
    assert child.score.components == {"shared": 1.0, "penalty": -0.25}


async def test_a_parent_that_is_dropped_takes_its_children_along_as_far_as_they_came() -> None:
    drops: dict[str, str] = {}
    hangs = asyncio.Event()

    async def wait() -> None:
        hangs.set()
        await hang()

    inner = by_agent(boss=(call("a", task="Go."),), a=(ADD,))
    policy = OfChildren(FaultyPolicy(inner, wait, turn=1), inner)
    loaded = await load_agent(AgentConfig.model_validate(boss("a")), Around(Sampling(), None))
    job = setting(policy, conduct=loaded.conduct, agent=loaded.parts.agent)
    playing = asyncio.create_task(run_episode(lease(), job, drops=drops))
    await hangs.wait()
    drops["run-0-0"] = "straggler"
    playing.cancel()
    played = await playing
    (child,) = played.children
    assert [(one.drop_reason, one.reward, len(one.turns)) for one in (played, child)] == [("straggler", None, 1)] * 2
    assert found(played) == []


async def test_a_child_whose_time_is_up_is_dropped_and_on_the_record() -> None:
    section = boss("a", tools=["add", "submit", {"name": "a", "timeout": 0.01}])
    section["children"] = {"on_child_error": "feed_back"}
    inner = by_agent(boss=(call("a", task="Go."), "Done."), a=("A",))
    played = await play(OfChildren(FaultyPolicy(inner, hang), inner), section)
    assert played.stop_reason is StopReason.DONE
    assert "no answer within" in (played.turns[0].tool_uses[0].result.error or "")
    assert [(child.drop_reason, child.reward) for child in played.children] == [("abandoned", None)]


def pipeline(*agents: str, **told: Any) -> dict[str, Any]:
    section = {"agents": agents, **told}
    return {"name": "line", "sub_agents": {name: {"instructions": name} for name in agents}, "pipeline": section}


def echo(prompt: Prompt) -> tuple[str, ...]:
    return (f"{told(prompt)}({prompt.messages[1]['content'][-12:]})",)


async def test_a_pipeline_is_its_agents_one_after_the_other() -> None:
    played = await play(ScriptedPolicy(TEMPLATE, echo), pipeline("a", "b"))
    first, second = played.children
    assert (played.turns, played.stop_reason) == ((), StopReason.DONE)
    assert first.messages[-1]["content"] in second.messages[1]["content"]
    assert played.answer == second.messages[-1]["content"] == second.turns[-1].text
    assert names(played) == ["run-0-0", "run-0-0.1", "run-0-0.2"]
    assert [(event.turn, event.name) for event in played.events] == [(0, "a"), (0, "b")]
    assert [one.reward for one in played.family] == [0.0] * 3


async def test_a_loop_goes_on_until_it_is_to_stop(tmp_path: Path) -> None:
    (file := tmp_path / "own.py").write_text(FUNCTIONS)
    policy = by_agent(a=("more",), b=("enough",))
    rounds = {"rounds": 3}
    ended = await play(policy, pipeline("a", "b", **rounds, stop_when=f"{file}:enough"))
    assert (ended.answer, len(ended.children)) == ("enough", 2)
    assert len((await play(policy, pipeline("a", "b", **rounds))).children) == 6
    broken = await play(policy, pipeline("a", "b", **rounds, stop_when=f"{file}:broken"))
    assert broken.failure is not None
    assert broken.failure.kind is FailureKind.AGENT


async def test_a_stage_that_the_environment_ends_is_the_last() -> None:
    played = await play(by_agent(a=(ADD, ADD, SUBMIT), b=("B",)), pipeline("a", "b"))
    assert (played.stop_reason, played.reward, len(played.children)) == (StopReason.ENVIRONMENT, 1.0, 1)


async def test_a_stage_without_an_answer_ends_the_pipeline_as_it_ended() -> None:
    limits = Limits(max_turns=2, max_tokens=4000, turn_tokens=400)
    played = await play(by_agent(a=(ADD,), b=("B",)), pipeline("a", "b"), limits=limits)
    assert (played.stop_reason, played.status) == (StopReason.MAX_TURNS, Status.TRUNCATED)
    assert len(played.children) == 1


async def test_a_stage_hands_over_to_another_of_the_pipeline_which_is_a_child_as_well() -> None:
    section = pipeline("a", "b")
    section["pipeline"]["agents"] = ["a"]
    section["sub_agents"]["a"] |= {"sub_agents": {"b": {}}, "handoffs": {"follow": False}}
    played = await play(by_agent(a=(call("handoff_to_b", message="You do it."),), b=("B",)), section)
    first, second = played.children
    assert (first.stop_reason, second.messages[1]["content"]) == (StopReason.HANDOFF, "You do it.")
    assert played.answer == "B"


async def test_a_pipeline_is_a_tool() -> None:
    line = {"use": "tool", **{key: value for key, value in pipeline("a", "b").items() if key != "name"}}
    section = boss() | {"sub_agents": {"line": line}}
    played = await play(by_agent(boss=(call("line", task="Go."), "Done."), a=("A",), b=("B",)), section)
    assert played.turns[0].tool_uses[0].result.content == "B"
    assert names(played) == ["run-0-0", "run-0-0.1", "run-0-0.1.1", "run-0-0.1.2"]


@pytest.mark.parametrize(
    ("section", "line"),
    [
        (pipeline("a") | {"pipeline": {"agents": ["aa"]}}, r"agent.pipeline.agents: there is no sub-agent 'aa'; did"),
        (pipeline("a") | {"memory": {}}, r"agent.memory: a pipeline makes no model calls; expected it in one of"),
        (boss() | {"sub_agents": {"x": pipeline("a") | {"name": None}}}, r"x\.name"),
        (boss() | {"sub_agents": {"x": {"pipeline": {"agents": []}}}}, r"agents"),
    ],
)
def test_a_pipeline_that_cannot_be_is_refused(section: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        AgentConfig.model_validate(section)


async def test_two_agents_of_one_tool_name_are_refused() -> None:
    section = boss() | {"sub_agents": {"a b": member("a"), "a_b": member("a")}}
    with pytest.raises(UserError, match=r"agent\.sub_agents: 'a b' and 'a_b' are both called by a_b"):
        await load_agent(AgentConfig.model_validate(section), Around(Sampling(), None))


async def test_nobody_waits_for_a_person_within_another_ones_call() -> None:
    human = {"approval": {"policies": [{"tools": ["add"], "approver": "human"}]}}
    section = {"sub_agents": {"clerk": {"use": "tool", **human}}}
    with pytest.raises(UserError, match=r"agent\.sub_agents\.clerk\.approval: .* another approver than human"):
        await load_agent(AgentConfig.model_validate(section), Around(Sampling(), None, requests="somewhere"))


async def test_who_listens_to_a_run_hears_of_its_childs_answer_and_not_of_the_childs_tools() -> None:
    heard: list[StreamEvent] = []
    policy = by_agent(boss=(call("adder", task="Add two."), SUBMIT), adder=(ADD, ADD, "It is two."))
    loaded = await load_agent(AgentConfig.model_validate(boss("adder")), Around(Sampling(), None))
    said: Iterator[str | None] = iter(("Go on.", None))

    async def hear(turns: Sequence[Turn]) -> str | None:
        return next(said)

    def conduct(agent: Agent, lease: Lease) -> Chatting:
        return Chatting(loaded.conduct(agent, lease), hear, heard.append)

    job = replace(setting(policy, conduct=conduct), agent=loaded.parts.agent)
    await run_episode(lease(), job)
    assert [event.use.call.name for event in heard if isinstance(event, CallResult)] == ["adder", "submit"]


def test_what_people_took_is_no_time_of_a_run_and_what_judges_cost_is_the_whole_familys() -> None:
    async def never(child: Child) -> Trajectory:
        raise AssertionError(child)

    began = time.monotonic() - 100.0
    parent = Family(Limits(), [], began, never, waited=60.0, beside_usd=1.0)
    child = Family(Limits(), [], began, never, parent, beside_usd=0.5)
    parent.below.append(child)
    assert 40.0 <= parent.seconds < 100.0 <= child.seconds
    assert parent.all_beside_usd() == child.all_beside_usd() == 1.5
