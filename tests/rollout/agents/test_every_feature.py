"""One run of an agent that uses every feature: what of it is trained on is what the policy sampled, to the token."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from fakes import IM_END, TEMPLATE, TOKENIZER, counter, lease, setting

from rollout.agents.loading import Around, load_agent
from rollout.agents.parts import Budget
from rollout.agents.pricing import Price, Prices
from rollout.agents.retry import RetryConfig, RetryingPolicy
from rollout.agents.section import AgentConfig
from rollout.config import CHECKOUT
from rollout.episode import run_episode
from rollout.invariants import check_rows
from rollout.row_rules import Known
from rollout.rows import to_table
from rollout.samples import left_out, to_samples
from rollout.sessions import LocalSessions, SessionTable
from rollout.trajectory import Completion, FailureKind, FinishReason, Limits, Prompt, Sampling, StopReason

EXAMPLES = CHECKOUT / "agents"
FUNCTIONS = f"{EXAMPLES}/functions.py"
OWN = """
from rollout.agents.guardrails import Pass, Retry

asked = []

def once(text):
    asked.append(text)
    return Retry("Once more, please.") if len(asked) == 1 else Pass()

def from_the_third_on(request):
    return "approve" if request.turn > 2 else {"decision": "deny", "reason": "too early"}
