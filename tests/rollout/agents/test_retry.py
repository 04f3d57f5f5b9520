"""Further attempts: how long the pauses are, which errors are worth one, and the policy that makes them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random
from typing import Any

import aiohttp
import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from rollout.agents.limiter import LocalLimiter
from rollout.agents.rates import Rate, Rates
from rollout.agents.retry import RetryConfig, RetryingPolicy, asked_pause, backoff, status_of, worth_retrying
from rollout.config import OpenAIConfig
from rollout.errors import ContextExceeded, ResourceDown, Unavailable, UserError
from rollout.openai_policy import OpenAIPolicy
from rollout.openai_wire import Refused
from rollout.scripted import ScriptedPolicy
from rollout.scripted_endpoint import Behaviour, ScriptedEndpoint
from rollout.template import BUNDLED, load_template
from rollout.trajectory import Completion, FinishReason, Message, Prompt, Sampling

TEMPLATE = load_template(BUNDLED)
ASKED: list[Message] = [{"role": "user", "content": "Go on."}]
EVEN = RetryConfig(jitter=False)
REQUEST = httpx.Request("POST", "http://there/v1")


def prompt(seconds: float = 300.0) -> Prompt:
    return Prompt("e.1.0", "e", 0, TEMPLATE.opening(ASKED, ()), ASKED, (), 64, Sampling(), seconds)


def pauses(config: RetryConfig, retries: int) -> list[float]:
    return [backoff(config, retry, Random(0)) for retry in range(1, retries + 1)]


def test_vector_1_pauses_without_jitter() -> None:
    assert pauses(EVEN, 3) == [0.5, 1, 2]
    assert pauses(RetryConfig(max_retries=5, initial_delay=1, max_delay=120, jitter=False), 8) == [
        *(1, 2, 4, 8, 16, 32, 64, 120)
    ]
    assert pauses(EVEN, 8)[-2:] == [32, 60]
    assert backoff(EVEN, 5000, Random(0)) == 60, "however large the power"
    assert backoff(RetryConfig(initial_delay=0, jitter=False), 5000, Random(0)) == 0


@given(st.integers(1, 12), st.integers())
def test_vector_1_jitter_takes_a_quarter_off_at_most(retry: int, seed: int) -> None:
    whole = backoff(EVEN, retry, Random(0))
    assert 0.75 * whole <= backoff(RetryConfig(), retry, Random(seed)) <= whole
    assert backoff(RetryConfig(), retry, Random(seed)) == backoff(RetryConfig(), retry, Random(seed))


def test_the_defaults_are_those_of_nimble() -> None:
    config = RetryConfig()
    assert (config.max_retries, config.initial_delay, config.max_delay, config.multiplier) == (3, 0.5, 60, 2)
    assert config.jitter
    assert config.retry_on_status == (408, 429, 500, 502, 503, 504, 529)


def response(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers, request=REQUEST)


def of_httpx(status: int, **headers: str) -> Exception:
    return httpx.HTTPStatusError("HTTP 200 status 429", request=REQUEST, response=response(status, **headers))


def of_aiohttp(status: int, **headers: str) -> Exception:
    request: Any = None
    return aiohttp.ClientResponseError(request, (), status=status, headers=CIMultiDict(headers))


def of_openai(status: int, **headers: str) -> Exception:
    answered: Any = response(status, **headers)
    return openai.APIStatusError("429", response=answered, body=None)


SOURCES = [of_httpx, of_aiohttp, of_openai]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("status", "again"),
    [(408, True), (429, True), (500, True), (529, True), (400, False), (401, False), (404, False), (501, False)],
)
def test_vector_2_the_status_decides_and_never_the_text(source: Any, status: int, again: bool) -> None:
    error = source(status)
    assert status_of(error) == status
    assert worth_retrying(error, RetryConfig()) is again
    assert not worth_retrying(error, RetryConfig(retry_on_status=())), "nor is it a network error"
    assert worth_retrying(error, RetryConfig(retry_on_status=(status,))), "whoever lists it gets it"


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        TimeoutError(),
        socket.gaierror(),
        httpx.ConnectTimeout(""),
        httpx.ConnectError(""),
        httpx.RemoteProtocolError(""),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError(),
        Unavailable("replica 1 is gone"),
        raised_from(RuntimeError("wrapped"), ConnectionRefusedError()),
    ],
    ids=repr,
)
def test_no_answer_is_worth_another_attempt_where_it_is_wished(error: Exception) -> None:
    assert worth_retrying(error, RetryConfig())
    assert not worth_retrying(error, RetryConfig(retry_on_network=False))


@pytest.mark.parametrize(
    "error",
    [
        ContextExceeded("too long"),
        UserError("wrong"),
        ValueError("HTTP 429"),
        FileNotFoundError(),
        httpx.UnsupportedProtocol(""),
        raised_from(ResourceDown("tokens were handed on before it broke"), ConnectionResetError()),
        raised_from(ResourceDown("tokens were handed on before it broke"), of_httpx(503)),
    ],
    ids=repr,
)
def test_what_no_other_attempt_changes_is_not_worth_one(error: Exception) -> None:
    assert not worth_retrying(error, RetryConfig())


@pytest.mark.parametrize("source", SOURCES)
def test_a_server_asks_for_a_pause_in_seconds_or_by_date(source: Any) -> None:
    name = "Retry-After"
    assert asked_pause(source(429, **{name: "7.5"})) == 7.5
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 0 < (asked_pause(source(429, **{name: date})) or 0) <= 3600
    past = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    assert asked_pause(source(429, **{name: past})) == 0
    assert asked_pause(source(429, **{name: "soon"})) is None
    assert asked_pause(source(429)) is None


@dataclass
class Failing:
    """A policy whose first attempts fail as listed; whoever comes after them is answered."""

    errors: Sequence[Exception]
    asked: list[Prompt] = field(default_factory=list[Prompt])

    async def complete(self, prompt: Prompt) -> Completion:
        self.asked.append(prompt)
        if len(self.asked) <= len(self.errors):
            raise self.errors[len(self.asked) - 1]
        return await ScriptedPolicy(TEMPLATE, ["yes"]).complete(prompt)


@dataclass
class Time:
    """A clock that only pauses move."""

    now: float = 1000.0
    pauses: list[float] = field(default_factory=list[float])

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def retrying(policy: Any, time: Time, config: RetryConfig = EVEN, **options: Any) -> RetryingPolicy:
    return RetryingPolicy(policy, "m", config, clock=time.clock, sleep=time.sleep, **options)


async def test_vector_2_three_retries_are_four_calls_and_the_original_error_surfaces() -> None:
    time = Time()
    errors = [of_httpx(529), of_httpx(503), TimeoutError(), of_httpx(500)]
    inner = Failing(errors)
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await retrying(inner, time).complete(prompt())
    assert raised.value is errors[3]
    assert len(inner.asked) == 4
    assert time.pauses == [0.5, 1, 2]


async def test_a_completion_tells_of_the_attempts_that_failed_before_it() -> None:
    inner = Failing([of_httpx(529), of_httpx(503), TimeoutError()])
    told = (await retrying(inner, Time()).complete(prompt())).attempts
    assert [(one.number, one.status, one.delay) for one in told] == [(1, 529, 0.5), (2, 503, 1), (3, None, 2)]
    assert told[2].error == "TimeoutError"


async def test_vector_2_no_retries_are_one_call() -> None:
    inner, error = Failing([of_httpx(529)]), of_httpx(529)
    inner.errors = [error]
    with pytest.raises(httpx.HTTPStatusError) as raised:
        await retrying(inner, Time(), RetryConfig(max_retries=0)).complete(prompt())
    assert raised.value is error
    assert len(inner.asked) == 1


async def test_vector_2_a_401_is_one_call_and_a_529_another() -> None:
    refused, later = Failing([of_httpx(401)]), Failing([of_httpx(529)])
    with pytest.raises(httpx.HTTPStatusError):
        await retrying(refused, Time()).complete(prompt())
    completion = await retrying(later, Time()).complete(prompt())
    assert (len(refused.asked), len(later.asked)) == (1, 2)
    assert completion.finish_reason is FinishReason.STOP
    assert completion.queue_seconds == 0.5, "a pause is no work"


async def test_without_a_failure_nothing_is_changed() -> None:
    inner = Failing([])
    first = await retrying(inner, Time()).complete(prompt())
    assert first == await ScriptedPolicy(TEMPLATE, ["yes"]).complete(prompt())


async def test_a_pause_that_the_server_asks_for_wins_when_it_is_longer() -> None:
    time = Time()
    errors = [of_httpx(429, **{"Retry-After": "20"}), of_httpx(429, **{"Retry-After": "0.1"})]
    await retrying(Failing(errors), time).complete(prompt())
    assert time.pauses == [20, 1]
    time = Time()
    await retrying(Failing(errors), time, RetryConfig(jitter=False, respect_retry_after=False)).complete(prompt())
    assert time.pauses == [0.5, 1]


async def test_a_pause_beyond_the_time_that_is_left_is_not_begun() -> None:
    time, inner = Time(), Failing([of_httpx(429, **{"Retry-After": "301"})])
    with pytest.raises(httpx.HTTPStatusError):
        await retrying(inner, time).complete(prompt(seconds=300))
    assert (len(inner.asked), time.pauses) == (1, [])
    inner = Failing([of_httpx(500)] * 4)
    with pytest.raises(httpx.HTTPStatusError):
        await retrying(inner, time).complete(prompt(seconds=1.5))
    assert (len(inner.asked), time.pauses) == (2, [0.5])
    assert [one.seconds for one in inner.asked] == [1.5, 1.0], "each attempt is told what is left"


class Silent:
    """A policy that never answers the first time."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def complete(self, prompt: Prompt) -> Completion:
        if not self.asked.is_set():
            self.asked.set()
            await asyncio.Event().wait()
        return await ScriptedPolicy(TEMPLATE, ["yes"]).complete(prompt)


