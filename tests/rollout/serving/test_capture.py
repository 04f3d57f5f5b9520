"""Whatever a program asks in whatever order, its row keeps every rule and each prompt can be read off it again."""

from __future__ import annotations

from array import array
from collections import defaultdict
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.findings import Known
from rollout.invariants import check_rows
from rollout.rows import to_table
from rollout.serving.capture import UNTOLD, Called, Capture
from rollout.trajectory import (
    Completion,
    FinishReason,
    Lease,
    Score,
    Seconds,
    Segment,
    StopReason,
    Task,
    ToolCall,
    Trajectory,
    VersionSpan,
)


@dataclass
class Program:
    """A program with conversations, some of which it forks, sums up or asks twice. Tokens are drawn, never rendered."""

    random: Random
    capture: Capture = field(default_factory=Capture)
    prompts: list[list[int]] = field(default_factory=list[list[int]])
    """Of its calls, in the order that they were asked,"""
    places: list[int] = field(default_factory=list[int])
    """and their segments."""

    def ids(self, least: int = 1) -> list[int]:
        return [self.random.randrange(5, 900) for _ in range(self.random.randrange(least, 6))]

    def ask(self, ids: list[int], messages: list[Any], calls: int = 0, **changes: Any) -> Called:
        """One call; `ids` and `messages` are those of its prompt."""
        number = len(self.prompts)
        sampled = self.ids()
        made = [ToolCall(f"c{number}.{one}", "add", "{}") for one in range(calls)]
        completion = Completion(
            FinishReason.STOP,
            ids=sampled,
            logprobs=[-0.5] * len(sampled),
            versions=(VersionSpan("0", 0, len(sampled)),),
            cached_tokens=0,
            sampled_tokens=len(sampled),
            prompt_ids=ids,
        )
        segments = (Segment("content", "said"), *(Segment("tool_call", "{}", call) for call in made))
        called = Called(tuple(messages), completion, segments, **changes)
        self.prompts.append(ids)
        self.places.append(self.capture.add(called))
        return called

    def after(self, called: Called, answered: int, more: str = "") -> tuple[list[int], list[Any]]:
        """The prompt that goes on behind a call, so many of whose calls have results."""
        calls = [part.call for part in called.segments if part.call is not None]
        entries = [
            {"id": call.id, "type": "function", "function": {"name": "add", "arguments": "{}"}} for call in calls
        ]
        spoken = {"role": "assistant", "content": "said", "tool_calls": entries}
        results = [{"role": "tool", "content": f"r {call.id}", "tool_call_id": call.id} for call in calls[:answered]]
        told = [{"role": "user", "content": [{"type": "text", "text": more}]}] if more else []
        ids = [*(called.completion.prompt_ids or ()), *(called.completion.ids or ()), *self.ids(0)]
        return ids, [*called.messages, spoken, *results, *told]


def program(seed: int = 0) -> Program:
    return Program(Random(seed))


def trajectory(capture: Capture) -> Trajectory:
    task = Task("t", ({"role": "user", "content": "Go."},))
    return Trajectory(
        lease=Lease("run", task, 0, 1, True, 7),
        resource="r",
        agent="agent",
        model="m",
        messages=capture.messages(),
        turns=capture.turns(),
        stop_reason=StopReason.DONE,
        score=Score(1.0),
        seconds=Seconds(total=1.0),
        started_at=1.0,
        finished_at=2.0,
    )


def findings(capture: Capture) -> list[Any]:
    (batch,) = to_table([trajectory(capture)]).combine_chunks().to_batches()
    return check_rows(batch, Known("run"))[0]


OPENING = [{"role": "system", "content": "You are."}, {"role": "user", "content": "Go."}]


def test_a_conversation_is_one_segment_and_holds_only_what_each_prompt_appended() -> None:
    one = program()
    first = one.ask([5, 6, 7], OPENING, calls=2)
    second = one.ask(*one.after(first, answered=2), calls=1)
    one.ask(*one.after(second, answered=1, more="And now?"))
    turns = one.capture.turns()
    assert [(turn.segment, turn.segment_break) for turn in turns] == [(0, None)] * 3
    assert list(turns[0].prompt_ids or ()) == [5, 6, 7]
    assert [use.result.content for turn in turns for use in turn.tool_uses] == ["r c0.0", "r c0.1", "r c1.0"]
    roles = [message["role"] for message in one.capture.messages()]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant", "tool", "user", "assistant"]
    assert findings(one.capture) == []


