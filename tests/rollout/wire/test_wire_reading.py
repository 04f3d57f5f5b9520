"""Requests as the three APIs have them, read into one form, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from rollout.trajectory import Sampling
from rollout.wire import chat, messages, responses
from rollout.wire.asked import Asked, Form, Named, Reasoning
from rollout.wire.errors import Refused
from rollout.wire.items import sealed

USER = {"role": "user", "content": "Hello."}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def of_chat(**keys: Any) -> Asked:
    return chat.read(json.dumps({"model": "m", "messages": [USER], **keys}).encode())


def of_messages(**keys: Any) -> Asked:
    return messages.read(json.dumps({"model": "m", "max_tokens": 64, "messages": [USER], **keys}).encode())


def of_responses(**keys: Any) -> Asked:
    return responses.read(json.dumps({"model": "m", "input": "Hello.", **keys}).encode())


def test_the_same_request_is_the_same_in_all_three() -> None:
    function = {"name": "add", "description": "Adds.", "parameters": SCHEMA}
    by_chat = of_chat(
        messages=[{"role": "developer", "content": "Be brief."}, USER],
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "add"}},
        parallel_tool_calls=False,
        max_completion_tokens=64,
        temperature=0.5,
        stream=True,
        reasoning_effort="low",
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}},
    )
    by_responses = of_responses(
        instructions="Be brief.",
        tools=[{"type": "function", **function}, {"type": "web_search"}],
        tool_choice={"type": "function", "name": "add"},
        parallel_tool_calls=False,
        max_output_tokens=64,
        temperature=0.5,
        stream=True,
        reasoning={"effort": "low"},
        text={"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}},
    )
    by_messages = of_messages(
        system="Be brief.",
        tools=[
            {"name": "add", "description": "Adds.", "input_schema": SCHEMA},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        tool_choice={"type": "tool", "name": "add", "disable_parallel_tool_use": True},
        temperature=0.5,
        stream=True,
        thinking={"type": "adaptive"},
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    )
    for asked in (by_chat, by_responses, by_messages):
        assert [dict(message) for message in asked.messages] == [{"role": "system", "content": "Be brief."}, USER]
        assert [(tool.name, tool.description, tool.parameters) for tool in asked.tools] == [("add", "Adds.", SCHEMA)]
        assert asked.tool_choice == Named("add")
        assert (asked.parallel_calls, asked.max_tokens, asked.stream) == (False, 64, True)
        assert asked.drawing.over(Sampling(temperature=1.0, top_p=0.9), ()) == Sampling(0.5, 0.9)
        assert asked.reasoning == Reasoning(True, "low")
        assert asked.form == Form(SCHEMA, "answer", True)
    assert by_messages.left_out == ("web_search_20250305",) and by_responses.left_out == ("web_search",)


def test_no_tools_are_offered_where_none_may_be_called() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    assert of_chat(tools=tools).offered and not of_chat(tools=tools, tool_choice="none").offered


def test_hints_and_template_variables_are_kept_as_given() -> None:
    nvext = {"agent_hints": {"priority": 3, "osl": 200}}
    for asked in (
        of_chat(nvext=nvext, priority=1),
        of_messages(nvext=nvext, priority=1),
        of_responses(nvext=nvext, priority=1),
    ):
        assert asked.hints == {"nvext": nvext, "priority": 1}
    asked = of_chat(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True})
    assert asked.template_variables == {"enable_thinking": True, "reasoning_effort": "none"}
    assert of_messages().template_variables == {"truncate_history_thinking": False}
    assert of_messages(thinking={"type": "disabled"}).template_variables == {"enable_thinking": False}


def test_reasoning_of_earlier_turns_keeps_its_place() -> None:
    calls = [{"id": id, "type": "function", "function": {"name": "add", "arguments": '{ "a":1}'}} for id in ("x", "y")]
    said = {"role": "assistant", "content": None, "reasoning_content": ["one", "two", "three"], "tool_calls": calls}
    told = of_chat(messages=[USER, said]).messages[1]
    assert told.get("reasoning_content") == ["one", "two", "three"]
    assert [call["function"]["arguments"] for call in told.get("tool_calls", ())] == ['{ "a":1}'] * 2
    plain = of_chat(messages=[USER, {**said, "reasoning_content": "one"}]).messages[1]
    assert plain.get("reasoning_content") == "one"


def test_what_a_client_keeps_sealed_is_read_again() -> None:
    items = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]},
        {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": sealed("They greet.")},
        {"type": "function_call", "call_id": "x", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "x", "output": [{"type": "input_text", "text": "3"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Three."}]},
        {"type": "message", "role": "assistant", "content": "Indeed."},
    ]
    told = of_responses(input=items, include=["reasoning.encrypted_content"], store=False)
    assert [message["role"] for message in told.messages] == ["user", "assistant", "tool", "assistant", "assistant"]
    assert told.messages[1].get("reasoning_content") == "They greet."
    assert told.sealed_reasoning and not told.store


def test_a_response_goes_on_under_its_own_instructions() -> None:
    asked = of_responses(instructions="Be brief.", previous_response_id="resp_1")
    whole = responses.continued(asked, ({"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hi!"}))
    assert [message["content"] for message in whole.messages] == ["Be brief.", "Hi.", "Hi!", "Hello."]
    assert [message["content"] for message in responses.told(asked)] == ["Hello."]


@pytest.mark.parametrize(
    ("read", "keys", "message"),
    [
        (of_chat, {"messages": []}, "messages: expected array of length >= 1"),
        (of_chat, {"temperature": 3}, "temperature: expected float <= 2.0"),
        (of_chat, {"max_tokens": 0}, "max_tokens: expected int >= 1"),
        (of_chat, {"n": 2}, "n: expected 1, a reply a request, got 2"),
        (of_chat, {"logprobs": True}, "logprobs: this server tells no logprobs"),
        (of_chat, {"functions": []}, "functions: expected tools"),
        (of_chat, {"stop": ["", "x"]}, "stop: an empty text"),
        (of_chat, {"messages": [USER, {"role": "friend"}]}, "messages[1].role: expected system, developer, user"),
        (of_chat, {"messages": [USER, {"role": "tool", "content": ""}]}, "messages[1].tool_call_id: missing"),
        (of_chat, {"messages": [USER, {"role": "user", "content": 5}]}, "messages[1].content: expected str | array"),
        (of_chat, {"tool_choice": "required"}, "tool_choice: a call is required and there are no tools"),
        (of_chat, {"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, "tools: two tools are named 'a'"),
        (of_chat, {"response_format": {"type": "xml"}}, "response_format.type: expected text, json_object or json_sch"),
        (of_chat, {"response_format": {"type": "json_schema"}}, "response_format: a json_schema without a schema"),
        (of_messages, {"max_tokens": None}, "max_tokens: expected int, got null"),
        (of_messages, {"tool_choice": {"type": "tool", "name": "x"}}, "tool_choice: no tool is named 'x'"),
        (of_messages, {"tools": [{"name": "x"}]}, "tools[0].input_schema: missing"),
        (
            of_messages,
            {"messages": [{"role": "user", "content": [{"type": "song"}]}]},
            "messages[0].content[0].type: unk",
        ),
        (of_messages, {"messages": [{"role": "tool", "content": ""}]}, "messages[0].role: expected user or assistant"),
        (of_responses, {"input": []}, "input: expected array of length >= 1"),
        (of_responses, {"background": True}, "background: this server answers while the client waits"),
        (of_responses, {"conversation": "conv_1"}, "conversation: this server stores no conversations"),
        (of_responses, {"input": [{"type": "item_reference", "id": "x"}]}, "input[0]: items are not stored one by one"),
        (of_responses, {"input": [{"type": "web_search_call"}]}, "input[0].type: unknown kind of item"),
        (of_responses, {"tool_choice": {"type": "mcp"}}, "tool_choice: expected a function by its name"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_its_place(
    read: Callable[..., Asked], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refused) as caught:
        read(**keys)
    assert caught.value.status == 400
    assert caught.value.message.startswith(message)
    assert caught.value.param == message.partition(":")[0]


@pytest.mark.parametrize("read", [chat.read, messages.read, messages.read_count, responses.read])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"model":"\xff"}', b'{"nvext":' + b'{"a":' * 5000, b'{"model": "\\ud83d"}']
)
def test_no_body_is_too_odd_to_be_refused(read: Callable[[bytes], Asked], body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read(body)
    assert caught.value.status == 400
