"""What a request becomes on its way to the engine, and what else is told of it."""

from __future__ import annotations

import json
from array import array
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import pytest
from gateway_server import ASK, CALL, CHAT_TOOLS, LOOK, NAME, OWN_TOOLS, TEMPLATE, running, scripted, served
from hypothesis import given
from hypothesis import strategies as st

from rollout.gateway.choices import grammar
from rollout.gateway.scribe import Room, Scribe
from rollout.gateway.section import GatewayConfig
from rollout.gateway.stops import Stops
from rollout.segments import hermes
from rollout.serving.capture import Called, Capture
from rollout.serving.prefixes import PrefixesConfig
from rollout.template import ChatTemplate
from rollout.turn import Json, Message, ToolSpec
from rollout.wire import chat
from rollout.wire.asked import Asked
from rollout.wire.errors import Refused

THINKS = f"<think>Let me see.</think>I add.\n{CALL}\n{LOOK}"
BILLED = "x-anthropic-billing-header: cch={};\nYou write code."


@pytest.fixture
async def client() -> Any:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as one:
        yield one


async def asked(client: httpx.AsyncClient, url: str, headers: Any = None, **more: Any) -> Any:
    given = {"model": NAME, "messages": ASK, **more}
    told = await client.post(f"{url}/v1/chat/completions", json=given, headers=headers)
    assert told.status_code == 200, told.text
    return told.json() if not more.get("stream") else told.text


async def test_prefixes_hold_and_are_counted(client: httpx.AsyncClient) -> None:
    rules = PrefixesConfig(rules=("billing_header", "dates"))
    async with running(scripted(["Hi."]), rules=rules.value()) as one:
        for number in range(3):
            system: Any = {"role": "system", "content": BILLED.format(number)}
            await asked(client, one.url, messages=[system, *ASK])
        first, *others = (list(prompt.ids) for prompt in one.policy.prompts)
        assert others == [first, first]
        assert one.policy.prompts[0].messages[0]["content"] == "You write code."
        told = (await client.get(f"{one.url}/stats")).json()
        characters = 3 * len("x-anthropic-billing-header: cch=0;\n")
        assert told["prefixes"].keys() == {"billing_header"} and told["requests"] == 3
        rule = told["prefixes"]["billing_header"]
        assert (rule["requests"], rule["characters"]) == (3, characters) and 0 < rule["tokens"] <= characters


