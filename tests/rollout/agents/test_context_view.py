"""Context management: when it is due, where it cuts, what the next prompt is made of."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.agents.context import (
    CLEARED,
    ContextConfig,
    ContextRule,
    Plan,
    compacted,
    due,
    leading_system,
    safe_cuts,
)
from rollout.template import BUNDLED, load_template
from rollout.trajectory import Message

SYSTEM: Message = {"role": "system", "content": "Be brief."}
LONG = "a result that is longer than what stands in its place, by a good deal of words"


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def calls(*ids: str) -> Message:
    made = [
        {"id": one, "type": "function", "function": {"name": "look", "arguments": f'{{"at": "{one}"}}'}} for one in ids
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


def result(call_id: str, text: str = LONG) -> Message:
    return {"role": "tool", "content": text, "tool_call_id": call_id, "name": "look"}


def words(messages: Sequence[Message]) -> int:
    """A prompt's length in the tests that need no tokenizer."""
    return sum(3 + len(message["content"].split()) for message in messages)


def talk(turns: int) -> list[Message]:
    """System, task and so many calls with their results."""
    said = [SYSTEM, user("What is there?")]
    for turn in range(turns):
        said += [calls(f"c{turn}"), result(f"c{turn}")]
    return said


def planned(view: Sequence[Message], rule: ContextRule, head: int = 1) -> Plan:
    plan = due(view, head, words(view), rule)
    assert plan is not None
    return plan


@pytest.mark.parametrize(
    ("threshold", "window", "limit"), [(0.8, 400_000, 320_000), (0.29, 100, 29), (0.8, 4_099, 3_279), (1.0, 7, 7)]
)
def test_vector_12_the_limit_is_the_floor_of_the_share(threshold: float, window: int, limit: int) -> None:
    rule = ContextConfig(compact_threshold=threshold).value(window)
    assert rule is not None
    assert rule.limit == limit
    view = talk(20)
    assert due(view, 1, limit - 1, rule) is None
    assert due(view, 1, limit, rule) is not None


def test_the_window_is_the_models_unless_it_is_given() -> None:
    given_window = ContextConfig(context_window=100).value(1000)
    assert given_window is not None
    assert given_window.limit == 80
    assert ContextConfig(strategy="none").value(1000) is None


def test_vector_12_with_no_more_than_keep_last_messages_nothing_gives_way() -> None:
    rule = ContextRule(1, keep_last=5)
    assert due(talk(2), 1, 99, rule) is None  # five behind the system message
    assert due([*talk(2), user("Go on.")], 1, 99, rule) is not None
    assert due([SYSTEM, *talk(2)], 2, 99, rule) is None


def test_vector_12_a_cut_moves_back_to_where_it_parts_no_pair() -> None:
    view = talk(4)
    assert planned(view, ContextRule(1, keep_last=3)).cut == 6
    assert planned(view, ContextRule(1, keep_last=4)).cut == 6
    batch = [SYSTEM, calls("a", "b", "c"), result("a"), result("b"), result("c"), user("Go on.")]
    assert due(batch, 1, 99, ContextRule(1, keep_last=2)) is None
    assert planned(batch, ContextRule(1, keep_last=1)).cut == 5


def test_pairs_are_found_by_call_not_by_neighbour() -> None:
    apart = [calls("a"), user("Yes."), result("a"), user("Thanks.")]
    assert safe_cuts(apart) == [0, 3, 4]
    again = [calls("c"), result("c"), calls("c"), result("c")]  # some endpoints begin anew
    assert safe_cuts(again) == [0, 2, 4]
    unanswered = [calls("a"), user("Never mind."), calls("b"), result("b")]
    assert safe_cuts(unanswered) == [0, 1, 2, 4]
    assert safe_cuts([user("x"), result("nobody"), user("y")]) == [0, 2, 3]
    assert safe_cuts([result("nobody"), user("y")]) == [0, 1, 2]