async def test_invariant_5_an_attempt_has_a_deadline_of_its_own_and_one_of_the_call() -> None:
    config = RetryConfig(jitter=False, attempt_timeout=0.01)
    completion = await retrying(Silent(), Time(), config).complete(prompt())
    assert [one.error for one in completion.attempts] == ["TimeoutError: m: no answer within 0.0 s"]
    with pytest.raises(TimeoutError):
        await RetryingPolicy(Silent(), "m", EVEN).complete(prompt(seconds=0.01))


async def test_a_completion_that_came_back_is_kept_whatever_ended_it() -> None:
    class Aborting:
        asked = 0

        async def complete(self, prompt: Prompt) -> Completion:
            self.asked += 1
            return Completion(FinishReason.ABORT)

    inner = Aborting()
    assert (await retrying(inner, Time()).complete(prompt())).finish_reason is FinishReason.ABORT
    assert inner.asked == 1


async def test_each_attempt_takes_a_permit_of_its_own_and_gives_it_back() -> None:
    time = Time()
    rates = Rates({"m": Rate(rps=1000, max_concurrency=1)}, time.now)
    policy = retrying(Failing([of_httpx(500)] * 2), time, limiter=LocalLimiter(rates, time.clock))
    await policy.complete(prompt())
    assert rates.next_at(time.now) == float("inf")
    rates.ask("next", "m", 0, time.now, 10)
    assert rates.due(time.now) == ["next"], "all were given back"


