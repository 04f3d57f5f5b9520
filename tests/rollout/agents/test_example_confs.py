"""The examples of what an agent can be told: each is in the documentation's table, and plays as its comment says."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from fakes import TEMPLATE

from resources.catalog import load_resource
from rollout.agents.limiter import LocalLimiter
from rollout.agents.loading import Around, is_plain, load_agent, located
from rollout.agents.parts import Budget
from rollout.agents.pricing import Prices
from rollout.agents.rates import Rates
from rollout.agents.retry import RetryingPolicy
from rollout.config import CHECKOUT, JobConfig, ScriptedConfig, load
from rollout.episode import Setting, run_episode
from rollout.invariants import check_rows
from rollout.row_rules import Known
from rollout.rows import to_table
from rollout.scripted import ScriptedPolicy
from rollout.segments import hermes
from rollout.sessions import LocalSessions, SessionTable
from rollout.tokens import TokenLedger
from rollout.trajectory import Lease, Status, StopReason, Trajectory

EXAMPLES = {path.stem: path for path in sorted((CHECKOUT / "agents").glob("*.yaml"))}
PAGE = CHECKOUT.parent / "docs" / "agents.md"
TESTS = CHECKOUT.parent / "tests"
CALCULATE = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "1+1"}}\n</tool_call>'
SAID = '{"said": "The answer is 2."}'
UNSCRIPTED = {"structured_native": (SAID,), "structured_two_phase": (CALCULATE, "The answer is 2.", SAID)}
"""Lines for examples whose engine is a real one."""
END = {"tools": StopReason.RETURN_DIRECT, "context_summary": StopReason.ENVIRONMENT}
REWARD = {"structured": 0.9, "structured_native": 0.0, "structured_two_phase": 0.0}

HAPPENED = {
    "approval": [(0, "approval", "add"), (1, "approval", "erase"), (2, "approval", "add")],
    "context_summary": [(6, "compaction", "summary")],
    "context_trim": [(3, "compaction", "trim"), (4, "compaction", "trim")],
    "guardrails": [
        (0, "guardrail", "small numbers"),
        (1, "guardrail", "with unit"),
        (2, "guardrail", "a sentence"),
    ],
    "children": [(0, "child", "adder"), (0, "child", "checker")],
    "handoffs": [(0, "handoff", "adder"), (2, "handoff", "clerk")],
    "hooks": [(2, "hook", "before_llm_call")],
    "pipeline": [(0, "child", "adder"), (0, "child", "clerk")],
    "sessions": [(0, "session", "EPISODE.1"), (1, "state", "notes")],
    "structured": [(1, "parse_error", "output")],
}
"""What is more than letting pass: turn, kind and name."""


async def play(name: str, *overrides: str, folder: Path, tasks: int = 2) -> list[Trajectory]:
    """The first tasks of an example, one after the other, as a job plays them."""
    config = load(EXAMPLES[name], [f"run.dir={folder}/{name}", *overrides])
    assert config.resource is not None
    table = SessionTable(resource := load_resource(config.resource.name, config.resource.options))
    budget = Budget(Prices.of(config.pricing), "scripted", config.cost.episode_usd)
    around = Around(config.model.sampling.value(), 8192, budget, None, TEMPLATE)
    loaded = await load_agent(located(config.agent), around)
    lines = config.model.turns if isinstance(config.model, ScriptedConfig) else UNSCRIPTED[name]
    job = Setting(
        agent=loaded.parts.agent,
        policy=ScriptedPolicy(TEMPLATE, lines),
        sessions=LocalSessions(table),
        limits=config.limits,
        new_ledger=partial(TokenLedger, TEMPLATE, hermes),
        resource=resource.name,
        model="scripted",
        conduct=loaded.conduct,
        priced=None if "scripted" not in config.pricing.models else lambda turns: budget.used(turns).usd,
    )
    if config.agent.retry is not None:
        rates = {model: rate.value() for model, rate in config.rate_limits.items()}
        limiter = LocalLimiter(Rates(rates, time.monotonic()))
        job = replace(job, policy=RetryingPolicy(job.policy, "scripted", config.agent.retry, limiter))
    try:
        leases = (Lease("run", task, 0, 1, True, 7) for task in islice(resource.tasks(0), tasks))
        played = [await run_episode(one, job) for one in leases]
    finally:
        await loaded.close()
    assert table.opened == table.closed == tasks
    for batch in to_table(played).to_batches():
        assert check_rows(batch, Known())[0] == []
    return played


@pytest.mark.parametrize("name", EXAMPLES)
async def test_an_example_plays_as_it_says(name: str, tmp_path: Path) -> None:
    for played in await play(name, folder=tmp_path):
        assert played.failure is None
        assert played.stop_reason is END.get(name, StopReason.DONE)
        assert played.reward == REWARD.get(name, 1.0)
        assert kinds(played) == HAPPENED.get(name, [])


def kinds(played: Trajectory) -> list[tuple[int, str, str]]:
    own = played.lease.episode_id
    return [(event.turn, event.kind, event.name.replace(own, "EPISODE")) for event in played.events]


def results(played: Trajectory) -> list[str]:
    return [use.result.content for turn in played.turns for use in turn.tool_uses]


async def test_the_example_of_instructions(tmp_path: Path) -> None:
    first, second = await play("instructions", folder=tmp_path)
    assert second.messages[0]["content"].startswith("You are clerk and work on sums-1.")
    assert [turn.sampling.temperature for turn in first.turns] == [0.7] * 3
    assert first.messages[-2]["content"].startswith("There are no more tool calls")


async def test_the_example_of_tools(tmp_path: Path) -> None:
    (played,) = await play("tools", folder=tmp_path, tasks=1)
    looked_up, other, wrong, total, handed_in = results(played)
    assert looked_up.startswith("sums: see the handbook")
    assert other.startswith("answers: see the handbook")
    assert len(looked_up) < 200, "it is cut"
    assert wrong.startswith("error: add: a:")
    assert (total, handed_in, played.answer) == ("42", "Handed in: The sum is 42.", handed_in)


async def test_the_example_of_an_answer_in_a_form(tmp_path: Path) -> None:
    (played,) = await play("structured", folder=tmp_path, tasks=1)
    assert played.answer == {"sum": 42}
    assert [turn.trainable for turn in played.turns] == [True, False, True]
    (native,) = await play("structured_native", folder=tmp_path, tasks=1)
    assert [turn.constrained for turn in native.turns] == [True]
    (after,) = await play("structured_two_phase", folder=tmp_path, tasks=1)
    assert [turn.constrained for turn in after.turns] == [False, False, True]
    assert native.answer == after.answer == {"said": "The answer is 2."}


async def test_the_example_of_guardrails(tmp_path: Path) -> None:
    (played,) = await play("guardrails", folder=tmp_path, tasks=1)
    assert results(played) == ["error: a is more than 1000", "42 apples"]
    assert [event.detail["decision"] for event in played.events] == ["block", "modify", "retry"]


async def test_the_example_of_approval(tmp_path: Path) -> None:
    (played,) = await play("approval", folder=tmp_path, tasks=1)
    assert results(played) == [
        "error: not approved: numbers up to 1000 only",
        "error: not approved: nothing is erased here",
        "42",
    ]


async def test_the_example_of_a_budget(tmp_path: Path) -> None:
    (played,) = await play("budget", folder=tmp_path, tasks=1)
    assert played.cost is not None
    assert 0.0001 < played.cost < 0.01
    (short,) = await play("budget", "cost.episode_usd=0.0001", folder=tmp_path, tasks=1)
    assert (short.stop_reason, short.status) == (StopReason.COST, Status.TRUNCATED)
    assert len(short.turns) < len(played.turns)


async def test_the_example_of_handoffs(tmp_path: Path) -> None:
    (played,) = await play("handoffs", folder=tmp_path, tasks=1)
    assert [(turn.agent, turn.segment, turn.trainable) for turn in played.turns] == [
        ("desk", 0, True),
        ("adder", 1, False),
        ("adder", 1, False),
        ("clerk", 2, True),
    ]


async def test_the_examples_of_long_conversations(tmp_path: Path) -> None:
    for strategy in ("trim", "edit"):
        (played,) = await play("context_trim", f"agent.context.strategy={strategy}", folder=tmp_path, tasks=1)
        reasons = [turn.segment_break for turn in played.turns if turn.segment_break]
        assert set(reasons) == {f"compacted: {strategy}"}
    (summed,) = await play("context_summary", folder=tmp_path, tasks=1)
    assert [turn.trainable for turn in summed.turns].count(False) == 1


async def test_the_example_of_skills(tmp_path: Path) -> None:
    (played,) = await play("skills", folder=tmp_path, tasks=1)
    assert "adding: How to add two numbers" in played.messages[0]["content"]
    read, file, _ = results(played)
    assert read.startswith("Call add with both numbers.")
    assert file.startswith('Asked "What is 2 + 3?"')


async def test_the_example_of_memory(tmp_path: Path) -> None:
    first, second = await play("memory", folder=tmp_path)
    assert results(first) == ["found nothing", "saved"]
    assert results(second)[0] == "1. 17 + 25 is 42."
    assert "17 + 25 is 42." in second.messages[0]["content"], "it is told at the start"
    assert (tmp_path / "memory.sqlite").is_file()


async def test_the_example_of_an_mcp_server(tmp_path: Path) -> None:
    for played in await play("mcp", folder=tmp_path):
        assert results(played) == ["17", "42"], "each episode has a server of its own"


def test_the_documentation_names_every_example_and_what_it_names_is_there() -> None:
    table = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    named = [cell for line in table for cell in re.findall(r"`(agents/\w+)`", line)]
    assert {name.removeprefix("agents/") for name in named} == set(EXAMPLES)
    tests = {test for line in table for test in re.findall(r"`([\w/]*test_\w+\.py)`", line)}
    assert len(tests) > 10
    known = {path.name for path in TESTS.rglob("test_*.py")}
    assert [test for test in sorted(tests) if test.rpartition("/")[2] not in known] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_of_an_agent_that_says_more(name: str) -> None:
    config = load(EXAMPLES[name])
    assert isinstance(config, JobConfig)
    assert not is_plain(config.agent) or config.agent.retry is not None
