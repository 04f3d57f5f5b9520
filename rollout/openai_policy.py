"""The policy behind any OpenAI-compatible endpoint: hosted APIs, vLLM, SGLang, Ollama, our own gateway.

A prompt with token ids goes to /completions and comes back as the ids sampled after them; one without goes to
/chat/completions as messages, which the server renders and reads itself. What only some servers know (ids and
logprobs back, sampling written out so that a model's own defaults stay out of it) is asked for until a server
refuses it. Every call of every episode comes through here, so it is aiohttp and not httpx: a request costs half as
much, and the connection pool is not quadratic in the connections (decisions/0013).
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import cast
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx
import msgspec
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)
from yarl import URL

from rollout.config import OpenAIConfig, secret
from rollout.deadlines import deadline
from rollout.errors import ContextExceeded, ResourceDown, Unavailable, UserError, describe
from rollout.openai_stream import EVENT_STREAM, AnswerStream
from rollout.openai_wire import (
    Answer,
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
from rollout.streaming import Heard
from rollout.trajectory import Completion, Prompt, ToolSpec
from rollout.waits import HERE, MODEL_CALL

REPLICA_HEADER = "x-replica"
"""How a gateway of ours says which replica answered."""
_CONNECT = aiohttp.ClientTimeout(total=None, sock_connect=10.0)
"""Seconds a connection may take to open; the call as a whole has its own deadline."""
_RETRIED = frozenset({408, 409, 429})
_ADAPTED = frozenset({400, 422})
_backoff = wait_random_exponential(multiplier=0.25, max=20.0)


class _NotNow(Unavailable):
    """One try failed. `status` is None where no answer came; `after` is how many seconds the endpoint asks to be left
    alone, if it says so."""

    def __init__(self, line: str, status: int | None = None, after: float | None = None) -> None:
        super().__init__(line)
        self.status = status
        self.after = after


_worth_another_try = retry_if_exception_type(_NotNow)


class OpenAIPolicy:
    """A model that answers HTTP. Belongs to the event loop it is first used on; close it with `aclose`."""

    def __init__(self, config: OpenAIConfig) -> None:
        """Raises UserError when the key's variable is not set or base_url is no URL."""
        self._key = secret(config.api_key_env)
        base = _base(config.base_url)
        self._host = base.netloc.decode()
        self._part = f"model endpoint {self._host}"
        self._chat = URL(f"{base}/chat/completions")
        self._tokens = URL(f"{base}/completions")
        self._headers = {"Content-Type": "application/json"}
        if self._key is not None:
            self._headers["Authorization"] = f"Bearer {self._key}"
        self._model, self._extra = config.name, config.extra_body
        self._stop = stop_after_attempt(config.retries + 1)
        self._connections, self._proxy = config.connections, _proxy(base)
        self._session: aiohttp.ClientSession | None = None
        self._dialect = Dialect()
        self._tools: tuple[tuple[ToolSpec, ...], msgspec.Raw] = ((), msgspec.Raw())

    async def complete(self, prompt: Prompt) -> Completion:
        """Samples one completion within prompt.seconds, further tries included.

        Raises ContextExceeded when the prompt does not fit the model, TimeoutError when its time is over,
        Unavailable after the last try and Refused for what no further try would change. All say it in one line that
        never holds the key.
        """
        return await self._sampled(prompt, None)

    async def stream(self, prompt: Prompt, heard: Heard) -> Completion:
        """See StreamingPolicy. Raises as `complete` does, and ResourceDown when an answer breaks off that was heard.

        A server that answers whole all the same is not heard. Closing the connection ends the generation over there.
        """
        return await self._sampled(prompt, heard)

    async def _sampled(self, prompt: Prompt, heard: Heard | None) -> Completion:
        ends = time.monotonic() + prompt.seconds
        try:
            with HERE.on(MODEL_CALL, self._part):
                async with deadline(prompt.seconds):
                    try:
                        return await self._complete(prompt, heard)
                    except _NotNow as error:
                        return await self._again(prompt, error, ends, heard)
        except TimeoutError:
            raise TimeoutError(f"{self._host}: no answer within {prompt.seconds:.1f} s") from None

    async def aclose(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    async def _again(self, prompt: Prompt, failed: _NotNow, ends: float, heard: Heard | None) -> Completion:
        """Goes on after a first try that failed, never waiting beyond `ends`.

        The first try is not tenacity's, as that would cost every call a fifth more.
        """
        failures = [failed]

        async def one() -> Completion:
            if failures:
                raise failures.pop()
            return await self._complete(prompt, heard)

        stop = self._stop | stop_before_delay(ends - time.monotonic())
        retrying = AsyncRetrying(retry=_worth_another_try, stop=stop, wait=_pause, reraise=True)
        try:
            return await retrying(one)
        except _NotNow as error:
            tries = cast(int, retrying.statistics["attempt_number"])
            raise Unavailable(f"{error} (tried {tries} times)" if tries > 1 else str(error)) from error

    async def _complete(self, prompt: Prompt, heard: Heard | None) -> Completion:
        """One try: the request in the dialect the server is known to take, or the first one it turns out to take."""
        tokens = len(prompt.ids) > 0
        url = self._tokens if tokens else self._chat
        dialect = self._dialect
        while True:
            tools = self._encoded(prompt.tools)
            body = request_body(prompt, self._model, dialect, tools, self._extra, stream=heard is not None)
            response, data = await self._post(url, body, prompt, heard)
            if response.status == 200:
                break
            line = self._line(explain(response.status, data if isinstance(data, bytes) else b""))
            if too_long(response.status, line):
                raise ContextExceeded(line)
            simpler = self._simpler(dialect, line, tokens) if response.status in _ADAPTED else None
            if simpler is None:
                raise _failure(response, line)
            dialect = simpler
        try:
            answer = read_answer(data) if isinstance(data, bytes) else data
            completion = as_completion(answer, prompt, response.headers.get(REPLICA_HEADER) or self._host)
        except Refused as error:
            raise Refused(self._line(str(error))) from None
        self._learn(dialect, answer, tokens)
        return completion

    async def _post(
        self, url: URL, body: bytes, prompt: Prompt, heard: Heard | None
    ) -> tuple[aiohttp.ClientResponse, bytes | Answer]:
        """The response and its body: read already, where it came piece by piece."""
        headers = {"X-Session-ID": prompt.session_id, "X-Request-Id": prompt.request_id}
        try:
            call = self._connected().post(url, data=body, headers=headers, proxy=self._proxy, allow_redirects=False)
            async with call as response:
                if heard is None or response.status != 200 or response.content_type != EVENT_STREAM:
                    return response, await response.read()
                return response, await self._listened(response, AnswerStream(heard))
        except (aiohttp.ClientError, OSError) as error:
            raise _NotNow(self._line(describe(error))) from error

    async def _listened(self, response: aiohttp.ClientResponse, answer: AnswerStream) -> Answer:
        """An answer that comes piece by piece. One that breaks off is asked for again only if none of it was heard."""
        try:
            async for piece in response.content.iter_any():
                answer.feed(piece)
            return answer.answer()
        except (aiohttp.ClientError, OSError, Unavailable) as error:
            failure = ResourceDown if answer.begun else _NotNow
            raise failure(self._line(describe(error))) from error

    def _connected(self) -> aiohttp.ClientSession:
        """Made at the first call: a session belongs to the event loop it is made on."""
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._connections or 0)  # 0: as many as are asked for
            jar = aiohttp.DummyCookieJar()
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=jar, headers=self._headers, timeout=_CONNECT
            )
        return self._session

    def _simpler(self, dialect: Dialect, line: str, tokens: bool) -> Dialect | None:
        """The next dialect to try; None when the refusal is about something else."""
        if dialect.proven:
            return None
        return self._dialect if self._dialect.proven else dialect.simpler(line, tokens)

    def _learn(self, dialect: Dialect, answer: Answer, tokens: bool) -> None:
        """Keeps what the server takes; one that gives no ids is not asked for them, nor for logprobs, again."""
        if not self._dialect.proven:
            given = tokens or answer.choices[0].token_ids is not None
            ids, logprobs = dialect.ids and given, dialect.logprobs and given
            self._dialect = replace(dialect, ids=ids, logprobs=logprobs, proven=True)
        if (key := answer.reasoning_key) not in (None, self._dialect.reasoning_key):
            self._dialect = replace(self._dialect, reasoning_key=key)

    def _encoded(self, tools: tuple[ToolSpec, ...]) -> msgspec.Raw:
        """Episodes of a job share their tools: they are encoded once."""
        if tools != self._tools[0]:
            self._tools = (tools, encode_tools(tools))
        return self._tools[1]

    def _line(self, text: str) -> str:
        text = text.replace(self._key, "***") if self._key else text
        return f"{self._host}: {text}"


def _failure(response: aiohttp.ClientResponse, line: str) -> ResourceDown:
    if response.status in _RETRIED or response.status >= 500:
        return _NotNow(line, response.status, retry_after(response.headers.get("retry-after")))
    return Refused(line, response.status)


def _pause(state: RetryCallState) -> float:
    """Seconds until the next try: what the server asks for, else a growing random time."""
    error = state.outcome.exception() if state.outcome is not None else None
    after = error.after if isinstance(error, _NotNow) else None
    return after if after is not None else _backoff(state)


def _base(text: str) -> httpx.URL:
    """model.base_url without its last slash."""
    try:
        url = httpx.URL(text.rstrip("/"))
    except httpx.InvalidURL as error:
        raise UserError(f"model.base_url: {error}, found {text!r}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"model.base_url: expected http(s)://HOST/v1, found {text!r}")
    if url.userinfo:
        raise UserError("model.base_url: holds a user or password: name the key's variable in model.api_key_env")
    return url


def _proxy(base: httpx.URL) -> str | None:
    """The proxy that the environment names for `base`, read once."""
    address = getproxies().get(base.scheme)
    return address if address and not proxy_bypass(base.host) else None
