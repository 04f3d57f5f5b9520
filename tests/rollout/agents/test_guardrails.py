"""Guardrails: their order, what each verdict does, and what counts when one breaks."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rollout.agents.call_gates import CallGates
from rollout.agents.guardrails import (
    Block,
    Guardrail,
    GuardrailConfig,
    GuardrailEvent,
    Guardrails,
    Modify,
    On,
    Pass,
    Retry,
)
from rollout.agents.toolbox import ToolBox
from rollout.errors import BoundaryError, UserError
from rollout.tool_use import skipped
from rollout.trajectory import FailureKind, Score, ToolCall, ToolResult, Transcript


def rails(*checks: Any, on: On = "input", **more: Any) -> Guardrails:
    """Guardrails named g0, g1, ...; each takes an eighth of a second."""
    ticks = iter(range(1000))
    each = tuple(Guardrail(f"g{place}", check, on, **more) for place, check in enumerate(checks))
    return Guardrails(each, clock=lambda: next(ticks) / 8)


def add(letter: str) -> Any:
    return lambda value, *_: Modify(value + letter)


def passes(value: Any, *_: Any) -> Pass:
    return Pass()


async def test_vector_10_guardrails_run_in_order_and_each_sees_what_the_one_before_made() -> None:
    guarded = await rails(add("b"), passes, add("c")).check("input", "a")
    assert (guarded.value, guarded.verdict) == ("abc", Pass())
    assert guarded.events == (
        GuardrailEvent("g0", "input", "modify", "", 125.0, "a"),
        GuardrailEvent("g1", "input", "pass", "", 125.0),
        GuardrailEvent("g2", "input", "modify", "", 125.0, "ab"),
    )


async def test_the_first_block_or_retry_is_the_last_word() -> None:
    asked: list[str] = []
    for verdict, word, why in [(Block("no"), "block", "no"), (Retry("again"), "retry", "again")]:
        guarded = await rails(add("b"), lambda _, said=verdict: said, asked.append, on="output").check("output", "a")
        assert (guarded.value, guarded.verdict) == ("ab", verdict)
        assert [(one.decision, one.reason) for one in guarded.events] == [("modify", ""), (word, why)]
    assert asked == []


async def test_only_those_of_their_place_are_asked() -> None:
    both = Guardrails((*rails(add("i")).each, *rails(add("o"), on="output").each))
    assert (await both.check("input", "")).value == "i"
    assert (await both.check("output", "")).value == "o"
    assert (both.on("input"), both.on("tool_input")) == (True, False)


def bug(value: Any, *_: Any) -> Pass:
    raise KeyError("lost")


async def hang(value: Any) -> Pass:
    await asyncio.Event().wait()
    return Pass()


async def asynchronous(value: str) -> Block:
    return Block(f"no {value}")


async def test_functions_may_be_async() -> None:
    assert (await rails(asynchronous).check("input", "x")).verdict == Block("no x")


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (bug, "KeyError: 'lost'"),
        (hang, "guardrail g0: no answer within 0.01 s"),
        (lambda _: True, "expected Pass, Block, Modify or Retry, found bool"),
        (lambda _: None, "expected Pass, Block, Modify or Retry, found NoneType"),
        (lambda _: Modify(3), "expected Modify with a text, found int"),
        (lambda _: Retry("x"), "an input cannot be tried again; expected Pass, Block or Modify"),
    ],
)
async def test_vector_10_one_that_breaks_blocks_unless_it_is_told_otherwise(check: Any, reason: str) -> None:
    seconds = 0.01 if check is hang else 60.0
    blocked = await rails(check, seconds=seconds).check("input", "a")
    assert blocked.verdict == Block(f"Guardrail error: {reason}")
    assert (await rails(check, seconds=seconds, on_error="pass").check("input", "a")).verdict == Pass()
    with pytest.raises(BoundaryError) as caught:
        await rails(check, seconds=seconds, on_error="fail").check("input", "a")
    assert caught.value.failure.kind is FailureKind.AGENT


def test_vector_10_a_place_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValidationError, match="'input', 'output', 'tool_input' or 'tool_output'"):
        GuardrailConfig.model_validate({"name": "g", "check": "m:f", "at": "outputs"})


async def test_they_are_named_in_a_conf(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from rollout.agents.guardrails import Block\ndef never(v):\n    return Block('no')\n"
    )
    config = GuardrailConfig(name="never", check=f"{tmp_path}/mine.py:never")
    found = Guardrails.of([config])
    assert found is not None
    assert (await found.check("input", "a")).verdict == Block("no")
    assert Guardrails.of([]) is None, "an agent without any has none"
    with pytest.raises(UserError, match=r"^agent\.guardrails\.never\.check: "):
        Guardrails.of([GuardrailConfig(name="never", check="nowhere:f")])


CALL = ToolCall("c", "search", '{"query": "a"}')


async def test_a_tools_arguments_are_passed_changed_or_refused() -> None:
    def check(arguments: dict[str, Any], tool: str) -> Any:
        query = arguments.pop("query")
        if query == "a":
            return Pass()  # what it did to its copy is nobody's
        return Modify({"query": f"{tool}: {query}"}) if query == "b" else Retry(f"not {query}")

    gates = CallGates(rails(check, on="tool_input"))
    other = [ToolCall("c", "search", f'{{"query": "{letter}"}}') for letter in "bc"]
    done = skipped("no such tool")
    admitted = await gates.admitted([CALL, *other, ToolCall("c", "search", "["), done])
    assert admitted[:2] == (CALL, ToolCall("c", "search", '{"query": "search: b"}'))
    assert admitted[2:4] == (skipped("not c"), skipped("the arguments of a tool call must be a JSON object"))
    assert admitted[4] is done
    assert [one.decision for one in gates.events] == ["pass", "modify", "retry"]
    assert (gates.events[1].before, gates.events[1].call_id) == ('{"query": "b"}', "c")


async def test_a_tools_output_is_changed_or_replaced_but_stays_its_result() -> None:
    result = ToolResult("secret", reward=1.0, seconds=2.0)
    gates = CallGates(rails(lambda text, tool: Modify(f"{tool}: {text[0]}"), on="tool_output"))
    assert await gates.after(CALL, result) == ToolResult("search: s", reward=1.0, seconds=2.0)
    assert gates.events[0].before == "secret"
    gates = CallGates(rails(lambda text, tool: Block("hidden"), on="tool_output"))
    assert await gates.after(CALL, result) == ToolResult("error: hidden", "hidden", reward=1.0, seconds=2.0)


class Vault:
    """A session whose one tool tells a secret."""

    async def call(self, call: ToolCall, seconds: float) -> tuple[ToolResult, bytes | None]:
        return ToolResult("secret"), None

    async def verify(self, transcript: Transcript, seconds: float) -> Score:
        return Score(1.0)

    async def close(self) -> None: ...


async def test_around_a_box_that_breaks_with_them() -> None:
    hidden = CallGates(rails(lambda text, tool: Modify("***"), on="tool_output"))
    used = await ToolBox(around=hidden).use(Vault(), [CALL, CALL], ["search"], 5, False)
    assert [use.result.content for use in used.uses] == ["***", "***"]
    assert used.outputs == ("***", "***")
    broken = CallGates(rails(bug, on="tool_output", on_error="fail"))
    used = await ToolBox(around=broken).use(Vault(), [CALL], ["search"], 5, False)
    assert used.broken is not None
    assert used.broken.failure.where == "guardrail g0"