async def test_attempts_pass_the_limiter_too() -> None:
    """With one request for the whole time there is no second attempt."""
    time = Time()
    rates = Rates({"m": Rate(rps=1e-6)}, time.now)
    inner = Failing([of_httpx(500)])
    with pytest.raises(TimeoutError, match="rate limit"):
        await retrying(inner, time, limiter=LocalLimiter(rates, time.clock)).complete(prompt(seconds=0.55))
    assert len(inner.asked) == 1


async def test_a_call_that_is_cancelled_gives_its_permit_back() -> None:
    time = Time()
    rates = Rates({"m": Rate(max_concurrency=1)}, time.now)
    limiter = LocalLimiter(rates, time.clock)
    silent = Silent()
    call = asyncio.create_task(retrying(silent, time, limiter=limiter).complete(prompt()))
    await silent.asked.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await limiter.acquire("m", 0, 60)


async def asked_of_a_server(behaviour: Behaviour, time: Time, **config: Any) -> Completion:
    async with ScriptedEndpoint(TEMPLATE, ["yes"], behaviour) as endpoint:
        inner = OpenAIPolicy(OpenAIConfig(engine="openai", base_url=endpoint.url, name="scripted", retries=0))
        policy = retrying(inner, time, RetryConfig(jitter=False, **config))
        try:
            await policy.complete(prompt())  # the first that a server with fail_every=2 answers
            return await policy.complete(prompt())
        finally:
            await inner.aclose()


@pytest.mark.parametrize(("status", "asks", "pause"), [(408, None, 0.5), (429, "3", 3), (500, "0", 0.5), (529, "3", 3)])
async def test_a_real_server_that_fails_now_and_then_is_asked_again(
    status: int, asks: str | None, pause: float
) -> None:
    time = Time()
    behaviour = Behaviour(fail_every=2, fail_status=status, retry_after=asks)
    completion = await asked_of_a_server(behaviour, time)
    assert completion.finish_reason is FinishReason.STOP
    assert [(one.number, one.status, one.delay) for one in completion.attempts] == [(1, status, pause)]
    assert time.pauses == [pause]


@pytest.mark.parametrize("status", [401, 409, 501])
async def test_a_real_server_that_refuses_is_not(status: int) -> None:
    time = Time()
    with pytest.raises(ResourceDown) as raised:
        await asked_of_a_server(Behaviour(fail_every=2, fail_status=status), time)
    assert status_of(raised.value) == status
    assert isinstance(raised.value, Refused) or raised.value.__cause__ is not None
    assert time.pauses == []


async def test_a_real_server_that_is_gone_is_a_network_error() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        inner = OpenAIPolicy(OpenAIConfig(engine="openai", base_url=url, name="m", retries=0))
        time = Time()
        with pytest.raises(Unavailable):
            await retrying(inner, time).complete(prompt())
        await inner.aclose()
    assert time.pauses == [0.5, 1, 2]
