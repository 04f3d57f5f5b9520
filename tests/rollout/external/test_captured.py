"""A program's prompts go on from what was sampled, its limits hold for all its calls together, and its row is sound."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from fakes import IM_END, TEMPLATE, template

from rollout.errors import ResourceDown
from rollout.external.captured import CapturedEpisode
from rollout.findings import Known
from rollout.invariants import check_rows
from rollout.parsing import as_message
from rollout.rows import to_table
from rollout.segments import hermes
from rollout.serving.capture import Called
from rollout.template import ChatTemplate
from rollout.trajectory import (
    Completion,
    FinishReason,
    Lease,
    Limits,
    Score,
    Seconds,
    Segment,
    StopReason,
    Task,
    ToolSpec,
    Trajectory,
    VersionSpan,
)
from rollout.wire.errors import Kind, Refused

ASK: list[Any] = [{"role": "system", "content": "You are."}, {"role": "user", "content": "Go."}]
LIMITS = Limits(max_turns=20, max_tokens=1000, turn_tokens=60)
THINKS = '<think>\nOne  more.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a":1,   "b":2}}\n</tool_call>'


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def episode(chosen: ChatTemplate = TEMPLATE, clock: Clock | None = None, **changes: Any) -> CapturedEpisode:
    limits = replace(LIMITS, **changes)
    return CapturedEpisode(chosen, limits, 60.0, model="m", clock=clock or Clock())


def ask(
    one: CapturedEpisode, messages: Sequence[Any], says: str = "Done.", ended: bool = True, **more: Any
) -> tuple[Called, dict[str, Any]]:
    """What a gateway does with one call; also the answer as a program keeps it."""
    number, tools = one._turns, more.pop("tools", ())
    prompt = one.prompt(messages, tools, more.get("variables", {}))
    with one.call(None) as room:
        ids = array("i", [*TEMPLATE.encode(says), *([IM_END] if ended else [])])
        assert room.tokens is not None and len(ids) <= room.tokens
        completion = Completion(
            FinishReason.STOP,
            ids=ids,
            logprobs=[-0.1] * len(ids),
            versions=(VersionSpan("0", 0, len(ids)),),
            prompt_tokens=len(prompt),
            prompt_ids=prompt,
        )
        called = Called(messages, completion, hermes(says, number), tools=tools, **more)
        one.keep(called)
    told: Any = as_message(called.segments)
    told.pop("reasoning_content", None)
    return called, {**told, "content": told["content"].strip() or None}


def findings(one: CapturedEpisode) -> list[Any]:
    trajectory = Trajectory(
        lease=Lease("run", Task("t", tuple(ASK)), 0, 1, True, 7),
        resource="r",
        agent="agent",
        model="m",
        messages=one.messages,
        turns=one.turns,
        stop_reason=one.stop or StopReason.DONE,
        score=Score(1.0),
        seconds=Seconds(total=1.0),
        started_at=1.0,
        finished_at=2.0,
    )
    (batch,) = to_table([trajectory]).combine_chunks().to_batches()
    return check_rows(batch, Known("run", limits=one.limits))[0]


def result(message: dict[str, Any], text: str = "3") -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": message["tool_calls"][0]["id"]}


@pytest.mark.parametrize("name", ["bundled", "qwen3", "interleaved", "thinks_at_will"])
def test_what_was_sampled_stands_in_the_next_prompt_as_it_was_sampled(name: str) -> None:
    """Templates that drop earlier reasoning or write arguments anew change nothing in a conversation that goes on."""
    one = episode(TEMPLATE if name == "bundled" else template(name))
    first, said = ask(one, ASK, THINKS)
    history = [*ASK, said, result(said)]
    second, again = ask(one, history, THINKS, ended=False)
    third, _ = ask(one, [*history, again, result(again, "4"), {"role": "user", "content": "And?"}])
    for before, after in ((first, second), (second, third)):
        held = [*(before.completion.prompt_ids or ()), *(before.completion.ids or ())]
        assert list(after.completion.prompt_ids or ())[: len(held)] == held
    assert [(turn.segment, turn.segment_break) for turn in one.turns] == [(0, None)] * 3
    assert [use.result.content for turn in one.turns for use in turn.tool_uses] == ["3", "4"]
    assert one.answer == "Done."
    assert findings(one) == []


def test_other_conversations_are_segments_and_the_longest_goes_on() -> None:
    one = episode()
    _, said = ask(one, ASK, THINKS)
    history = [*ASK, said, result(said)]
    ask(one, history, "Yes.")
    below: list[Any] = [{"role": "user", "content": "Look it up."}]
    _, looked = ask(one, below, "Found.", agent="below")
    ask(one, history, "No.")  # a retry that is answered otherwise: both go on
    ask(one, [*history, {"role": "assistant", "content": "No."}, {"role": "user", "content": "Why?"}])
    ask(one, [*history, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}])
    ask(one, [*below, looked, {"role": "user", "content": "More."}], agent="below")
    ask(one, [{"role": "user", "content": "Sum up."}], compaction=True)
    turns = [(turn.segment, turn.segment_break, turn.segments[-1].text) for turn in one.turns]
    assert turns[1][2] == "Yes." and turns[2][2] == "Done."
    assert [segment for segment, _, _ in turns] == [0, 0, 0, 1, 1, 2, 2, 3]
    assert [why for _, why, _ in turns if why] == [
        "another agent of the program: agent.2",
        "the program asked the same again",
        "the program sums up the conversation",
    ]
    assert findings(one) == []


def test_other_tools_or_a_history_that_was_changed_are_rendered_anew() -> None:
    one = episode()
    _, said = ask(one, ASK, "Yes.")
    more = {"role": "user", "content": "More."}
    ask(one, [*ASK, said, more], tools=(ToolSpec("add", "Adds.", {"type": "object", "properties": {}}),))
    ask(one, [*ASK, {"role": "assistant", "content": "No."}, more])
    assert [turn.segment for turn in one.turns] == [0, 1, 2]
    assert one.turns[2].segment_break == "the program told the history anew"
    assert findings(one) == []


def test_a_prompt_that_is_only_counted_costs_nothing() -> None:
    one = episode(max_turns=1)
    for _ in range(3):
        one.prompt(ASK, (), {})
    ask(one, ASK)
    assert len(one.turns) == 1


def test_calls_at_the_same_time_stay_within_the_limits_together() -> None:
    one = episode(max_turns=3, max_tokens=60, turn_tokens=40)
    with one.call(None) as first, one.call(1000) as second:
        assert (first.tokens, second.tokens) == (40, 20)
        with pytest.raises(Refused, match="max_tokens \\(60 sampled tokens\\)"), one.call(5):
            pass
    assert one.stop is StopReason.MAX_TOKENS
    other = episode(max_turns=1)
    with other.call(7) as room:
        assert room.tokens == 7
        with pytest.raises(Refused, match="max_turns \\(1 model calls\\)") as refused, other.call(5):
            pass
    assert refused.value.status == 403, "no client asks again"
    with pytest.raises(Refused):
        other.prompt(ASK, (), {})


def test_no_call_begins_behind_the_deadline_or_the_end() -> None:
    clock = Clock()
    one = episode(clock=clock)
    clock.now = 59.0
    with one.call(None) as room:
        assert room.seconds == 1.0
    clock.now = 60.0
    with pytest.raises(Refused, match="its time"), one.call(None):
        pass
    assert one.stop is StopReason.TIMEOUT
    other = episode()
    called, _ = ask(other, ASK)
    other.close()
    other.keep(called)
    assert len(other.turns) == 1
    with pytest.raises(Refused, match="over"):
        other.prompt(ASK, (), {})


@pytest.mark.parametrize(
    ("error", "broken", "full"),
    [
        (ResourceDown("no engine"), "ResourceDown: no engine", False),
        (Refused(Kind.OVERLOADED, "no engine"), "Refused: no engine", False),
        (Refused(Kind.TIMEOUT, "no answer"), "Refused: no answer", False),
        (Refused(Kind.INVALID, "too long", code="context_length_exceeded"), None, True),
        (Refused(Kind.INVALID, "no such tool"), None, False),
    ],
)
def test_whose_doing_it_is_that_a_call_failed_is_known_until_one_succeeds(
    error: Exception, broken: str | None, full: bool
) -> None:
    one = episode()
    with pytest.raises(type(error)), one.call(None):
        raise error
    assert (one.broken and one.broken.message, one.full) == (broken, full)
    assert not one.called
    ask(one, ASK)
    assert (one.broken, one.full, one.called) == (None, False, True)


def test_a_prompt_that_does_not_fit_is_known_and_the_end_of_the_episode_is_no_failure_of_the_model() -> None:
    one = replace(episode(), context=10)
    one.prompt(ASK, (), {})
    assert one.full
    one = replace(episode(clock=(clock := Clock())), context=1000)
    one.prompt(ASK, (), {})
    assert not one.full
    with pytest.raises(Refused), one.call(None):
        clock.now = 60.0
        raise Refused(Kind.TIMEOUT, "no answer within 60 s")
    assert (one.stop, one.broken) == (StopReason.TIMEOUT, None)


def test_an_agent_that_is_not_trained_leaves_turns_that_are_not() -> None:
    one = replace(episode(), trainable=False)
    ask(one, ASK)
    assert [turn.trainable for turn in one.turns] == [False]
    assert one.turns[0].segments == (Segment("content", "Done."),)
