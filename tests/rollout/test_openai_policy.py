"""The policy over HTTP, against a real server on loopback."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from typing import Any

import pytest

from resources.counter import Counter
from rollout.config import OpenAIConfig
from rollout.episode import Setting, run_episode
from rollout.errors import ContextExceeded, Unavailable, UserError
from rollout.openai_policy import OpenAIPolicy
from rollout.openai_wire import Refused
from rollout.protocols import Ledger
from rollout.rows import to_row
from rollout.scripted import encode_lines
from rollout.scripted_endpoint import Behaviour, ScriptedEndpoint, logprob
from rollout.segments import hermes
from rollout.sessions import LocalSessions, SessionTable
from rollout.template import BUNDLED, load_template
from rollout.tokens import MessageLedger, TokenLedger
from rollout.trajectory import (
    Agent,
    FinishReason,
    Lease,
    Limits,
    Message,
    Prompt,
    Sampling,
    StopReason,
    ToolSpec,
    Trajectory,
)

TEMPLATE = load_template(BUNDLED)
# Written as the template writes it, so that rendering the history again gives the same ids.
ADD = '<think>one more</think>\n<tool_call>\n{"name": "add", "arguments": {"amount": 1}}\n</tool_call>'
SUBMIT = '<tool_call>\n{"name": "submit", "arguments": {}}\n</tool_call>'
LINES = (ADD, ADD, SUBMIT)
KEY = "sk-very-secret"
TOOLS = (ToolSpec("add", "Add to the total.", {"type": "object", "properties": {"amount": {"type": "integer"}}}),)
ASKED: list[Message] = [{"role": "user", "content": "Add 1 twice, then submit."}]


@asynccontextmanager
async def served(
    behaviour: Behaviour | None = None, lines: Sequence[str] = LINES, **config: Any
) -> AsyncIterator[tuple[OpenAIPolicy, ScriptedEndpoint]]:
    async with ScriptedEndpoint(TEMPLATE, lines, behaviour) as endpoint:
        policy = OpenAIPolicy(OpenAIConfig(engine="openai", base_url=endpoint.url, name="scripted", **config))
        try:
            yield policy, endpoint
        finally:
            await policy.aclose()


def asked(tokens: bool = False, seconds: float = 30.0, max_tokens: int = 256) -> Prompt:
    ids = TEMPLATE.opening(ASKED, TOOLS) if tokens else ()
    return Prompt("e.1.0", "e", 0, ids, ASKED, TOOLS, max_tokens, Sampling(), seconds)


async def played(policy: OpenAIPolicy, new_ledger: Any, limits: Limits | None = None) -> Trajectory:
    resource = Counter(count=1, target=2)
    task = next(islice(resource.tasks(0), 1))
    setting = Setting(
        agent=Agent(),
        policy=policy,
        sessions=LocalSessions(SessionTable(resource)),
        limits=limits or Limits(max_turns=8),
        new_ledger=new_ledger,
        resource="counter",
        model="scripted",
    )
    return await run_episode(Lease("run", task, 0, 1, True, 0), setting)


def token_ledger() -> Ledger:
    return TokenLedger(TEMPLATE, partial(hermes, in_reasoning=TEMPLATE.opens_with_reasoning))


async def test_chat_takes_message_ids_and_logprobs() -> None:
    async with served() as (policy, endpoint):
        completion = await policy.complete(asked())
    ids = encode_lines(TEMPLATE, [ADD])[0]
    assert completion.finish_reason is FinishReason.STOP
    assert completion.message is not None
    assert completion.message["content"] == ""
    assert completion.message.get("reasoning_content") == "one more"
    assert completion.message.get("tool_calls") == [
        {"id": "call_0_0", "type": "function", "function": {"name": "add", "arguments": '{"amount": 1}'}}
    ]
    assert list(completion.ids or ()) == ids
    assert list(completion.logprobs or ()) == [logprob(place) for place in range(len(ids))]
    assert list(completion.prompt_ids or ()) == TEMPLATE.opening(ASKED, TOOLS)
    assert completion.prompt_tokens == len(TEMPLATE.opening(ASKED, TOOLS))
    assert completion.num_sampled == len(ids)
    assert completion.replica == endpoint.url.removeprefix("http://").removesuffix("/v1")


async def test_tokens_take_ids_and_logprobs() -> None:
    async with served() as (policy, _):
        prompt = asked(tokens=True)
        completion = await policy.complete(prompt)
    ids = encode_lines(TEMPLATE, [ADD])[0]
    assert completion.message is None
    assert list(completion.ids or ()) == ids
    assert list(completion.logprobs or ()) == [logprob(place) for place in range(len(ids))]
    assert completion.prompt_tokens == len(prompt.ids)


@pytest.mark.parametrize("tokens", [False, True])
async def test_a_cut_completion_says_so(tokens: bool) -> None:
    async with served() as (policy, _):
        completion = await policy.complete(asked(tokens, max_tokens=3))
    assert completion.finish_reason is FinishReason.LENGTH
    assert list(completion.ids or ()) == encode_lines(TEMPLATE, [ADD])[0][:3]


async def test_where_no_ids_are_given_the_row_has_none() -> None:
    async with served(Behaviour(token_ids=False)) as (policy, _):
        trajectory = await played(policy, MessageLedger)
    assert trajectory.reward == 1.0
    for turn in to_row(trajectory)["turns"]:
        assert turn["completion_ids"] is None
        assert turn["prompt_ids"] is None
        assert turn["logprobs"] is None
    assert trajectory.num_sampled == sum(len(ids) for ids in encode_lines(TEMPLATE, LINES))


async def test_a_token_prompt_needs_ids_back() -> None:
    async with served(Behaviour(token_ids=False)) as (policy, _):
        with pytest.raises(Refused, match="returns none"):
            await policy.complete(asked(tokens=True))


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_each_prompt_extends_the_last_one_exactly(field: str) -> None:
    async with served(Behaviour(reasoning_field=field)) as (policy, _):
        trajectory = await played(policy, MessageLedger)
    assert trajectory.reward == 1.0
    assert [turn.segment for turn in trajectory.turns] == [0, 0, 0]
    said: list[int] = []
    for turn in trajectory.turns:
        said += list(turn.prompt_ids or ())
        assert said == list(turn.completion.prompt_ids or ())
        said += list(turn.completion.ids or ())


async def test_history_that_is_written_anew_opens_segments() -> None:
    async with served(Behaviour(keeps_reasoning=False)) as (policy, _):
        trajectory = await played(policy, MessageLedger)
    assert [turn.segment for turn in trajectory.turns] == [0, 1, 2]
    assert [turn.segment_break is None for turn in trajectory.turns] == [True, False, False]
    for turn in trajectory.turns:
        assert list(turn.prompt_ids or ()) == list(turn.completion.prompt_ids or ())


async def test_a_token_ledger_plays_over_completions() -> None:
    async with served() as (policy, _):
        trajectory = await played(policy, token_ledger)
    assert trajectory.reward == 1.0
    assert trajectory.stop_reason is StopReason.ENVIRONMENT
    assert [list(turn.completion.ids or ()) for turn in trajectory.turns] == encode_lines(TEMPLATE, LINES)


async def test_a_server_that_refuses_extra_keys_is_asked_without_them_from_then_on() -> None:
    async with served(Behaviour(strict=True)) as (policy, endpoint):
        first, tries = await policy.complete(asked()), endpoint.requests
        second = await policy.complete(asked())
        assert (tries, endpoint.requests) == (2, 3)
    assert first.message == second.message
    assert first.ids is None


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
async def test_what_may_pass_is_tried_again(status: int) -> None:
    behaviour = Behaviour(fail_every=2, fail_status=status, retry_after="0")
    async with served(behaviour) as (policy, endpoint):
        answers = [await policy.complete(asked()) for _ in range(4)]
        assert endpoint.requests == 7
    assert all(answer.message == answers[0].message for answer in answers)


async def test_tries_are_bounded() -> None:
    async with served(Behaviour(fail_every=1, retry_after="0"), retries=2) as (policy, endpoint):
        with pytest.raises(Unavailable, match=r"500 Internal Server Error: scripted failure \(tried 3 times\)$"):
            await policy.complete(asked())
        assert endpoint.requests == 3


async def test_a_pause_beyond_the_deadline_is_not_waited_for() -> None:
    async with served(Behaviour(fail_every=1, fail_status=429, retry_after="3600")) as (policy, endpoint):
        with pytest.raises(Unavailable, match="429 Too Many Requests"):
            await policy.complete(asked(seconds=30.0))
        assert endpoint.requests == 1


@pytest.mark.parametrize("status", [400, 403, 404, 422])
async def test_a_refusal_is_final(status: int) -> None:
    async with served(Behaviour(fail_every=1, fail_status=status)) as (policy, endpoint):
        with pytest.raises(Refused, match=f"{status} .*: scripted failure$"):
            await policy.complete(asked())
        assert endpoint.requests <= 3, "once in each dialect at most"


async def test_what_was_understood_before_is_not_asked_again_in_other_words() -> None:
    async with served(Behaviour(fail_every=2, fail_status=400)) as (policy, endpoint):
        await policy.complete(asked())
        with pytest.raises(Refused):
            await policy.complete(asked())
        assert endpoint.requests == 2


async def test_the_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICY_KEY", KEY)
    async with served(Behaviour(api_key=KEY), api_key_env="POLICY_KEY") as (policy, _):
        assert (await policy.complete(asked())).message is not None
    async with served(Behaviour(api_key="another"), api_key_env="POLICY_KEY") as (policy, _):
        with pytest.raises(Refused) as refused:
            await policy.complete(asked())
    assert "Incorrect API key provided: Bearer ***" in str(refused.value)
    assert KEY not in "".join([*traceback.format_exception(refused.value), repr(policy)])


async def test_a_missing_key_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLICY_KEY", raising=False)
    with pytest.raises(UserError, match="POLICY_KEY is not set"):
        OpenAIPolicy(OpenAIConfig(engine="openai", base_url="http://127.0.0.1/v1", name="m", api_key_env="POLICY_KEY"))


@pytest.mark.parametrize("address", ["127.0.0.1:8000/v1", "ftp://host/v1", "http://", "http://user:word@host/v1"])
def test_an_address_that_is_none_is_the_users_error(address: str) -> None:
    with pytest.raises(UserError, match=r"model\.base_url"):
        OpenAIPolicy(OpenAIConfig(engine="openai", base_url=address, name="m"))


async def test_nobody_there() -> None:
    async with ScriptedEndpoint(TEMPLATE, LINES) as endpoint:
        address = endpoint.url
    policy = OpenAIPolicy(OpenAIConfig(engine="openai", base_url=address, name="m", retries=0))
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:\d+: ClientConnectorError: Cannot connect"):
        await policy.complete(asked())
    await policy.aclose()


async def test_a_server_that_goes_away_and_comes_back_costs_nothing() -> None:
    async with ScriptedEndpoint(TEMPLATE, LINES) as endpoint:
        address = endpoint.url
        policy = OpenAIPolicy(OpenAIConfig(engine="openai", base_url=address, name="m"))
        first = await policy.complete(asked())
    async with ScriptedEndpoint(TEMPLATE, LINES, port=int(address.split(":")[2].split("/")[0])):
        assert (await policy.complete(asked())).message == first.message
    await policy.aclose()


async def test_no_answer_in_time() -> None:
    async with served(Behaviour(latency_seconds=60.0)) as (policy, _):
        with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
            await policy.complete(asked(seconds=0.2))


async def test_an_endpoint_that_outlasts_the_episode_truncates_it() -> None:
    async with served(Behaviour(latency_seconds=60.0)) as (policy, _):
        limits = Limits(episode_seconds=0.5, verify_seconds=0.1, close_seconds=0.1)
        trajectory = await played(policy, MessageLedger, limits)
    assert trajectory.stop_reason is StopReason.TIMEOUT
    assert trajectory.reward == 0.0


async def test_a_history_that_outgrows_the_model_truncates_the_episode() -> None:
    context = len(TEMPLATE.opening(ASKED, TOOLS)) + 3 * len(encode_lines(TEMPLATE, [ADD])[0])
    async with served(Behaviour(context=context), lines=[ADD]) as (policy, _):
        trajectory = await played(policy, MessageLedger)
    assert trajectory.stop_reason is StopReason.CONTEXT
    assert trajectory.failure is None
    assert trajectory.turns


@pytest.mark.parametrize("tokens", [False, True])
async def test_a_prompt_that_does_not_fit(tokens: bool) -> None:
    async with served(Behaviour(context=20)) as (policy, _):
        with pytest.raises(ContextExceeded, match="maximum context length is 20"):
            await policy.complete(asked(tokens))


async def test_extra_body_wins() -> None:
    async with served(extra_body={"max_tokens": 2}) as (policy, _):
        assert (await policy.complete(asked())).num_sampled == 2


async def test_many_at_once_over_few_connections() -> None:
    async with served(connections=4) as (policy, endpoint):
        answers = await asyncio.gather(*(policy.complete(asked()) for _ in range(64)))
        assert endpoint.requests == 64
    assert all(answer.message == answers[0].message for answer in answers)
