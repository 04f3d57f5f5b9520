"""What is told of a completion while it is sampled, against what is recorded of it: any text, cut anywhere."""

from fakes import TEMPLATE
from hypothesis import given
from hypothesis import strategies as st

from rollout.parsing import FORMATS
from rollout.segments import hermes
from rollout.stream_reading import Detokenizer, MessageReader, TokenReader
from rollout.streaming import (
    CallComplete,
    CallDelta,
    CallStarted,
    Delta,
    ReasoningDelta,
    SegmentDone,
    StreamEvent,
    TextDelta,
)
from rollout.trajectory import Segment, ToolCall

CALL = '<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'
PARTS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    CALL,
    "a b",
    " ",
    "\n",
    "é",
    "😀",
    "<",
    "tool",
    "<|im_end|>",
)
texts = st.lists(st.sampled_from(PARTS) | st.text(max_size=5), max_size=12).map("".join)


def cut(ids: list[int], data: st.DataObject) -> list[list[int]]:
    places = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    return [ids[start:end] for start, end in zip([0, *places], [*places, len(ids)], strict=True)]


def told(ids: list[list[int]], segments: tuple[Segment, ...], turn: int = 0) -> list[StreamEvent]:
    reader = TokenReader(TEMPLATE, FORMATS["hermes"].open(turn))
    events = [event for piece in ids for event in reader.feed(Delta(piece))]
    return [*events, *reader.finish(segments)]


def rebuilt(events: list[StreamEvent]) -> dict[int, Segment | ToolCall]:
    """The stretches by place, from the events that say that they are over; each is over once, deltas come before it."""
    found: dict[int, Segment | ToolCall] = {}
    for event in events:
        assert isinstance(event, TextDelta | ReasoningDelta | CallStarted | SegmentDone | CallComplete)
        assert event.place == len(found), "one stretch after the other"
        if isinstance(event, SegmentDone):
            found[event.place] = event.segment
        elif isinstance(event, CallComplete):
            found[event.place] = event.call
    return found


@given(texts, st.data())
def test_the_events_of_a_completion_are_its_segments_however_its_ids_come(text: str, data: st.DataObject) -> None:
    ids = TEMPLATE.encode(text)
    segments = hermes(TEMPLATE.decode(ids), 0)
    events = told(cut(ids, data), segments)
    assert [*rebuilt(events).values()] == [part.call or part for part in segments]
    for place, part in enumerate(segments):
        said = [one.text for one in events if isinstance(one, TextDelta | ReasoningDelta) and one.place == place]
        assert part.call is not None or "".join(said) == part.text


@given(st.binary(max_size=12), texts, st.data())
def test_ids_that_are_no_text_are_told_as_they_are_decoded_together(raw: bytes, text: str, data: st.DataObject) -> None:
    some = TEMPLATE.encode(text)
    ids = data.draw(st.permutations([*some, *(number for byte in raw for number in TEMPLATE.encode(chr(byte)))]))
    detokenizer = Detokenizer(TEMPLATE)
    shown = "".join(detokenizer.feed(piece) for piece in cut(ids, data))
    assert TEMPLATE.decode(ids).startswith(shown)


def test_deltas_come_as_soon_as_they_are_certain_and_calls_as_soon_as_they_are_whole() -> None:
    ids = TEMPLATE.encode(f"<think>One more.</think>{CALL}{CALL}")
    reader = TokenReader(TEMPLATE, FORMATS["hermes"].open(3))
    events = [(number, event) for number, token in enumerate(ids) for event in reader.feed(Delta([token]))]
    calls = [(number, event.call.id) for number, event in events if isinstance(event, CallComplete)]
    assert [name for _, name in calls] == ["call_3_0", "call_3_1"]
    assert calls[0][0] < len(ids) - 10, "long before the end"
    thought = [number for number, event in events if isinstance(event, ReasoningDelta)]
    assert len(thought) > 1
    assert all(event.sampling for _, event in events if isinstance(event, CallComplete))


def test_a_reader_without_an_incremental_parser_tells_all_at_the_end() -> None:
    text = f"Well.{CALL}"
    ids, segments = TEMPLATE.encode(text), hermes(text, 0)
    reader = TokenReader(TEMPLATE, None)
    assert [*reader.feed(Delta(ids))] == []
    last = ToolCall("call_0_0", "add", '{"amount": 1}')
    text_done = [TextDelta(0, "Well."), SegmentDone(0, segments[0])]
    assert [*reader.finish(segments)] == [*text_done, CallStarted(1), CallComplete(1, last, sampling=False)]


def test_what_was_recorded_otherwise_is_told_again_as_it_was_recorded() -> None:
    reader = TokenReader(TEMPLATE, FORMATS["hermes"].open(0))
    reader.feed(Delta(TEMPLATE.encode(f"{CALL}<think>x")))
    other = (Segment("content", "quite another"),)
    assert [*reader.finish(other)] == [TextDelta(0, "quite another"), SegmentDone(0, other[0])]


def test_an_end_of_turn_is_told_only_where_something_follows_it() -> None:
    end = TEMPLATE.encode("<|im_end|>")
    detokenizer = Detokenizer(TEMPLATE)
    assert detokenizer.feed([*TEMPLATE.encode("done"), *end]) == "done"
    assert detokenizer.feed(end) == ""
    assert detokenizer.feed(TEMPLATE.encode(" more")) == "<|im_end|><|im_end|> more"


def test_reasoning_that_was_never_opened_is_told_as_content_and_corrected() -> None:
    text = "hm</think>yes"
    events = told([TEMPLATE.encode(text)[:1], TEMPLATE.encode(text)[1:]], hermes(text, 0))
    assert SegmentDone(0, Segment("reasoning", "hm")) in events


def test_a_chat_endpoint_s_call_is_whole_when_the_next_one_begins() -> None:
    reader = MessageReader(2)
    feed = [
        *reader.feed(Delta(reasoning="so")),
        *reader.feed(Delta(calls=(CallDelta(0, "a", "add", ""), CallDelta(0, arguments='{"amount"')))),
        *reader.feed(Delta(calls=(CallDelta(0, arguments=": 1}"),))),
        *reader.feed(Delta(calls=(CallDelta(1, None, "submit"),))),
    ]
    first, second = ToolCall("a", "add", '{"amount": 1}'), ToolCall("call_2_1", "submit", "{}")
    assert feed == [ReasoningDelta(0, "so"), CallStarted(1), CallComplete(1, first), CallStarted(2)]
    segments = (Segment("reasoning", "so"), Segment("tool_call", "", first), Segment("tool_call", "{}", second))
    done = [SegmentDone(0, segments[0]), CallComplete(2, second, sampling=False)]
    assert [*reader.finish(segments)] == done
