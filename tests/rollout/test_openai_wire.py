"""What OpenAI-compatible servers say, read from their bytes."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from rollout.openai_wire import (
    Dialect,
    Refused,
    as_completion,
    encode_tools,
    explain,
    read_answer,
    request_body,
    retry_after,
    too_long,
)
from rollout.trajectory import Completion, FinishReason, Prompt, Sampling, ToolSpec, VersionSpan

TOOLS = (ToolSpec("add", "Add to the total.", {"type": "object", "properties": {}}),)
CHAT = Prompt("e.1.0", "e", 0, (), [{"role": "user", "content": "Add 1."}], TOOLS, 256, Sampling(), 30.0)
TOKENS = replace(CHAT, ids=[1])


def body(prompt: Prompt, dialect: Dialect, **extra: Any) -> dict[str, Any]:
    return msgspec.json.decode(request_body(prompt, "m", dialect, encode_tools(prompt.tools), extra))


def test_sampling_is_written_out_where_the_server_knows_how() -> None:
    said = body(CHAT, Dialect())
    assert (said["temperature"], said["top_p"], said["top_k"]) == (1.0, 1.0, 0)
    assert (said["min_p"], said["repetition_penalty"]) == (0.0, 1.0)
    assert (said["logprobs"], said["return_token_ids"]) == (True, True)
    assert said["tools"][0]["function"]["name"] == "add"
    assert "seed" not in said
    assert "stop" not in said
    asked = replace(CHAT, sampling=Sampling(0.5, 0.9, 20, ("END",), 7))
    plain = body(asked, Dialect(sampling=False, ids=False, logprobs=False), user="me")
    assert set(plain) == {
        "model",
        "messages",
        "tools",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "stop",
        "seed",
        "user",
    }
    assert (plain["top_k"], plain["stop"], plain["seed"]) == (20, ["END"], 7), "what was asked for is never left out"


def test_a_prompt_of_tokens_is_sent_as_tokens() -> None:
    said = body(TOKENS, Dialect())
    assert (said["prompt"], said["logprobs"], said["max_tokens"]) == ([1], 0, 256)
    assert "messages" not in said


def test_dialects_get_simpler_until_nothing_is_left() -> None:
    first = Dialect()
    renamed = first.simpler("400 Bad Request: use 'max_completion_tokens' instead", tokens=False)
    assert renamed == replace(first, limit_key="max_completion_tokens")
    assert first.simpler("400", tokens=False) == replace(first, sampling=False, ids=False)
    plain = replace(first, sampling=False, ids=False)
    assert plain.simpler("400", tokens=False) == replace(plain, logprobs=False)
    assert replace(plain, logprobs=False).simpler("400", tokens=False) is None
    tokens = first.simpler("400", tokens=True)
    assert tokens is not None
    assert tokens.ids, "a token ledger needs them"


def read(prompt: Prompt, choice: dict[str, Any], **usage: int) -> Completion:
    body = json.dumps({"choices": [choice], "usage": usage, "model": "m", "kv_transfer_params": None}).encode()
    return as_completion(read_answer(body), prompt, "here")


def test_an_answer_is_read_as_servers_write_it() -> None:
    said = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    completion = read(CHAT, {"message": said, "finish_reason": "tool_calls"}, prompt_tokens=7, completion_tokens=3)
    assert completion.finish_reason is FinishReason.STOP
    assert completion.message is not None
    assert completion.message["content"] == ""
    assert completion.message.get("tool_calls") == [
        {"id": "call_0_0", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    ]
    assert (completion.prompt_tokens, completion.num_sampled, completion.cached_tokens) == (7, 3, None)
    parts = {"message": {"content": [{"type": "thinking"}, {"type": "text", "text": "4"}]}, "finish_reason": "length"}
    cut = read(CHAT, parts)
    assert (cut.finish_reason, cut.message and cut.message["content"]) == (FinishReason.LENGTH, "4")
    spans = [{"version": "3", "start": 0, "end": 2}]
    told = {"text": "", "token_ids": [5, 6], "prompt_token_ids": [1], "weight_versions": spans}
    tokens = read(TOKENS, told | {"finish_reason": "abort"})
    assert (tokens.finish_reason, tokens.versions) == (FinishReason.ABORT, (VersionSpan("3", 0, 2),))
    assert tokens.prompt_ids == [1]


def test_logprobs_are_kept_only_with_one_for_each_id() -> None:
    told = {"text": "", "token_ids": [5, 6], "logprobs": {"token_logprobs": [-0.5]}}
    assert read(TOKENS, told).logprobs is None
    told["logprobs"] = {"token_logprobs": [-0.5, -0.25]}
    assert list(read(TOKENS, told).logprobs or ()) == [-0.5, -0.25]
    told["logprobs"] = ["another", "shape"]
    assert read(TOKENS, told).logprobs is None


@pytest.mark.parametrize(
    ("choice", "usage", "said"),
    [
        ({"token_ids": [5, 6]}, {"completion_tokens": 3}, "counts 3 sampled tokens and gives 2 ids"),
        ({"token_ids": [5, 6]}, {"prompt_tokens": 2}, "read 2 prompt tokens where 1 were sent"),
        ({"text": "hello"}, {}, "returns none"),
        ({"token_ids": [5], "finish_reason": "error"}, {}, "gave up"),
    ],
)
def test_an_answer_that_contradicts_itself_is_refused(choice: dict[str, Any], usage: dict[str, int], said: str) -> None:
    with pytest.raises(Refused, match=said):
        read(TOKENS, choice, **usage)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"error": {"message": "no credit"}}', b'{"choices": []}', b""])
def test_a_200_that_is_no_completion_is_refused(body: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_answer(body)
    assert ("no credit" in body.decode()) == ("no credit" in str(refused.value))


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (429, b'{"error": {"message": "slow down\\nplease"}}', "429 Too Many Requests: slow down"),
        (400, b'{"object": "error", "message": "no"}', "400 Bad Request: no"),
        (422, b'{"detail": [{"loc": ["body"], "msg": "missing"}]}', "422 Unprocessable Entity: missing"),
        (404, b'{"detail": "Not Found"}', "404 Not Found: Not Found"),
        (502, b"<html>\n<body>nginx</body>", "502 Bad Gateway"),
        (503, b"upstream gone\nmore", "503 Service Unavailable: upstream gone"),
        (529, b"", "529"),
        (500, b"\xff\x1b[2J", "500 Internal Server Error: \ufffd[2J"),
    ],
)
def test_explain_is_one_line(status: int, body: bytes, line: str) -> None:
    assert explain(status, body) == line


def test_too_long_is_read_from_the_servers_words() -> None:
    assert too_long(400, "This model's maximum context length is 8192 tokens.")
    assert too_long(400, "prompt is too long: 9000 tokens")
    assert not too_long(400, "temperature must be non-negative")
    assert not too_long(500, "context length")


def test_retry_after_reads_seconds_and_dates() -> None:
    assert retry_after("1.5") == 1.5
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("soon") is None
    assert retry_after(None) is None