def test_every_other_prompt_is_a_segment_that_says_why_and_the_old_one_can_go_on() -> None:
    one = program()
    first = one.ask([5, 6, 7], OPENING, calls=1)
    below = one.ask([5, 9], OPENING[:1], agent="below")
    one.ask([5, 6, 7], OPENING)
    one.ask([5, 6, 7, 8], OPENING, compaction=True, trainable=False)
    one.ask([4, *one.after(first, 1)[0]], OPENING)
    one.ask(*one.after(first, answered=1))
    one.ask(*one.after(below, answered=0, more="More."), agent="below")
    assert one.places == [0, 1, 2, 3, 4, 0, 1]
    breaks = {turn.segment: turn.segment_break for turn in reversed(one.capture.turns())}
    assert breaks == {
        0: None,
        1: "another agent of the program: below",
        2: "the program asked the same again",
        3: "the program sums up the conversation",
        4: "the program told the history anew",
    }
    assert [turn.trainable for turn in one.capture.turns()] == [True] * 5 + [False, True]
    assert findings(one.capture) == []


def test_a_prompt_goes_on_in_the_longest_segment_that_it_continues() -> None:
    one = program()
    first = one.ask([5], OPENING)
    longer = one.ask([5, *(first.completion.ids or ()), 1], OPENING)
    assert one.places == [0, 0]
    one.ask([5], OPENING)
    one.ask([5, *(first.completion.ids or ()), 1, *(longer.completion.ids or ()), 2], OPENING)
    assert one.places[-1] == 0


def test_results_that_nobody_has_seen_say_so() -> None:
    one = program()
    first = one.ask([5, 6], OPENING, calls=2)
    one.ask(*one.after(first, answered=1), calls=1)
    uses = [use.result for turn in one.capture.turns() for use in turn.tool_uses]
    assert [(use.error, use.skipped) for use in uses] == [(None, False), (UNTOLD, True), (UNTOLD, True)]
    assert findings(one.capture) == []


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 9), min_size=1, max_size=25))
def test_whatever_a_program_asks_its_row_keeps_every_rule_and_tells_every_prompt(seed: int, steps: list[int]) -> None:
    one = program(seed)
    called = [one.ask(one.ids(), OPENING, calls=one.random.randrange(3))]
    for step in steps:
        old = one.random.choice(called)
        calls = one.random.randrange(3)
        if step < 6:
            called.append(one.ask(*one.after(called[-1] if step < 4 else old, one.random.randrange(3)), calls))
        elif step == 6:
            called.append(one.ask(list(old.completion.prompt_ids or ()), list(old.messages), calls))
        elif step == 7:
            called.append(one.ask(one.ids(), OPENING, calls, agent=f"below {seed % 3}"))
        else:
            ids = list(old.completion.prompt_ids or ())
            called.append(one.ask([*ids[: len(ids) // 2], *one.ids()], OPENING, calls, compaction=step == 8))
    assert findings(one.capture) == []
    held = defaultdict[int, list[int]](list)
    told: list[tuple[int, list[int]]] = []
    for turn in one.capture.turns():
        held[turn.segment] += turn.prompt_ids or ()
        told.append((turn.segment, list(held[turn.segment])))
        held[turn.segment] += turn.completion.ids or ()
    asked = sorted(zip(one.places, one.prompts, strict=True), key=lambda place: place[0])
    assert told == asked, "the order within a segment is that of the calls"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prompt_ids": None}, "the ids of its prompts"),
        ({"ids": None, "logprobs": None}, "returns token ids"),
        ({"logprobs": [0.0]}, "one logprob an id"),
        ({"sampled_tokens": 9}, "another number of tokens"),
    ],
)
def test_an_engine_that_hides_tokens_is_none(changes: dict[str, Any], why: str) -> None:
    good = Completion(FinishReason.STOP, ids=array("i", [1, 2]), logprobs=[0.0, 0.0], prompt_ids=[5])
    with pytest.raises(AssertionError, match=why):
        Capture().add(Called(OPENING, replace(good, **changes), ()))
