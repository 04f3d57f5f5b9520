"""Hints in the words of everybody who gives them, and what an engine makes of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import UserError
from rollout.serving.hints import Hints, HintsConfig, episode_hints, read_hints, vllm_priority

PRIORITIES = st.integers(-60, 60) | st.integers(-(2**31) + 1, 2**31 - 1)
TIERS = st.integers(0, 10) | st.integers(0, 2**32 - 1)


def agent(**hints: Any) -> dict[str, Any]:
    return {"nvext": {"agent_hints": hints}}


def test_who_says_nothing_has_no_hints() -> None:
    assert read_hints({"messages": []}, {"content-type": "application/json"}) == Hints()
    assert vllm_priority(Hints(), HintsConfig()) == 0


def test_dynamos_extensions() -> None:
    body = agent(priority=5, strict_priority=1, osl=300, speculative_prefill=True, of_a_newer_program=1)
    body["nvext"] |= {"cache_salt": "team", "annotations": []}
    assert read_hints(body, {}) == Hints(5, 1, 300, True, "team")
    assert read_hints(agent(latency_sensitivity=2.6), {}).priority == 3
    assert read_hints(agent(latency_sensitivity=2.6, priority=1), {}).priority == 1
    headers = {"X-Dynamo-Request-Priority": "7", "x-dynamo-request-strict-priority": "2", "X-Tenant-ID": "other"}
    assert read_hints(body, headers) == Hints(7, 2, 300, True, "other")
    closed = {"nvext": {"session_control": {"session_id": "s", "action": "close"}}}
    assert read_hints(closed, {}) == Hints(session="s", final=True)


def test_vllms_own_priority_counts_the_other_way_and_only_where_nothing_else_is_said() -> None:
    assert read_hints({"priority": 3, "cache_salt": "s"}, {}) == Hints(priority=-3, cache_salt="s")
    assert read_hints({"priority": 3}, {"X-Vllm-Priority": "-4"}).priority == 4
    assert read_hints({"priority": 3, **agent(priority=1)}, {"X-Vllm-Priority": "-4"}).priority == 1


@pytest.mark.parametrize(
    ("headers", "session", "parent"),
    [
        ({"X-Rollout-Session-Id": "a", "X-Rollout-Parent-Session-Id": "b", "x-session-id": "z"}, "a", "b"),
        ({"x-dynamo-session-id": "a", "x-dynamo-parent-session-id": "b", "thread-id": "z"}, "a", "b"),
        ({"x-claude-code-session-id": "s"}, "s", None),
        ({"x-claude-code-session-id": "s", "x-claude-code-agent-id": "a"}, "s/a", "s"),
        (
            {
                "x-claude-code-session-id": "s",
                "x-claude-code-agent-id": "a",
                "x-claude-code-parent-agent-id": "p",
                "thread-id": "z",
            },
            "s/a",
            "s/p",
        ),
        ({"thread-id": "t", "x-codex-parent-thread-id": "p", "x-session-id": "z"}, "t", "p"),
        ({"X-Session-ID": "o", "x-parent-session-id": "p"}, "o", "p"),
        ({"x-parent-session-id": "p", "x-session-id": " "}, None, None),
    ],
)
def test_sessions_in_the_headers_of_every_program(headers: dict[str, str], session: str, parent: str | None) -> None:
    hints = read_hints({}, headers)
    assert (hints.session, hints.parent) == (session, parent)


def test_a_session_ends_and_is_summed_up() -> None:
    assert read_hints({}, {"x-dynamo-session-final": "True"}).final
    assert not read_hints({}, {"x-rollout-session-final": "no"}).final
    assert read_hints({}, {"x-codex-turn-metadata": '{"request_kind": "compaction"}'}).compaction
    for said in ('{"request_kind": "turn"}', "[]", "{", "[" * 100_000):
        assert not read_hints({}, {"x-codex-turn-metadata": said}).compaction


@pytest.mark.parametrize(
    ("body", "headers", "line"),
    [
        ({"nvext": []}, {}, "nvext: expected an object, found []"),
        ({"nvext": {"agent_hints": "high"}}, {}, "nvext.agent_hints: expected an object, found 'high'"),
        (agent(priority="5"), {}, "nvext.agent_hints.priority: expected a whole number from -2147483647 to"),
        (agent(priority=True), {}, "nvext.agent_hints.priority: expected a whole number"),
        (agent(priority=2**31), {}, "nvext.agent_hints.priority: expected a whole number"),
        (agent(strict_priority=-1), {}, "nvext.agent_hints.strict_priority: expected a whole number from 0 to"),
        (agent(osl=1.5), {}, "nvext.agent_hints.osl: expected a whole number from 0 to"),
        (agent(latency_sensitivity=float("nan")), {}, "nvext.agent_hints.latency_sensitivity: expected a number"),
        (agent(speculative_prefill=1), {}, "nvext.agent_hints.speculative_prefill: expected true or false, found 1"),
        ({"nvext": {"cache_salt": 5}}, {}, "nvext.cache_salt: expected text, found 5"),
        ({}, {"X-Dynamo-Request-Priority": "9" * 5000}, "x-dynamo-request-priority: expected a whole number"),
        ({}, {"x-session-id": "x" * 257}, "x-session-id: expected at most 256 printable characters"),
        ({}, {"thread-id": "a\nb"}, "thread-id: expected at most 256 printable characters, found 'a\\nb'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(body: dict[str, Any], headers: dict[str, str], line: str) -> None:
    with pytest.raises(UserError) as raised:
        read_hints(body, headers)
    assert str(raised.value).startswith(line)
    assert len(str(raised.value)) < 200 and "\n" not in str(raised.value)


@given(st.tuples(PRIORITIES, TIERS), st.tuples(PRIORITIES, TIERS), st.integers(0, 50), st.integers(0, 9))
def test_a_tier_goes_before_all_lower_ones_and_priorities_keep_their_order_within_bounds(
    one: tuple[int, int], other: tuple[int, int], most: int, tiers: int
) -> None:
    config = HintsConfig(priority=most, tiers=tiers)
    first, second = (vllm_priority(Hints(*hints), config) for hints in (one, other))
    key, key_of_other = ((min(tier, tiers), max(-most, min(priority, most))) for priority, tier in (one, other))
    assert (first < second) == (key > key_of_other)
    assert abs(first) <= most + tiers * (2 * most + 1)


def test_late_turns_and_long_episodes_of_our_own_go_first() -> None:
    def priority(turn: int, expected: float) -> int:
        return episode_hints("s", turn, 300, expected, 60.0).priority

    assert [priority(turn, 60.0) for turn in (0, 1, 9)] == [0, 1, 9]
    assert [priority(4, expected) for expected in (1.0, 30.0, 60.0, 120.0, 9999.0, 0.0)] == [2, 3, 4, 5, 6, 4]
    assert episode_hints("s", 0, 0, 1.0, 1.0).osl is None
    assert episode_hints("s", 4, 301, 1.0, 0.0, "p") == Hints(priority=4, osl=76, session="s", parent="p")
