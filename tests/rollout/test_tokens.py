"""The ledger: what was sampled is what the next prompt holds, whatever the chat template would make of it."""

from array import array
from collections.abc import Sequence
from functools import partial

import pytest
from fakes import END_OF_TEXT, IM_END, TEMPLATE, TOKENIZER, completion, template
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.segments import hermes
from rollout.template import ChatTemplate
from rollout.tokens import MessageLedger, TokenLedger
from rollout.trajectory import Completion, FinishReason, Message

USER: Message = {"role": "user", "content": "Go."}
NAMES = ("qwen3", "looks_back", "roles_end_turns", "thinks_first")


def tool(content: str) -> Message:
    return {"role": "tool", "content": content, "tool_call_id": "call_0_0", "name": "add"}


def ledger(chosen: ChatTemplate = TEMPLATE) -> TokenLedger:
    return TokenLedger(chosen, partial(hermes, in_reasoning=chosen.opens_with_reasoning))


def test_turns_append_and_the_rows_parts_add_up_to_the_last_prompt() -> None:
    book = ledger()
    book.extend([USER], ())
    parts = list[int]()
    for turn in range(3):
        book.prompt()
        sampled = completion([*TEMPLATE.encode(f"turn {turn}"), IM_END], prompt_tokens=len(book.prompt()[0]))
        recorded = book.record(sampled)
        assert recorded.prompt_ids is not None
        parts += [*recorded.prompt_ids, *(sampled.ids or ())]
        book.extend([tool(str(turn))], ())
    assert list(book.prompt()[0])[: len(parts)] == parts
    assert TOKENIZER.decode(parts, skip_special_tokens=False).count("<|im_end|>") == 6


@pytest.mark.parametrize("name", ["qwen3", "thinks_first"])
def test_invariant_3_a_template_that_rewrites_history_has_none_to_rewrite(name: str) -> None:
    chosen = template(name)
    book = ledger(chosen)
    book.extend([USER], ())
    said = '<think>\n  thought </think><tool_call>{"name":"add",  "arguments":{"amount":1}}</tool_call>'
    ids = [*chosen.encode(said), IM_END]
    opening = list(book.prompt()[0])
    message = book.record(completion(ids)).message
    book.extend([tool("3"), {"role": "user", "content": "And now?"}], ())
    prompt, messages = book.prompt()
    assert list(prompt[: len(opening) + len(ids)]) == [*opening, *ids]
    rendered = chosen.opening(messages, ())
    assert message["role"] == "assistant"
    assert rendered[: len(opening) + len(ids)] != [*opening, *ids], "rendering again would have lost the sampled ids"


@pytest.mark.parametrize("end", [[IM_END], [END_OF_TEXT], []])
def test_a_turn_is_ended_once_whether_the_policy_ended_it_or_not(end: list[int]) -> None:
    chosen = template("qwen3")
    book = ledger(chosen)
    book.extend([USER], ())
    book.record(completion([*chosen.encode("said"), *end], FinishReason.STOP if end else FinishReason.LENGTH))
    book.extend([USER], ())
    text = TOKENIZER.decode(list(book.prompt()[0]), skip_special_tokens=False)
    ends = text.split("said")[1].split("<|im_start|>")[0].strip()
    assert ends == (TOKENIZER.id_to_token(end[0]) if end else "<|im_end|>")


def test_a_turn_in_which_nothing_was_sampled_is_ended_too() -> None:
    book = ledger()
    book.extend([USER], ())
    recorded = book.record(completion([]))
    assert recorded.segments == ()
    book.extend([USER], ())
    text = TOKENIZER.decode(list(book.prompt()[0]), skip_special_tokens=False)
    assert "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user" in text


def test_a_prompt_that_is_kept_does_not_change_later() -> None:
    book = ledger()
    book.extend([USER], ())
    ids, messages = book.prompt()
    before, spoken = list(ids), len(messages)
    view = memoryview(array("i", ids)) if not isinstance(ids, array) else memoryview(ids)
    book.record(completion([5, IM_END]))
    book.extend([USER], ())
    assert (list(ids), len(messages), list(view)) == (before, spoken, before)


