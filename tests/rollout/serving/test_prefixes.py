"""What changes from session to session goes, what was said stays to the last character."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from rollout.serving.prefixes import BUILT_IN, PrefixesConfig, RuleConfig, Rules, Touched, stabilized, tallied
from rollout.serving.written_calls import as_sampled

BILLING = "x-anthropic-billing-header: cc_version=0.2.93; cch={};"
ALL = PrefixesConfig(rules=tuple(BUILT_IN)).value()
DAY, ID = "2026-11-21", "123e4567-e89b-12d3-a456-426614174000"


def rules(*names: str | RuleConfig, **changes: Any) -> Rules:
    return PrefixesConfig(rules=names, **changes).value()


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def text(said: str, chosen: Rules) -> str:
    return stabilized([system(said)], (), chosen).messages[0]["content"]


def test_two_sessions_of_claude_code_begin_alike_and_without_the_rule_they_do_not() -> None:
    one, two = (f"{BILLING.format(key)}\nYou are an agent." for key in ("abc123==", "def456=="))
    done = stabilized([system(one)], (), PrefixesConfig().value())
    assert done.messages == ({"role": "system", "content": "You are an agent."},)
    assert done.removed == {"billing_header": len(one) - len("You are an agent.")}
    assert text(one, rules("billing_header")) == text(two, rules("billing_header"))
    assert text(one, rules("uuids")) != text(two, rules("uuids"))


def test_the_line_goes_as_a_part_of_its_own_and_with_it_a_system_message_that_is_nothing_else() -> None:
    line, kept = {"type": "text", "text": BILLING.format("a")}, {"type": "text", "text": "You are", "cache_control": {}}
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    done = stabilized([system([line]), system([line, kept, image]), {"role": "user", "content": ""}], (), ALL)
    assert done.messages == (system([kept, image]), {"role": "user", "content": ""})
    assert done.messages[0]["content"][0] is kept


@pytest.mark.parametrize(
    ("name", "said", "told"),
    [
        ("times", f"It is {DAY}T10:20:30.5Z, {DAY} 10:20 UTC, {DAY}.", f"It is {DAY}, {DAY}, {DAY}."),
        ("dates", f"It is {DAY}T10:20:30Z, {DAY}, v{DAY}, {DAY}-rc1.", f"It is <date>, <date>, v{DAY}, {DAY}-rc1."),
        ("session_ids", 'Session ID: ab12cd34. session_id="x-99999"', 'Session ID: <id>. session_id="<id>"'),
        ("session_ids", f"Session context: {ID}\nrequest id: required", "Session context: <id>\nrequest id: required"),
        ("uuids", f"in {ID}, {ID.upper()} and {ID}0", f"in <id>, <id> and {ID}0"),
        ("hex_ids", "at 0123456789abcdef01, 12345678901234567890, deadbeef", "at <id>, 12345678901234567890, deadbeef"),
        (
            "prefixed_ids",
            "toolu_01AbCdEfGhIjKlMnOp and a_name_of_a_function_2",
            "toolu_<id> and a_name_of_a_function_2",
        ),
    ],
)
def test_built_in_rules(name: str, said: str, told: str) -> None:
    assert text(said, rules(name)) == told
    untouched = [{"role": role, "content": said} for role in ("user", "assistant", "tool")]
    assert stabilized(untouched, (), rules(name)).messages == tuple(untouched)


_LIKELY = st.sampled_from(
    [DAY, "T10:20:30Z", " 10:20", ID, "session id: a1b2c3", "\n", BILLING, "_", "0123456789abcdef", "-", "a"]
)


@given(st.lists(_LIKELY | st.text(max_size=8)).map("".join))
@example(f"{BILLING}\n{BILLING}")
def test_done_twice_is_done_once_and_what_nothing_touches_is_itself(said: str) -> None:
    messages = [system(said)]
    once = stabilized(messages, (), ALL)
    twice = stabilized(once.messages, (), ALL)
    if not once.removed:
        assert once.messages[0] is messages[0]
    if all(name in ("billing_header", "uuids", "prefixed_ids") for name in once.removed):
        assert twice.messages == once.messages


@given(st.text(), st.sampled_from(["user", "assistant", "tool", "system"]))
def test_no_rules_change_nothing(said: str, role: str) -> None:
    message = {"role": role, "content": said}
    assert stabilized([message], ({"name": "f"},), Rules()) == stabilized([message], ({"name": "f"},), Rules(()))
    assert stabilized([message], (), Rules()).messages[0] is message


def test_rules_of_ones_own_say_where_they_work_and_count_for_themselves() -> None:
    mine = RuleConfig(name="host", pattern=r"host-(\w+)", replace=r"host(\1)", places=("user", "tools"))
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "on host-a", "parameters": {"default": "host-a"}},
    }
    done = stabilized([system("host-a"), {"role": "user", "content": "host-b"}], (tool,), rules(mine))
    assert [message["content"] for message in done.messages] == ["host-a", "host(b)"]
    assert done.tools[0]["function"]["description"] == "on host(a)"
    assert done.tools[0]["function"]["parameters"] is tool["function"]["parameters"]
    counts = tallied(tallied({}, done.removed), {"host": 1, "dates": 10})
    assert counts == {"host": Touched(2, 13), "dates": Touched(1, 10)}


def test_keys_of_schemas_in_order_mean_the_same_and_lists_stay() -> None:
    schema = {
        "type": "object",
        "required": ["b", "a"],
        "properties": {"b": {"type": "string", "default": {"z": 1, "y": 2}}},
    }
    flipped = {
        "properties": {"b": {"default": {"z": 1, "y": 2}, "type": "string"}},
        "required": ["b", "a"],
        "type": "object",
    }
    tools = [{"name": name, "input_schema": one} for name, one in (("z", schema), ("a", flipped))]
    sent, done = (stabilized([], tools, rules(schema_keys=keys)).tools for keys in ("sent", "sorted"))
    assert all(one is other for one, other in zip(sent, tools, strict=True))
    assert [tool["name"] for tool in done] == ["z", "a"] and list(done) == tools
    assert list(done[0]["input_schema"]["properties"]["b"]["default"]) == ["z", "y"], "a value, no schema"
    assert json.dumps(done[0]["input_schema"]) == json.dumps(done[1]["input_schema"])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"rules": ["billing"]}, "there is no rule 'billing'; did you mean 'billing_header'?"),
        ({"rules": ["dates", "dates"]}, "'dates' is there twice"),
        ({"rules": [{"name": "x", "pattern": "("}]}, "no regular expression"),
        ({"rules": [{"name": "x", "pattern": "a", "replace": r"\2"}]}, "no regular expression"),
        ({"rules": [{"name": "x", "pattern": "a*"}]}, "matches where there is nothing"),
        ({"rules": [{"name": "x", "pattern": "a", "places": ["assistant"]}]}, "'system', 'user', 'tool' or 'tools'"),
    ],
)
def test_wrong_sections_say_what_was_expected(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as raised:
        PrefixesConfig.model_validate(given)
    assert line in str(raised.value)


def history(arguments: Any) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def arguments(message: Any) -> str:
    return message["tool_calls"][0]["function"]["arguments"]


WRITTEN = '{"x":  1.0, "text": "\\u00e9", "big": 12345678901234567891}'


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ('{"x":1,"text":"é","big":12345678901234567000}', WRITTEN),
        ({"big": 12345678901234567891, "x": 1.0, "text": "é"}, WRITTEN),
        (
            '{"x": true, "text": "é", "big": 12345678901234567891}',
            '{"x": true, "text": "é", "big": 12345678901234567891}',
        ),
        ('{"x": 2', '{"x": 2'),
        ({"x": 2}, '{"x": 2}'),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_arguments_are_as_the_policy_wrote_them_unless_they_say_something_else(sent: Any, told: str) -> None:
    assert arguments(as_sampled([history(sent)], {"c1": WRITTEN})[0]) == told


def test_calls_that_nobody_knows_and_messages_without_any_stay_themselves() -> None:
    said = [history(WRITTEN), {"role": "user", "content": "?"}]
    assert all(one is other for one, other in zip(as_sampled(said, {"c1": WRITTEN}), said, strict=True))
    assert as_sampled([history('{"a":1}')], {"c2": WRITTEN}) == (history('{"a":1}'),)