def test_a_head_grows_to_hold_its_pairs() -> None:
    plan = planned(talk(6), ContextRule(1, keep_last=2), head=3)
    assert (plan.head, plan.cut) == (4, 12)


def test_a_summary_stands_where_the_messages_were() -> None:
    view = talk(5)
    plan = planned(view, ContextRule(1, keep_last=4))
    system, asked = plan.request
    assert (system["role"], asked["role"]) == ("system", "user")
    assert 'calls look({"at": "c0"})' in asked["content"]
    assert f"tool look: {LONG}" in asked["content"]
    assert '{"at": "c3"}' not in asked["content"]
    made = compacted(plan, words, " Three places were seen. ")
    assert made is not None
    assert made.view[0] == SYSTEM
    assert made.view[1] == user("[Summary of 7 earlier messages]\nThree places were seen.")
    assert made.view[2:] == tuple(view[-4:])
    record = made.record
    assert (record.strategy, record.cut_index, record.num_messages) == ("summary", 8, 7)
    assert (record.tokens_before, record.tokens_after) == (words(view), words(made.view))


def test_trimming_leaves_the_head_and_the_rest() -> None:
    view = talk(5)
    made = compacted(planned(view, ContextRule(1, keep_last=4, strategy="trim"), head=2), words)
    assert made is not None
    assert made.view == (*view[:2], *view[-4:])
    assert (made.record.strategy, made.record.num_messages) == ("trim", 6)


def test_editing_clears_old_results_and_nothing_else() -> None:
    view = talk(5)
    view[3] = result("c0", "short")
    rule = ContextRule(1, keep_last=4, strategy="edit")
    made = compacted(planned(view, rule), words)
    assert made is not None
    assert [message["content"] for message in made.view if message["role"] == "tool"] == [
        "short",
        CLEARED,
        CLEARED,
        LONG,
        LONG,
    ]
    assert [message | {"content": ""} for message in made.view] == [message | {"content": ""} for message in view]
    assert made.record.num_messages == 2
    assert view[5]["content"] == LONG  # the record keeps it
    assert due(made.view, 1, 99, rule) is None  # nothing more to clear


@pytest.mark.parametrize("summary", [None, "", " \n", "much longer than what was there " * 100])
def test_a_summary_that_failed_stops_the_run_or_trims(summary: str | None) -> None:
    view = talk(5)
    assert compacted(planned(view, ContextRule(1, keep_last=4)), words, summary) is None
    made = compacted(planned(view, ContextRule(1, keep_last=4, on_failure="trim")), words, summary)
    assert made is not None
    assert made.record.strategy == "trim"
    assert made.view == (SYSTEM, *view[-4:])


def test_an_edit_that_saves_nothing_may_trim_where_it_parts_no_pair() -> None:
    view = talk(5)

    def by_messages(messages: Sequence[Message]) -> int:
        return len(messages)

    rule = ContextRule(1, keep_last=3, strategy="edit", on_failure="trim")
    plan = due(view, 1, len(view), rule)
    assert plan is not None
    assert plan.cut == 9  # between a call and its result: an edit does not mind
    made = compacted(plan, by_messages)
    assert made is not None
    assert made.view == (SYSTEM, *view[-4:])
    assert (made.record.cut_index, made.record.num_messages) == (8, 7)


def test_a_run_with_its_segments_is_compacted_no_more() -> None:
    rule = ContextRule(1, keep_last=2, max_segments=2)
    assert due(talk(5), 1, 99, rule, segments=1) is not None
    assert due(talk(5), 1, 99, rule, segments=2) is None


def test_with_the_real_lengths_of_a_real_template(tmp_path: Path) -> None:
    template = load_template(BUNDLED)

    def tokens(messages: Sequence[Message]) -> int:
        return len(template.opening(messages, ()))

    view = talk(12)
    length = tokens(view)
    rule = ContextConfig(keep_last=4, compact_threshold=0.8).value(length)
    assert rule is not None
    plan = due(view, leading_system(view), length, rule)
    assert plan is not None
    made = compacted(plan, tokens, "Places were seen.")
    assert made is not None
    assert made.record.tokens_after == tokens(made.view) < rule.limit <= length
    assert due(made.view, 1, made.record.tokens_after, rule) is None