@pytest.mark.parametrize(
    ("given_ids", "changes"),
    [
        ([5, 6], {"prompt_tokens": 1}),
        ([5, 6], {"logprobs": [0.0]}),
        ([5, 6], {"sampled_tokens": 3}),
        (None, {}),
    ],
)
def test_invariant_3_what_the_engine_counts_otherwise_is_refused(
    given_ids: list[int] | None, changes: dict[str, object]
) -> None:
    book = ledger()
    book.extend([USER], ())
    with pytest.raises(AssertionError):
        book.record(Completion(FinishReason.STOP, given_ids, **changes))  # pyright: ignore[reportArgumentType]


SAMPLED = st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=12)
END = st.sampled_from([[], [IM_END], [END_OF_TEXT]])
SAID = st.lists(st.tuples(st.sampled_from(["user", "tool"]), st.text(max_size=6)), min_size=1, max_size=3).map(sorted)


@settings(max_examples=50)
@given(st.sampled_from(NAMES), st.lists(st.tuples(SAMPLED, END, SAID), min_size=1, max_size=5))
def test_invariant_3_every_prompt_starts_with_the_last_prompt_and_what_was_sampled(
    name: str, turns: Sequence[tuple[list[int], list[int], list[tuple[str, str]]]]
) -> None:
    book = ledger(template(name))
    book.extend([USER], ())
    row, mask = list[int](), list[int]()
    for sampled, end, said in turns:
        prompt = list(book.prompt()[0])
        assert prompt[: len(row)] == row
        recorded = book.record(completion([*sampled, *end], prompt_tokens=len(prompt)))
        assert recorded.completion.ids is not None and recorded.prompt_ids is not None
        row += [*recorded.prompt_ids, *recorded.completion.ids]
        mask += [0] * len(recorded.prompt_ids) + [1] * len(recorded.completion.ids)
        assert row == [*prompt, *sampled, *end]
        book.extend([tool(text) if role == "tool" else {"role": "user", "content": text} for role, text in said], ())
    assert sum(mask) == sum(len(sampled) + len(end) for sampled, end, _ in turns)
    assert list(book.prompt()[0])[: len(row)] == row


def parsed(prompt: Sequence[int] | None, ids: Sequence[int] | None) -> Completion:
    return Completion(FinishReason.STOP, ids, message={"role": "assistant", "content": "ok"}, prompt_ids=prompt)


def test_an_endpoint_that_renders_anew_opens_a_segment_and_says_so() -> None:
    book = MessageLedger()
    book.extend([USER], ())
    first = book.record(parsed([1, 2], [3]))
    exact = book.record(parsed([1, 2, 3, 4], [5]))
    anew = book.record(parsed([1, 9, 3, 4, 5], [6]))
    assert (first.prompt_ids, first.segment, first.segment_break) == (array("i", [1, 2]), 0, None)
    assert (exact.prompt_ids, exact.segment, exact.segment_break) == (array("i", [4]), 0, None)
    assert (anew.prompt_ids, anew.segment) == (array("i", [1, 9, 3, 4, 5]), 1)
    assert anew.segment_break is not None


def test_turns_without_ids_share_no_segment_with_turns_that_have_them() -> None:
    book = MessageLedger()
    turns = [book.record(parsed(*given_ids)) for given_ids in [([1], [2]), (None, None), ([1, 2], None), ([1, 2], [3])]]
    assert [turn.segment for turn in turns] == [0, 1, 1, 2]
    assert [turn.segment_break is not None for turn in turns] == [False, True, False, True]
    assert [turn.prompt_ids is None for turn in turns] == [False, True, True, False]


def test_an_endpoint_without_ids_gives_rows_without_ids() -> None:
    book = MessageLedger()
    book.extend([USER], ())
    assert book.prompt() == ((), (USER,))
    recorded = book.record(parsed(None, None))
    assert (recorded.prompt_ids, recorded.segment, recorded.segment_break) == (None, 0, None)


def test_an_endpoints_message_is_read_into_segments() -> None:
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    message: Message = {"role": "assistant", "content": "said", "reasoning_content": "thought", "tool_calls": [call]}
    recorded = MessageLedger().record(Completion(FinishReason.STOP, message=message))
    assert [part.kind for part in recorded.segments] == ["reasoning", "content", "tool_call"]
    assert recorded.segments[2].call is not None
    assert recorded.segments[2].call.id == "x"
