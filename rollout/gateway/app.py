"""The gateway as an ASGI application: who may ask what. docs/serving.md lists the routes.

It keeps nothing between requests but its counts; stored responses are in the store that it is given. No prompt and
nothing that a model said is logged.
"""

from __future__ import annotations

import hashlib
import logging
import traceback
import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from urllib.parse import parse_qs

from rollout.errors import UserError
from rollout.gateway.apis import CHAT, MESSAGES, RESPONSES, Api
from rollout.gateway.asking import Whose, call_of, rendered
from rollout.gateway.counts import Counts
from rollout.gateway.doors import Gone, Receive, Scope, Send, body_of, brought, check_key, headers_of
from rollout.gateway.replying import Reply, Replying
from rollout.gateway.request import Request
from rollout.gateway.scribe import Episodes
from rollout.gateway.section import GatewayConfig
from rollout.gateway.sending import Slow
from rollout.gateway.served import Served
from rollout.gateway.shelf import Shelf
from rollout.serving.hints import read_hints
from rollout.wire import messages, models, responses
from rollout.wire.asked import Asked
from rollout.wire.errors import Kind, Refused, invalid, no_such_model
from rollout.wire.stored import ResponseStore

log = logging.getLogger(__name__)

_MIB = 2**20
_EPISODE = "/e/"
_STORED = "/v1/responses/"
_MODELS = "/v1/models/"

Handler = Callable[[Request], Awaitable[None]]


