"""Hooks: who is told what, what one that breaks costs, and what a transformer did to the messages."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.agents.call_gates import CallGates
from rollout.agents.hooks import Appended, Hooks, HooksConfig, Rewritten, compared
from rollout.errors import BoundaryError, UserError
from rollout.trajectory import Agent, FailureKind, Message, ToolCall, ToolResult

AGENT = Agent("clerk")
VIEW: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Yes?"},
]
MORE: Message = {"role": "user", "content": "Go on."}


def hooks(**more: Any) -> Hooks:
    functions = {name: function for name, function in more.items() if callable(function)}
    settings = {name: value for name, value in more.items() if not callable(value)}
    return Hooks(AGENT, functions, **settings)


async def test_observers_are_told_with_the_agent_first_plain_or_async() -> None:
    told: list[tuple[Any, ...]] = []

    async def completed(*what: Any) -> None:
        told.append(what)

    both = hooks(on_stop=lambda *what: told.append(what), on_complete=completed)
    await both.observe("on_stop", "done")
    await both.observe("on_complete", "42")
    await both.observe("on_error", "nobody listens")
    assert told == [(AGENT, "done"), (AGENT, "42")]


def bug(*_: Any) -> None:
    raise KeyError("lost")


async def hang(*_: Any) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("function", "seconds", "line"), [(bug, 60.0, "KeyError: 'lost'"), (hang, 0.01, "no answer within 0.01 s")]
)
async def test_an_observer_that_breaks_is_logged_or_fails_the_episode(
    function: Any, seconds: float, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        await hooks(on_stop=function, seconds=seconds).observe("on_stop", "done")
    assert line in caplog.text
    assert "hook on_stop" in caplog.text
    with pytest.raises(BoundaryError, match=line) as caught:
        await hooks(on_stop=function, seconds=seconds, on_error="fail").observe("on_stop", "done")
    assert caught.value.failure.kind is FailureKind.AGENT


async def test_vector_8_the_returned_list_is_what_the_model_is_shown() -> None:
    assert await hooks(before_llm_call=lambda agent, number, view: [*view, MORE]).before_llm_call(1, VIEW) == [
        *VIEW,
        MORE,
    ]
    assert await hooks().before_llm_call(1, VIEW) == VIEW


async def test_a_hook_that_changes_its_list_in_place_does_not_change_the_view() -> None:
    def spoil(agent: Agent, number: int, view: list[Message]) -> list[Message]:
        view[0]["content"] = f"{agent.name} {number}"
        return view

    before = [message.copy() for message in VIEW]
    returned = await hooks(before_llm_call=spoil).before_llm_call(3, VIEW)
    assert before == VIEW
    assert compared(VIEW, returned) == Rewritten(({"role": "system", "content": "clerk 3"}, *VIEW[1:]), 0)


@pytest.mark.parametrize(
    ("returned", "line"),
    [
        (None, "returned None, expected the list of messages"),
        ("text", "returned str, expected the list of messages"),
        ([], "returned no messages"),
        ([*VIEW, "x"], "message 3 has no text for role and content"),
        ([{"role": "user", "content": None}], "message 0 has no text for role and content"),
    ],
)
async def test_vector_8_returning_no_messages_is_a_clear_error(returned: Any, line: str) -> None:
    with pytest.raises(UserError) as caught:
        await hooks(before_llm_call=lambda *_: returned).before_llm_call(1, VIEW)
    assert str(caught.value).startswith(f"agent.hooks.before_llm_call: {line}")


async def test_a_transformer_that_breaks_is_a_failure_whatever_observers_cost() -> None:
    with pytest.raises(BoundaryError, match="hook before_llm_call"):
        await hooks(before_llm_call=bug).before_llm_call(1, VIEW)


def test_vector_8_appending_keeps_the_segment_and_anything_else_opens_a_new_one() -> None:
    assert compared(VIEW, VIEW) == Appended()
    assert compared(VIEW, [*VIEW, MORE]) == Appended((MORE,))
    assert compared(VIEW, VIEW[:-1]) == Rewritten(tuple(VIEW[:-1]), 2)
    assert compared(VIEW, [VIEW[0], MORE, *VIEW[1:]]) == Rewritten((VIEW[0], MORE, *VIEW[1:]), 1)


texts = st.lists(st.sampled_from("abc"), max_size=5)


@settings(max_examples=50)
@given(texts, texts)
def test_only_what_begins_with_the_view_is_appended(before: list[str], after: list[str]) -> None:
    view: list[Message] = [{"role": "user", "content": text} for text in before]
    returned: list[Message] = [{"role": "user", "content": text} for text in after]
    match compared(view, returned):
        case Appended(messages):
            assert [*view, *messages] == returned
        case Rewritten(messages, since):
            assert list(messages) == returned
            assert view[:since] == returned[:since]
            assert view[: since + 1] != returned[: since + 1] or len(returned) < len(view)
            assert after[: len(before)] != before


async def test_they_are_named_in_a_conf_and_an_agent_without_any_has_none(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("SEEN = []\ndef stop(agent, reason):\n    SEEN.append((agent.name, reason))\n")
    found = Hooks.of(HooksConfig(on_stop=f"{tmp_path}/mine.py:stop", on_hook_error="fail", timeout=3), AGENT)
    assert found is not None
    assert (found.on_error, found.seconds) == ("fail", 3.0)
    await found.observe("on_stop", "done")
    assert found.functions["on_stop"].__globals__["SEEN"] == [("clerk", "done")]
    assert Hooks.of(HooksConfig(), AGENT) is None
    with pytest.raises(UserError, match=r"^agent\.hooks\.on_stop: "):
        Hooks.of(HooksConfig(on_stop="nowhere:f"), AGENT)


async def test_tool_hooks_are_told_of_the_call_and_of_its_whole_result() -> None:
    told: list[tuple[Any, ...]] = []
    watched = hooks(on_tool_call=lambda *what: told.append(what), on_tool_result=lambda agent, *what: told.append(what))
    gates = CallGates(hooks=watched)
    call = ToolCall("c", "search", '{"query": "x"}')
    await gates.before(call)
    result = ToolResult("long " * 100)
    assert await gates.after(call, result) is result
    assert told == [(AGENT, "search", {"query": "x"}), ("search", result.content)]