@st.composite
def views(draw: st.DrawFn) -> list[Message]:
    """Conversations whose results may come late, not at all or for nobody, under ids that come again."""
    view: list[Message] = [SYSTEM] * draw(st.integers(0, 2))
    open_calls: list[str] = []
    for _ in range(draw(st.integers(0, 25))):
        kind = draw(st.sampled_from(["user", "call", "result", "stray"]))
        if kind == "call":
            ids = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3))
            view.append(calls(*ids))
            open_calls += ids
        elif kind == "result" and open_calls:
            view.append(result(open_calls.pop(draw(st.integers(0, len(open_calls) - 1)))))
        elif kind == "stray":
            view.append(result("nobody"))
        else:
            view.append(user(f"said {len(view)}"))
    return view


def pairs(view: Sequence[Message]) -> list[tuple[int, int]]:
    """Call and result by index, each result with the latest call of its id that has none."""
    found: list[tuple[int, int]] = []
    waiting: list[tuple[str, int]] = []
    for at, message in enumerate(view):
        waiting += [(str(call["id"]), at) for call in message.get("tool_calls", [])]
        own = [entry for entry in waiting if message["role"] == "tool" and entry[0] == message.get("tool_call_id")]
        if own:
            waiting.remove(own[-1])
            found.append((own[-1][1], at))
    return found


rules = st.builds(
    ContextRule,
    limit=st.integers(1, 60),
    keep_last=st.integers(1, 8),
    strategy=st.sampled_from(["summary", "trim", "edit"]),
    on_failure=st.sampled_from(["stop", "trim"]),
)


@given(views())
def test_no_safe_cut_parts_a_pair_and_every_other_cut_parts_something(view: list[Message]) -> None:
    safe = safe_cuts(view)
    assert safe[0] == 0
    assert safe[-1] == len(view)
    for call, answer in pairs(view):
        assert not any(call < cut <= answer for cut in safe)
    for cut in set(range(len(view) + 1)) - set(safe):
        stray = view[cut]["role"] == "tool" and cut not in [answer for _, answer in pairs(view)]
        assert stray or any(call < cut <= answer for call, answer in pairs(view))


@given(views(), rules, st.one_of(st.none(), st.just("It went well.")))
def test_a_new_view_keeps_order_pairs_and_the_last_messages(
    view: list[Message], rule: ContextRule, summary: str | None
) -> None:
    before = [dict(message) for message in view]
    plan = due(view, leading_system(view), words(view), rule)
    made = None if plan is None else compacted(plan, words, summary)
    assert [dict(message) for message in view] == before
    if plan is None or made is None:
        return
    record = made.record
    assert record.tokens_after < record.tokens_before == words(view)
    assert made.view[: plan.head] == tuple(view[: plan.head])
    assert made.view[-rule.keep_last :] == tuple(view[-rule.keep_last :])
    assert len(view) - record.cut_index >= rule.keep_last
    if record.strategy == "edit":
        assert pairs(made.view) == pairs(view)
    else:
        left = [message for message in made.view if not message["content"].startswith("[Summary of")]
        assert left == [*view[: plan.head], *view[record.cut_index :]]
        assert record.cut_index in safe_cuts(view)
        assert record.num_messages == record.cut_index - plan.head


@given(views(), rules)
def test_below_the_limit_nothing_happens_once_or_again(view: list[Message], rule: ContextRule) -> None:
    assert due(view, leading_system(view), rule.limit - 1, rule) is None
    plan = due(view, leading_system(view), words(view), rule)
    made = None if plan is None else compacted(plan, words, "It went well.")
    if made is not None and made.record.tokens_after < rule.limit:
        assert due(made.view, leading_system(view), made.record.tokens_after, rule) is None