async def test_tools_stay_as_they_were_sent(client: httpx.AsyncClient) -> None:
    """Byte for byte; sorted where the job says so."""
    one_way: Any = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
    other: Any = {"properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "type": "object"}
    ids: dict[str, list[array[int]]] = {}
    for keys in ("sent", "sorted"):
        async with running(scripted(["Hi."]), rules=PrefixesConfig(schema_keys=keys).value()) as one:
            for schema in (one_way, other):
                tool = {"type": "function", "function": {"name": "add", "description": "Adds", "parameters": schema}}
                await asked(client, one.url, tools=[tool])
            ids[keys] = [array("i", prompt.ids) for prompt in one.policy.prompts]
            assert list(one.policy.prompts[0].tools[0].parameters) == sorted(one_way) if keys == "sorted" else True
    assert ids["sent"][0] != ids["sent"][1] and ids["sorted"][0] == ids["sorted"][1]


async def test_hints_reach_the_engine(client: httpx.AsyncClient) -> None:
    async with running(scripted(["Hi."])) as one:
        nvext = {"agent_hints": {"priority": 7, "osl": 20}, "cache_salt": "tenant"}
        await asked(client, one.url, headers={"x-claude-code-session-id": "s1"}, nvext=nvext)
        await asked(client, one.url)
        await asked(client, one.url, messages=[*ASK, {"role": "assistant", "content": "Hi."}, *ASK])
        await asked(client, one.url, messages=[{"role": "user", "content": "Another."}])
        hinted, plain, later, other = one.policy.prompts
        assert (hinted.session_id, hinted.priority, hinted.salt) == ("s1", -7, "tenant")
        assert (plain.priority, plain.salt) == (0, None)
        assert plain.session_id == later.session_id != other.session_id
        assert plain.group == later.group == other.group == hinted.group
        assert [prompt.turn for prompt in one.policy.prompts] == [0, 0, 1, 0]


async def test_drawing_and_room(client: httpx.AsyncClient) -> None:
    async with running(scripted(["Hi."])) as one:
        await asked(client, one.url, max_tokens=99_999, min_p=0.1, top_k=5, temperature=0)
        [prompt] = one.policy.prompts
        assert prompt.max_tokens == 2048 - len(prompt.ids)
        assert (prompt.extras.vllm, prompt.sampling.top_k, prompt.sampling.temperature) == ({"min_p": 0.1}, 5, 0)
        assert (prompt.seconds, prompt.extras.grammar) == (600.0, None)


@pytest.mark.parametrize("dispatch", ["section", "nvext", "none"])
async def test_calls_and_reasoning_are_dispatched(client: httpx.AsyncClient, dispatch: str) -> None:
    config = GatewayConfig.model_validate(
        {"dispatch": {"tool_calls": True, "reasoning": True}} if dispatch == "section" else {}
    )
    names = ["tool_call_dispatch", "reasoning_dispatch"] if dispatch == "nvext" else []
    async with running(scripted([THINKS]), config) as one:
        text = await asked(client, one.url, stream=True, tools=CHAT_TOOLS, nvext={"annotations": names})
    events = [event.partition("\n") for event in text.split("\n\n") if event.startswith("event:")]
    if dispatch == "none":
        assert not events
        return
    assert [head for head, _, _ in events] == ["event: reasoning_dispatch", *2 * ["event: tool_call_dispatch"]]
    data = [json.loads(line.removeprefix("data: ")) for _, _, line in events]
    assert data[0]["reasoning_content"] == "Let me see."
    assert [each["tool_call"]["function"]["name"] for each in data[1:]] == ["add", "look"]
    assert text.index("tool_call_dispatch") < text.index('"look"') < text.index('finish_reason":"tool_calls')


async def test_a_prompt_is_read_ahead_where_it_will_differ(client: httpx.AsyncClient) -> None:
    """The template drops reasoning of earlier turns, so the cache ends where it stood."""
    source = TEMPLATE.source.replace("'<think>' + reasoning + '</think>\\n' if reasoning else ''", "''")
    assert source != TEMPLATE.source
    drops = ChatTemplate(TEMPLATE._tokenizer, source, TEMPLATE._specials, TEMPLATE.eos_ids)
    long = f"<think>{' '.join(['Let me see.'] * 10)}</think>\n{' '.join(['I add.'] * 20)}\n{CALL}"
    hint = {"agent_hints": {"speculative_prefill": True}}
    for template, expected in ((drops, 1), (TEMPLATE, 0)):
        for stream in (False, True):
            async with running(scripted([long], template=template), template=template) as one:
                await asked(client, one.url, stream=stream, tools=CHAT_TOOLS, nvext=hint)
                await one.gateway.close()
                counts = one.gateway.counts
                assert counts.prefilled <= expected == len(one.policy.prompts) - 1
                if expected:
                    first, ahead = one.policy.prompts
                    assert (ahead.max_tokens, ahead.priority, ahead.turn) == (1, 101, 1)
                    shown = drops.decode_all(ahead.ids)
                    assert "I add." in shown and "Let me see" not in shown and list(ahead.ids) != list(first.ids)


@dataclass
class Kept(Scribe):
    """An episode as a program plays it."""

    capture: Capture = field(default_factory=Capture)
    kept: list[Called] = field(default_factory=list)

    def prompt(
        self, messages: Sequence[Message], tools: tuple[ToolSpec, ...], variables: Mapping[str, Json]
    ) -> Sequence[int]:
        return TEMPLATE.opening(messages, tools)

    @contextmanager
    def call(self, tokens: int | None) -> Generator[Room]:
        yield Room(tokens)

    def keep(self, called: Called) -> None:
        self.kept.append(called)
        self.capture.add(called)


@dataclass
class Tokens:
    known: dict[str, Kept]

    def find(self, token: str) -> Kept | None:
        return self.known.get(token)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_token_opens_its_episode_alone(client: httpx.AsyncClient, stream: bool) -> None:
    mine, other = Kept(), Kept()
    async with running(scripted([THINKS, "Done."]), key="sesame", episodes=Tokens({"abc": mine, "def": other})) as one:
        for path, headers in (("/e/abc", {}), ("", {"authorization": "Bearer abc"}), ("", {"x-api-key": "abc"})):
            told = await client.post(
                f"{one.url}{path}/v1/messages",
                json={"model": "claude-9", "max_tokens": 99, "messages": ASK, "tools": OWN_TOOLS, "stream": stream},
                headers=headers,
            )
            assert told.status_code == 200, told.text
        assert (len(mine.kept), len(other.kept)) == (3, 0)
        called = mine.kept[0]
        assert [part.kind for part in called.segments] == ["reasoning", "content", "tool_call", "tool_call"]
        assert called.completion.prompt_ids == one.policy.prompts[0].ids and called.completion.ids is not None
        assert [turn.segment_break for turn in mine.capture.turns()][1:] == 2 * ["the program asked the same again"]
        for path, status in (("/e/abc/stats", 404), ("/e/xyz/v1/models", 404), ("/e/abc/v1/models", 200)):
            assert (await client.get(one.url + path)).status_code == status
        assert (await client.get(f"{one.url}/stats", headers={"x-api-key": "abc"})).status_code == 404
        assert (await client.get(f"{one.url}/v1/models", headers={"x-api-key": "xyz"})).status_code == 401


async def test_responses_of_an_episode_are_its_own(client: httpx.AsyncClient) -> None:
    known = {"abc": Kept(), "def": Kept()}
    async with running(scripted(["Hi."]), episodes=Tokens(known)) as one:
        first = (await client.post(f"{one.url}/e/abc/v1/responses", json={"model": "x", "input": "Hello."})).json()
        for path, status in (("/e/abc", 200), ("/e/def", 404), ("", 404)):
            assert (await client.get(f"{one.url}{path}/v1/responses/{first['id']}")).status_code == status


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
def test_stops_are_found_whatever_the_pieces(text: str, stops: list[str], cuts: list[int]) -> None:
    def said(places: list[int]) -> tuple[str, str | None]:
        one = Stops(tuple(stops))
        ends = [0, *sorted(place for place in places if place < len(text)), len(text)]
        told = "".join(one.feed(text[start:end]) for start, end in pairwise(ends))
        return told + one.finish(), one.found

    whole = said([])
    assert said(cuts) == said(list(range(30))) == whole
    assert (whole[1] is None) == (not any(stop in text for stop in stops))
    assert text.startswith(whole[0] + (whole[1] or ""))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_ends_the_reply(client: httpx.AsyncClient, stream: bool) -> None:
    async with running(scripted(["one two three four"])) as one:
        given = {"model": NAME, "max_tokens": 99, "messages": ASK, "stop_sequences": ["three", "four"]}
        told = await client.post(f"{one.url}/v1/messages", json={**given, "stream": stream})
        if stream:
            assert '"stop_sequence":"three"' in told.text and "four" not in told.text
        else:
            done = told.json()
            assert (done["content"][0]["text"], done["stop_reason"]) == ("one two", "stop_sequence")
        assert one.policy.prompts[0].sampling.stop == ("three", "four")


async def test_what_is_kept_is_the_same_streamed_or_not(client: httpx.AsyncClient) -> None:
    """Also where a stop cuts it, here within a call."""
    mine = Kept()
    async with running(scripted([THINKS]), episodes=Tokens({"abc": mine})) as one:
        for stop in (["home"], []):
            for stream in (False, True):
                given = {"model": "x", "messages": ASK, "tools": CHAT_TOOLS, "stop": stop, "stream": stream}
                told = await client.post(f"{one.url}/e/abc/v1/chat/completions", json=given)
                assert told.status_code == 200
    cut, cut_streamed, whole, whole_streamed = mine.kept
    assert cut.segments == cut_streamed.segments and whole.segments == whole_streamed.segments
    assert [len([part for part in one.segments if part.call is not None]) for one in (cut, whole)] == [2, 2]
    assert not any("home" in part.text for part in cut.segments) and "home" in whole.segments[-1].text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_parser_that_reads_whole_texts_will_do(client: httpx.AsyncClient, stream: bool) -> None:
    async with running(scripted([THINKS]), form=hermes) as one:
        told = await asked(client, one.url, tools=CHAT_TOOLS, stream=stream)
        text = told if stream else json.dumps(told)
        assert text.count('"name": "add"' if not stream else '"name":"add"') == 1 and "Let me see." in text


def request(**more: Any) -> Asked:
    return chat.read(json.dumps({"model": NAME, "messages": ASK, **more}).encode())


NAMED: Any = {"type": "function", "function": {"name": "look"}}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


def test_what_may_be_sampled() -> None:
    assert grammar(request(tools=CHAT_TOOLS), "hermes", False) is None
    assert grammar(request(tools=CHAT_TOOLS, tool_choice="none"), "hermes", False) is None
    assert grammar(request(response_format=FORM), "hermes", False) == {"json": {"type": "object"}}
    assert grammar(request(response_format={"type": "json_object"}), "hermes", False) == {"json_object": True}
    assert grammar(request(structured_outputs={"regex": "a+"}), "hermes", False) == {"regex": "a+"}

    def tag(in_reasoning: bool = False, form: str = "hermes", **more: Any) -> Any:
        told = grammar(request(tools=CHAT_TOOLS, **more), form, in_reasoning)
        assert told is not None and told.keys() == {"structural_tag"}
        return json.loads(told["structural_tag"])["format"]

    must = tag(tool_choice="required")
    assert [each["begin"] for each in must["tags"]] == [
        '<tool_call>\n{"name": "add", "arguments": ',
        '<tool_call>\n{"name": "look", "arguments": ',
    ]
    assert (must["at_least_one"], must["stop_after_first"]) == (True, False)
    named = tag(tool_choice=NAMED)
    assert (len(named["tags"]), named["stop_after_first"]) == (1, True)
    assert tag(tool_choice="required", parallel_tool_calls=False)["stop_after_first"]
    assert [part["type"] for part in tag(True, tool_choice="required")["elements"]] == [
        "tag",
        "regex",
        "tags_with_separator",
    ]
    assert [part["type"] for part in tag(response_format=FORM)["elements"]] == ["json_schema", "tags_with_separator"]
    assert tag(form="deepseek_v31", tool_choice="required")["begin"] == "<｜tool▁calls▁begin｜>"


@pytest.mark.parametrize(
    ("more", "form", "line"),
    [
        ({"tool_choice": "required"}, "harmony", "tool_choice: no call can be forced in the format 'harmony', only in"),
        ({"tool_choice": NAMED}, "", "tool_choice: no call can be forced in the format of this model"),
        ({"structured_outputs": {"regexp": "a"}}, "hermes", "structured_outputs: expected one of json, regex"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "hermes", "structured_outputs: expected one of"),
        ({"structured_outputs": {"regex": "a"}, "response_format": FORM}, "hermes", "structured_outputs: expected it"),
    ],
)
def test_what_cannot_be_had_is_refused(more: dict[str, Any], form: str, line: str) -> None:
    with pytest.raises(Refused) as raised:
        grammar(request(tools=CHAT_TOOLS, **more), form, False)
    assert raised.value.message.startswith(line) and raised.value.status == 400


def test_reasoning_is_shown_as_the_template_reads_it() -> None:
    """A template that knows nothing of reasoning gets it in the content."""
    from rollout.gateway.asking import rendered

    source = TEMPLATE.source.replace("message.reasoning_content or message.reasoning or ''", "''")
    plain = ChatTemplate(TEMPLATE._tokenizer, source, TEMPLATE._specials, TEMPLATE.eos_ids)
    said: Any = {"role": "assistant", "content": "Hi.", "reasoning_content": "A greeting."}
    asked = request(messages=[*ASK, said, *ASK])
    for keep, there in (("keep", True), ("drop_all", False), ("drop_before_last_user", False)):
        one = served(scripted(["x"]), template=plain, keep=keep)
        text = plain.decode_all(rendered(one, asked, one.anew).ids)
        assert ("<think>\nA greeting.\n</think>" in text) is there and "Hi." in text