class Gateway:
    """One model over HTTP. Close it when nothing is asked any more."""

    def __init__(
        self,
        served: Served,
        config: GatewayConfig,
        store: ResponseStore,
        key: bytes | None = None,
        episodes: Episodes | None = None,
    ) -> None:
        """`key` is what requests have to bring, sealed (`rollout.gateway.doors`); those of `episodes` bring the token
        that opens their own."""
        self.counts = Counts()
        self._served = served
        self._config = config
        self._store = store
        self._key = key
        self._episodes = episodes
        self._replying = Replying(served, config, self.counts)
        self._routes: Mapping[tuple[str, str], Handler] = {
            ("POST", "/v1/chat/completions"): partial(self._reply, CHAT),
            ("POST", "/v1/responses"): partial(self._reply, RESPONSES),
            ("POST", "/v1/messages"): partial(self._reply, MESSAGES),
            ("POST", "/v1/messages/count_tokens"): self._count,
            ("GET", "/v1/models"): self._models,
            ("GET", "/stats"): self._stats,
        }
        self._paths = {path for _, path in self._routes}

    async def close(self) -> None:
        """Ends what is done ahead of requests."""
        await self._replying.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return
        id, query, seconds = (
            f"req_{uuid.uuid4().hex}",
            scope["query_string"].decode("latin-1"),
            self._config.slow_seconds,
        )
        headers = headers_of(scope)
        request = Request(id, scope["method"], scope["path"], query, headers, receive, send, seconds)
        try:
            try:
                await self._admitted(request)
            except Refused as refused:
                self.counts.refused += 1
                await request.refuse(refused)
        except (Gone, Slow):
            return  # nobody reads what would be said; the server closes what has no end
        except Exception as error:  # a bug costs its own request, and shows nobody's prompt
            log.error("request %s failed: %s", id, _place(error))
            if not request.begun:
                await request.refuse(Refused(Kind.INTERNAL, "the server failed at this request"))

    async def _admitted(self, request: Request) -> None:
        """Finds out who asks, then what for."""
        if request.path == "/health":
            await request.tell({"status": "ok"})
            return
        self._open(request)
        handler = self._routes.get((request.method, request.path)) or self._named(request)
        if handler is None:
            known = request.path in self._paths or request.path.startswith((_STORED, _MODELS))
            what = f"{request.path} takes no {request.method}" if known else f"there is no {request.path}"
            raise Refused(Kind.NOT_FOUND, what)
        await handler(request)

    def _open(self, request: Request) -> None:
        """Checks key or token, and finds the scribe of the episode that a token opens."""
        token, in_path = brought(request.headers), request.path.startswith(_EPISODE)
        if in_path:
            token, _, rest = request.path[len(_EPISODE) :].partition("/")
            request.path = f"/{rest}"
        request.scribe = self._episodes.find(token) if token and self._episodes is not None else None
        if request.scribe is not None:
            request.scope = f"{hashlib.blake2b(token.encode(), digest_size=12).hexdigest()}/"
            if not request.path.startswith("/v1/"):
                raise Refused(Kind.NOT_FOUND, f"there is no {request.path}")
        elif in_path:
            raise Refused(Kind.NOT_FOUND, "this token opens no episode")
        else:
            check_key(request.headers, self._key)

    def _named(self, request: Request) -> Handler | None:
        """The handler of a path that ends in a name."""
        method, path = request.method, request.path
        if method == "GET" and path.startswith(_MODELS):
            return self._model
        if method in ("GET", "DELETE") and path.startswith(_STORED) and "/" not in path[len(_STORED) :]:
            return self._stored if method == "GET" else self._forget
        return None

    async def _body(self, request: Request) -> bytes:
        config = self._config
        return await body_of(request.receive, request.headers, int(config.body_mib * _MIB), config.seconds)

    async def _reply(self, api: Api, request: Request) -> None:
        self.counts.requests += 1
        asked, new = api.read(await self._body(request)), None
        shelf = self._shelf(request)
        if api is RESPONSES:
            asked, new = await shelf.continued(asked), responses.told(asked)
        whose = self._whose(request, asked)
        shown = rendered(self._served, asked, whose.scribe)
        self.counts.touched(shown.removed, shown.characters, len(shown.ids))
        call = call_of(self._served, asked, whose, shown, request.id, self._config)
        await self._replying.reply(Reply(api, request, call, api.heading(asked), shelf, new))

    def _whose(self, request: Request, asked: Asked) -> Whose:
        """Raises Refused for a model that is not served and for hints that cannot be."""
        if request.scribe is None and not self._config.any_name and asked.model != self._served.profile.name:
            raise no_such_model(asked.model)
        try:
            hints = read_hints(asked.hints, request.headers)
        except UserError as error:
            raise invalid("", str(error)) from error
        return Whose(hints, request.scribe or self._served.anew, request.scope)

    async def _count(self, request: Request) -> None:
        asked = messages.read_count(await self._body(request))
        shown = rendered(self._served, asked, self._whose(request, asked).scribe)
        await request.tell(messages.counted(len(shown.ids)))

    def _shelf(self, request: Request) -> Shelf:
        return Shelf(self._store, request.scope)

    async def _stored(self, request: Request) -> None:
        await request.tell(await self._shelf(request).find(request.path[len(_STORED) :]))

    async def _forget(self, request: Request) -> None:
        id = request.path[len(_STORED) :]
        await self._shelf(request).forget(id)
        await request.tell({"id": id, "object": "response", "deleted": True})

    async def _models(self, request: Request) -> None:
        profiles, created = (self._served.profile,), self._served.created
        if not request.is_anthropic:
            await request.tell(models.openai_list(profiles, created))
            return
        given = {name: values[-1] for name, values in parse_qs(request.query).items()}
        limit = given.get("limit", "20")
        if not limit.isdecimal():
            raise invalid("limit", f"expected a number, got '{limit[:20]}'")
        page = models.anthropic_list(profiles, created, int(limit), given.get("after_id"), given.get("before_id"))
        await request.tell(page)

    async def _model(self, request: Request) -> None:
        found = models.find((self._served.profile,), request.path[len(_MODELS) :])
        entry = models.anthropic_entry if request.is_anthropic else models.openai_entry
        await request.tell(entry(found, self._served.created))

    async def _stats(self, request: Request) -> None:
        await request.tell(self.counts.told())


def _place(error: BaseException) -> str:
    """What went wrong and where, without what it says: that may hold a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}" if frames else type(error).__name__
