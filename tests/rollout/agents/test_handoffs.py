"""Handoffs: who wins, who is told what, how many there may be, and what the next agent sees."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.agents.handoffs import (
    Handoff,
    Handoffs,
    HandoffsConfig,
    conversation,
    handoff_tools,
    last,
    load_filter,
    without_tools,
)
from rollout.errors import UserError
from rollout.trajectory import Message, ToolCall

SPECS, TARGETS = handoff_tools({"billing": "Knows prices.", "Tech Support": ""}, "agent.sub_agents")
SYSTEM: Message = {"role": "system", "content": "You are billing."}


def to(agent: str, arguments: str = '{"message": "What does it cost?"}', number: int = 0) -> ToolCall:
    return ToolCall(f"call_{number}", f"handoff_to_{agent}", arguments)


def said(role: str, content: str, **more: object) -> Message:
    return {"role": role, "content": content, **more}  # type: ignore[typeddict-item]


def called(*ids: str, content: str = "") -> Message:
    return said("assistant", content, tool_calls=[{"id": one, "function": {"name": "f"}} for one in ids])


HISTORY: list[Message] = [
    said("system", "You are the front desk."),
    said("user", "How much?"),
    called("a", content="Let me see."),
    said("tool", "7", tool_call_id="a"),
    called("b"),
    said("tool", "handed over to billing", tool_call_id="b"),
]


def test_an_agent_gets_a_tool_for_each_sub_agent() -> None:
    assert [spec.name for spec in SPECS] == ["handoff_to_billing", "handoff_to_Tech_Support"]
    assert TARGETS == {"handoff_to_billing": "billing", "handoff_to_Tech_Support": "Tech Support"}
    assert SPECS[0].description == "Hands the conversation over to billing. Knows prices."
    assert set(SPECS[0].parameters["properties"]) == {"message"}
    with pytest.raises(UserError, match=r"agent\.sub_agents: 'a b' and 'a_b' are both called by handoff_to_a_b"):
        handoff_tools({"a b": "", "a_b": ""}, "agent.sub_agents")


def test_calls_to_other_tools_are_left_to_them() -> None:
    taken = Handoffs().take("desk", TARGETS, [ToolCall("a", "search", "{}")])
    assert (taken.kind, taken.uses, taken.handoff) == ("go_on", (None,), None)


def test_vector_13_the_first_of_two_handoffs_in_one_batch_wins() -> None:
    calls = [ToolCall("a", "search", "{}"), to("billing"), to("Tech_Support", number=1)]
    taken = Handoffs().take("desk", TARGETS, calls)
    assert (taken.kind, taken.state.followed) == ("follow", 1)
    assert taken.handoff == Handoff("desk", "billing", "What does it cost?")
    results = [use.result for use in taken.uses if use is not None]
    assert [result.skipped for result in results] == [True, False, True]
    assert results[1].content == "handed over to billing"
    assert [use.call for use in taken.uses if use is not None] == calls


def test_vector_13_ten_are_followed_and_the_eleventh_stops() -> None:
    state = Handoffs()
    for number in range(10):
        taken = state.take("desk", TARGETS, [to("billing")])
        assert (taken.kind, taken.state.followed) == ("follow", number + 1)
        state = taken.state
    taken = state.take("desk", TARGETS, [to("billing"), ToolCall("a", "search", "{}")])
    assert (taken.kind, taken.limited, taken.state) == ("end", True, state)
    assert taken.handoff is not None
    assert [use is not None and use.result.skipped for use in taken.uses] == [True, True]


def test_a_handoff_that_is_not_followed_ends_the_run() -> None:
    taken = Handoffs(follow=False).take("desk", TARGETS, [to("billing")])
    assert (taken.kind, taken.limited, taken.state.followed) == ("end", False, 0)
    assert HandoffsConfig().max_handoffs == Handoffs().limit == 10


@pytest.mark.parametrize("arguments", ["{", "[]", '{"message": 3}', '"billing"', '{"message": "\ud800"}'])
def test_a_handoff_that_cannot_be_read_is_told_so_and_is_none(arguments: str) -> None:
    taken = Handoffs().take("desk", TARGETS, [to("billing", arguments), to("Tech_Support", "{}", 1)])
    assert taken.handoff == Handoff("desk", "Tech Support", "")
    assert taken.uses[0] is not None
    assert "`message`" in taken.uses[0].result.content
    alone = Handoffs().take("desk", TARGETS, [to("billing", arguments), ToolCall("a", "search", "{}")])
    assert (alone.kind, alone.uses[1]) == ("go_on", None)
    assert alone.uses[0] is not None


@given(st.lists(st.sampled_from(["search", "handoff_to_billing", "handoff_to_Tech_Support"]), max_size=6))
def test_invariant_4_a_turn_that_hands_over_leaves_no_call_without_a_result(names: list[str]) -> None:
    calls = [ToolCall(str(at), name, "{}") for at, name in enumerate(names)]
    taken = Handoffs().take("desk", TARGETS, calls)
    assert len(taken.uses) == len(calls)
    if taken.handoff is not None:
        assert [use.call for use in taken.uses if use is not None] == calls
        assert sum(not use.result.skipped for use in taken.uses if use is not None) == 1


def test_vector_13_an_empty_message_keeps_the_old_input() -> None:
    none = load_filter("none", "k")
    kept = conversation(Handoff("desk", "billing", " "), [SYSTEM], HISTORY, "How much?", none)
    assert kept == (SYSTEM, said("user", "How much?"))
    told = conversation(Handoff("desk", "billing", "What?"), [SYSTEM], HISTORY, "How much?", none)
    assert told == (SYSTEM, said("user", "What?"))
    seen = conversation(Handoff("desk", "billing", ""), [SYSTEM], HISTORY, "How much?", load_filter("all", "k"))
    assert seen == (SYSTEM, *HISTORY[1:])


def test_vector_13_filters() -> None:
    handoff = Handoff("desk", "billing", "What?")
    seen = conversation(handoff, [SYSTEM], HISTORY, "How much?", load_filter("all", "k"))
    assert seen == (SYSTEM, *HISTORY[1:], said("user", "What?"))
    seen = conversation(handoff, [], HISTORY, "How much?", load_filter("strip_tools", "k"))
    assert seen == (said("user", "How much?"), said("assistant", "Let me see."), said("user", "What?"))
    assert without_tools(HISTORY[4:]) == []
    for number, expected in ((2, HISTORY[4:]), (3, HISTORY[4:]), (4, HISTORY[2:]), (0, []), (99, HISTORY)):
        assert load_filter(f"last_n({number})", "k")(HISTORY) == expected == last(HISTORY, number)


def test_a_filter_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def first(history):\n    history[0]['content'] = 'x'\n    return history[:1]\ndef bad(history): return 7\n"
    )
    handoff = Handoff("desk", "billing", "What?")
    kept = HandoffsConfig(history_filter=f"{path}:first").filter("agent.handoffs")
    assert conversation(handoff, [], HISTORY, "", kept) == (said("user", "x"), said("user", "What?"))
    assert HISTORY[1]["content"] == "How much?"  # it is given a copy
    with pytest.raises(TypeError, match="expected a list of messages"):
        conversation(handoff, [], HISTORY, "", load_filter(f"{path}:bad", "k"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("strip_tool", "no such filter; did you mean 'strip_tools'?"),
        ("last_n", "no such filter; did you mean 'last_n(10)'?"),
        ("nowhere:f", "there is no module 'nowhere'"),
    ],
)
def test_what_is_no_filter_is_one_line(text: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        HandoffsConfig(history_filter=text).filter("agent.handoffs")
    assert str(caught.value).startswith("agent.handoffs.history_filter: ")
    assert line in str(caught.value)