"""


def call(name: str, /, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@dataclass
class Spelling:
    """A policy that spells: it samples other ids than any tokenizer makes of its text. Sums up when it is asked to, and
    says its lines otherwise. Its first call fails."""

    lines: list[str]
    calls: int = 0
    sampled: list[list[int]] = field(default_factory=list[list[int]])
    prompts: list[list[int]] = field(default_factory=list[list[int]])

    async def complete(self, prompt: Prompt) -> Completion:
        self.calls += 1
        if self.calls == 1:
            raise ConnectionError("the line was cut")
        sums_up = prompt.messages[0]["content"].startswith("You compress")
        line = "They did what they were asked for." if sums_up else self.lines.pop(0)
        ids = [token for letter in line for token in TEMPLATE.encode(letter)] + [IM_END]
        self.sampled.append(ids)
        self.prompts.append(list(prompt.ids))
        logprobs = array("f", [-1.0] * len(ids))
        return Completion(FinishReason.STOP, array("i", ids), logprobs, prompt_tokens=len(prompt.ids))


LINES = [
    f"<think>What is there?</think>{call('read_skill', name='adding')}\n{call('look_up', topic='sums')}",
    call("save_memory", content="Adding goes by ones."),
    call("add", amount=1),  # which is denied
    call("counting__count", by=2),
    call("add", amount=1),
    call("handoff_to_adder", message="Add one more."),
    call("add", amount=1),
    call("handoff_to_closer"),
    call("final_answer", sum="two"),  # which does not fit
    call("final_answer", sum=2),  # which a guardrail wants once more
    call("final_answer", sum=2),
]


def section(own: Path) -> dict[str, Any]:
    note = f"{FUNCTIONS}:note"
    observers = ("after_llm_call", "on_tool_call", "on_tool_result", "on_complete", "on_stop")
    server = {"name": "counting", "command": "python3", "args": [f"{EXAMPLES}/counting_server.py"]}
    form = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    closer = {
        "tools": [],
        "output_schema": form,
        "train_failed_parses": False,
        "parse_penalty": 0.1,
        "guardrails": [{"name": "once", "at": "output", "check": f"{own}:once"}],
    }
    adder = {"tools": ["add"], "trainable": False, "sub_agents": {"closer": closer}}
    return {
        "instructions": {"template": "You are {{ agent }}."},
        "api_kwargs": {"temperature": 0.5},
        "tools": ["add", {"ref": f"{FUNCTIONS}:look_up", "max_output": 40}],
        "mcp_servers": [server],
        "skill_dirs": [f"{EXAMPLES}/skills"],
        "memory": {},
        "hooks": {"before_llm_call": f"{FUNCTIONS}:show", **dict.fromkeys(observers, note)},
        "guardrails": [{"name": "unit", "at": "tool_output", "check": f"{FUNCTIONS}:with_unit"}],
        "approval": {"policies": [{"tools": ["add"], "approver": "function", "function": f"{own}:from_the_third_on"}]},
        "context": {"context_window": 1000, "compact_threshold": 0.6, "keep_last": 2},
        "sub_agents": {"adder": adder},
    }


async def test_vector_14_the_mask_is_on_what_was_sampled_and_on_nothing_else(tmp_path: Path) -> None:
    (own := tmp_path / "own.py").write_text(OWN)
    budget = Budget(Prices({"scripted": Price(1.0, 1.0)}), "scripted", episode_usd=1.0)
    agent = await load_agent(AgentConfig.model_validate(section(own)), Around(Sampling(), None, budget, None, TEMPLATE))
    policy = Spelling(list(LINES))
    table = SessionTable(counter())
    job = setting(
        RetryingPolicy(policy, "scripted", RetryConfig(initial_delay=0.0)),
        LocalSessions(table),
        conduct=agent.conduct,
        agent=agent.parts.agent,
        limits=Limits(max_turns=20, max_tokens=8000, turn_tokens=800),
        priced=lambda turns: budget.used(turns).usd,
    )
    played = await run_episode(lease(), job)
    await agent.close()
    assert played.failure is None, played.failure
    assert (played.stop_reason, played.answer, policy.lines) == (StopReason.DONE, {"sum": 2}, [])
    assert {event.kind for event in played.events} >= {
        "approval",
        "compaction",
        "guardrail",
        "handoff",
        "hook",
        "parse_error",
    }
    assert len(played.turns[0].completion.attempts) == 1
    assert played.cost is not None
    rows = to_table([played])
    assert check_rows(rows.to_batches()[0], Known())[0] == []

    assert [list(turn.completion.ids or ()) for turn in played.turns] == policy.sampled, "no id was made anew"
    assert any(TEMPLATE.encode(TOKENIZER.decode(ids)) != ids for ids in policy.sampled), "which would have shown"
    samples = to_samples(rows)
    learnt = [
        [token for token, mask in zip(sample["token_ids"], sample["loss_mask"], strict=True) if mask]
        for sample in samples.to_pylist()
    ]
    sampled = [
        [token for turn in turns if turn.trainable for token in turn.completion.ids or ()]
        for _, turns in groupby(played.turns, lambda turn: turn.segment)
    ]
    assert learnt == [ids for ids in sampled if ids], "a sample a segment that has something to learn"
    mask = sum(samples["loss_mask"].combine_chunks().flatten().to_pylist())
    trained = sum(turn.completion.num_sampled for turn in played.turns if turn.trainable)
    assert mask == trained > 0
    untrained = [turn for turn in played.turns if not turn.trainable]
    assert {turn.agent for turn in untrained} == {"agent", "adder", "closer"}, "a summary, an agent, a failed attempt"
    assert left_out(samples)["untrained"]["tokens"] == played.num_sampled - trained


async def test_vector_15_a_server_that_is_down_costs_an_attempt_and_is_no_reward_of_0() -> None:
    server = {"name": "gone", "command": "/nowhere/server", "max_restarts": 0}
    agent = await load_agent(AgentConfig.model_validate({"mcp_servers": [server]}), Around(Sampling(), None))
    policy, table = Spelling([]), SessionTable(counter())
    played = await run_episode(lease(), setting(policy, LocalSessions(table), conduct=agent.conduct))
    await agent.close()
    assert played.failure is not None
    assert (played.failure.kind, played.reward, played.turns) == (FailureKind.SEED, None, ())
    assert "gone" in played.failure.message
    assert (policy.calls, table.opened, table.closed) == (0, 1, 1)
