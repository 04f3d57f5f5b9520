"""What an agent is told, in whole episodes: the turn loop, the ledger and the row, with a scripted policy.

Each part has tests of its own; here it is seen that it has its place in the loop and leaves its trace.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import ADD, GOLD, SUBMIT, counter, lease, says, setting

from rollout.agents.loading import Around, Loaded, load_agent
from rollout.agents.parts import Budget
from rollout.agents.pricing import Price, Prices
from rollout.agents.section import AgentConfig
from rollout.episode import run_episode
from rollout.invariants import check_rows
from rollout.protocols import Policy
from rollout.row_rules import Known
from rollout.rows import to_table
from rollout.samples import left_out, to_samples
from rollout.sessions import LocalSessions, SessionTable
from rollout.trajectory import FailureKind, Sampling, Status, StopReason, Trajectory

FUNCTIONS = '''
from rollout.agents.guardrails import Block, Modify, Pass, Retry

seen = []

def shout(text: str) -> str:
    """Says it louder.

    Args:
        text: What to say.
    """
    return text.upper()

def note(agent, *told):
    seen.append((agent.name, *told))

def remind(agent, iteration, messages):
    return [*messages, {"role": "user", "content": "Think twice."}] if iteration == 2 else messages

def forget(agent, iteration, messages):
    return messages[-1:] if iteration == 3 else messages

def broken(agent, *told):
    raise RuntimeError("no hook")

def no_counting(text):
    return Block("no counting") if "twice" in text else Pass()

def politely(text):
    return Pass() if "please" in text else Retry("Say please.")

def softly(text):
    return Modify(text.lower())

def never(tool, arguments):
    return True
'''


def call(name: str, /, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture
def functions(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(FUNCTIONS)
    return str(path)


async def agent(reach: int | None = None, /, budget: Budget | None = None, **section: Any) -> Loaded:
    return await load_agent(AgentConfig.model_validate(section), Around(Sampling(), reach, budget))


async def play(loaded: Loaded, *lines: str, policy: Policy | None = None, **changes: Any) -> Trajectory:
    """One episode of the agent; every session that was opened is closed."""
    table = SessionTable(counter())
    job = setting(policy or says(*lines), LocalSessions(table), conduct=loaded.conduct, agent=loaded.parts.agent)
    played = await run_episode(lease(), replace(job, **changes))
    await loaded.close()
    assert (table.opened, table.closed) == (1, 1)
    (batch,) = to_table([played]).to_batches()
    findings, _ = check_rows(batch, Known())
    assert findings == [], "what must hold of every row holds of an agent's"
    return played


def kinds(played: Trajectory) -> list[tuple[int, str, str]]:
    return [(event.turn, event.kind, event.name) for event in played.events]


async def test_an_agent_that_is_told_nothing_plays_as_a_plain_one() -> None:
    played = await play(await agent(), *GOLD)
    plain = await run_episode(lease(), setting(says(*GOLD)))
    same = ("messages", "stop_reason", "score", "events", "answer")
    assert [getattr(played, name) for name in same] == [getattr(plain, name) for name in same]
    assert [turn.prompt_ids for turn in played.turns] == [turn.prompt_ids for turn in plain.turns]


async def test_functions_are_tools_beside_those_of_the_resource(functions: str) -> None:
    loaded = await agent(tools=[{"ref": f"{functions}:shout"}], max_tool_output=3)
    played = await play(loaded, call("shout", text="hello there"), *GOLD)
    assert played.reward == 1.0
    assert played.turns[0].tool_uses[0].result.content.startswith("HEL")


async def test_a_tool_may_give_the_answer(functions: str) -> None:
    loaded = await agent(tools=[{"ref": f"{functions}:shout", "return_direct": True}])
    played = await play(loaded, call("shout", text="done"))
    assert (played.stop_reason, played.answer, len(played.turns)) == (StopReason.RETURN_DIRECT, "DONE", 1)
    assert played.status is Status.COMPLETED


async def test_a_tool_that_is_called_wrongly_too_often_ends_the_run() -> None:
    loaded = await agent(tools=["add", "submit", {"name": "add", "retries": 1}])
    wrong = call("add", amount="many")
    played = await play(loaded, wrong, wrong, wrong)
    assert (played.stop_reason, len(played.turns)) == (StopReason.TOOL_RETRIES, 2)
    assert kinds(played) == [(1, "tool_retries", "add")]


async def test_hooks_see_the_run_and_what_is_added_stays_in_the_segment(functions: str) -> None:
    hooks = {
        name: f"{functions}:note"
        for name in ("after_llm_call", "on_tool_call", "on_tool_result", "on_complete", "on_stop")
    }
    loaded = await agent(hooks={**hooks, "before_llm_call": f"{functions}:remind"})
    played = await play(loaded, *GOLD)
    assert played.reward == 1.0
    assert {turn.segment for turn in played.turns} == {0}
    assert [message["content"] for message in played.messages if message["role"] == "user"][1:] == ["Think twice."]


async def test_a_hook_that_rewrites_history_opens_a_segment(functions: str) -> None:
    loaded = await agent(hooks={"before_llm_call": f"{functions}:forget"})
    played = await play(loaded, *GOLD)
    assert [turn.segment for turn in played.turns] == [0, 0, 1]
    assert played.turns[2].segment_break == "before_llm_call rewrote message 0"
    assert kinds(played) == [(2, "hook", "before_llm_call")]
    assert played.reward == 1.0, "the environment does not care what the policy is shown"


async def test_a_hook_that_breaks_fails_the_episode_where_it_is_to(functions: str) -> None:
    loaded = await agent(hooks={"after_llm_call": f"{functions}:broken", "on_hook_error": "fail"})
    played = await play(loaded, *GOLD)
    assert played.failure is not None
    assert (played.failure.kind, played.reward) == (FailureKind.AGENT, None)


async def test_a_guardrail_on_the_input_ends_the_run_before_any_call(functions: str) -> None:
    loaded = await agent(guardrails=[{"name": "calm", "at": "input", "check": f"{functions}:no_counting"}])
    played = await play(loaded, *GOLD)
    assert (played.stop_reason, played.answer) == (StopReason.GUARDRAIL, "no counting")
    assert (played.turns, played.reward) == ((), 0.0)


async def test_guardrails_on_the_answer_ask_again_and_change_it(functions: str) -> None:
    rails = [{"name": "polite", "at": "output", "check": f"{functions}:politely"}]
    rails += [{"name": "soft", "at": "output", "check": f"{functions}:softly"}]
    played = await play(await agent(guardrails=rails), "No.", "No, PLEASE please.")
    assert (played.stop_reason, played.answer) == (StopReason.DONE, "no, please please.")
    assert [event.detail["decision"] for event in played.events] == ["retry", "modify"]
    assert len(played.turns) == 2


FORM = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}


async def test_an_answer_in_a_form_is_asked_for_until_it_has_it() -> None:
    loaded = await agent(output_schema=FORM, train_failed_parses=False, parse_penalty=0.25)
    played = await play(loaded, call("final_answer", sum="two"), call("final_answer", sum=2))
    assert (played.stop_reason, played.answer) == (StopReason.DONE, {"sum": 2})
    assert [turn.trainable for turn in played.turns] == [False, True]
    assert played.score is not None
    assert played.score.components["penalty"] == -0.25
    assert kinds(played) == [(0, "parse_error", "output")]


async def test_an_answer_that_never_has_its_form_is_a_parse_error() -> None:
    loaded = await agent(output_schema=FORM, max_parse_retries=1)
    played = await play(loaded, "two")
    assert (played.stop_reason, played.answer, len(played.turns)) == (StopReason.PARSE_ERROR, None, 2)


async def test_the_last_call_has_its_tools_off() -> None:
    loaded = await agent(max_iterations=2, on_max_iterations="force_final")
    played = await play(loaded, ADD, ADD, "It is two.")
    assert (played.stop_reason, len(played.turns)) == (StopReason.DONE, 3)
    assert played.messages[-2]["content"].startswith("There are no more tool calls")
    forced = await play(await agent(max_iterations=2, on_max_iterations="force_final"), ADD)
    assert (forced.stop_reason, len(forced.turns)) == (StopReason.MAX_TURNS, 3)
    assert forced.turns[-1].tool_uses[0].result.skipped
    stopped = await play(await agent(max_iterations=2), ADD)
    assert (stopped.stop_reason, len(stopped.turns)) == (StopReason.MAX_TURNS, 2)


async def test_calls_are_made_as_whoever_approves_them_says() -> None:
    policies = [{"tools": ["add"], "approver": "scripted", "script": ["approve", {"decision": "deny", "reason": "no"}]}]
    played = await play(await agent(approval={"policies": policies}), ADD, ADD, SUBMIT)
    words = [event.detail["decision"] for event in played.events]
    assert words[0] == "approve"
    assert played.turns[0].tool_uses[0].result.content == "1"
    assert all(len(turn.tool_uses) == 1 for turn in played.turns), "a call has one result"


async def test_a_denied_tool_is_told_so_and_a_terminated_run_ends() -> None:
    denied = await play(await agent(approval={"policies": [{"tools": ["add"], "approver": "deny"}]}), *GOLD)
    assert denied.turns[0].tool_uses[0].result.skipped
    script = [{"decision": "terminate", "reason": "enough"}]
    policies = [{"tools": ["add"], "approver": "scripted", "script": script}]
    ended = await play(await agent(approval={"policies": policies}), *GOLD)
    assert (ended.stop_reason, len(ended.turns)) == (StopReason.DENIED, 1)


async def test_a_conversation_that_gets_long_is_summed_up_in_segments_of_their_own() -> None:
    loaded = await agent(400, context={"keep_last": 2, "compact_threshold": 0.5})
    played = await play(loaded, ADD, ADD, "They added twice.", SUBMIT)
    reasons = [turn.segment_break for turn in played.turns if turn.segment_break]
    assert reasons[:2] == ["summary", "compacted: summary"]
    summary = next(turn for turn in played.turns if turn.segment_break == "summary")
    assert not summary.trainable
    assert ("compaction", "summary") in [(event.kind, event.name) for event in played.events]


async def test_a_call_in_a_summary_is_not_made_and_has_a_result() -> None:
    loaded = await agent(400, context={"keep_last": 2, "compact_threshold": 0.5})
    played = await play(loaded, ADD, ADD, f"They added twice.\n{ADD}", SUBMIT)
    summary = next(turn for turn in played.turns if turn.segment_break == "summary")
    assert [use.result.skipped for use in summary.tool_uses] == [True]
    assert played.reward == 1.0, "two were made"


async def test_an_agent_hands_over_to_another_in_a_segment_of_its_own() -> None:
    expert = {"instructions": "You add.", "description": "Adds.", "trainable": False}
    loaded = await agent(sub_agents={"adder": expert}, tools=["submit"])
    played = await play(loaded, call("handoff_to_adder", message="Add two."), ADD, ADD, SUBMIT)
    assert [turn.agent for turn in played.turns] == ["agent", "adder", "adder", "adder"]
    assert [turn.segment for turn in played.turns] == [0, 1, 1, 1]
    assert [turn.trainable for turn in played.turns] == [True, False, False, False]
    assert (played.stop_reason, played.reward) == (StopReason.ENVIRONMENT, 1.0)
    assert kinds(played) == [(0, "handoff", "adder")]


async def test_a_handoff_that_is_not_followed_ends_the_run() -> None:
    loaded = await agent(sub_agents={"adder": {}}, handoffs={"follow": False})
    played = await play(loaded, call("handoff_to_adder", message="Add two."))
    assert (played.stop_reason, played.answer) == (StopReason.HANDOFF, "Add two.")


async def test_skills_and_memories_are_told_and_are_tools(tmp_path: Path) -> None:
    skill = tmp_path / "adding"
    skill.mkdir()
    (skill / "SKILL.md").write_text("---\nname: adding\ndescription: How to add.\n---\nAdd one, twice.\n")
    loaded = await agent(skills=[str(skill)], memory={}, instructions={"template": "You are {{ agent }}."})
    save = call("save_memory", content="Two is enough.")
    played = await play(loaded, call("read_skill", name="adding"), save, call("recall_memory", query="enough"), *GOLD)
    system = played.messages[0]
    assert system["role"] == "system"
    assert system["content"].startswith("You are agent.")
    assert "adding" in system["content"]
    contents = [use.result.content for turn in played.turns[:3] for use in turn.tool_uses]
    assert "Add one, twice." in contents[0]
    assert "Two is enough." in contents[2]
    assert played.reward == 1.0


async def test_a_budget_that_is_spent_ends_the_episode() -> None:
    budget = Budget(Prices({"scripted": Price(1.0, 1.0)}), "scripted", episode_usd=0.0005)
    loaded = await agent(budget=budget)
    played = await play(loaded, ADD, priced=lambda turns: budget.used(turns).usd)
    assert (played.stop_reason, played.status) == (StopReason.COST, Status.TRUNCATED)
    assert 1 < len(played.turns) < 8
    assert played.cost is not None
    assert played.cost >= 0.0005


async def test_what_is_not_trained_on_has_mask_0_and_the_row_tells_what_happened() -> None:
    expert = {"instructions": "You add.", "trainable": False}
    loaded = await agent(sub_agents={"adder": expert}, tools=["submit"])
    played = await play(loaded, call("handoff_to_adder", message="Add two."), ADD, ADD, SUBMIT)
    rows = to_table([played])
    (row,) = rows.to_pylist()
    assert [event["kind"] for event in row["events"]] == ["handoff"]
    assert json.loads(row["events"][0]["detail"])["target"] == "adder"
    samples = to_samples(rows)
    trained = sum(turn.completion.num_sampled for turn in played.turns if turn.trainable)
    assert sum(samples["loss_mask"].combine_chunks().flatten().to_pylist()) == trained > 0
    assert samples.num_rows == 1, "a segment that nobody trains on is no sample"
    assert left_out(samples)["untrained"] == {"episodes": 1, "tokens": played.num_sampled - trained}
