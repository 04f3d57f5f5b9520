"""A model call and its reply, whole or as a stream, for a client that may hang up at any time."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from rollout.gateway.answering import Answered, answer
from rollout.gateway.apis import Api
from rollout.gateway.asking import Call
from rollout.gateway.counts import Counts
from rollout.gateway.doors import Gone
from rollout.gateway.prefill import Prefills
from rollout.gateway.request import Request
from rollout.gateway.section import GatewayConfig
from rollout.gateway.sending import Outbox, Slow, Work
from rollout.gateway.served import Served
from rollout.gateway.shelf import Shelf
from rollout.turn import Message
from rollout.wire.errors import Refused
from rollout.wire.reply import Event, Fold, OneCall
from rollout.wire.responses_stream import ResponsesStream
from rollout.wire.stream import Heading, Stream


@dataclass(frozen=True, slots=True)
class Reply:
    """What is to be said, to whom and how."""

    api: Api
    request: Request
    call: Call
    heading: Heading
    shelf: Shelf
    new: tuple[Message, ...] | None
    """What the request adds to a conversation whose responses are stored; None for the other APIs."""


class Replying:
    """Makes calls and tells what comes of them."""

    def __init__(self, served: Served, config: GatewayConfig, counts: Counts) -> None:
        self._served = served
        self._config = config
        self._counts = counts
        self._prefills = Prefills(served, config.hints, counts)

    async def close(self) -> None:
        """Ends what is done ahead of requests."""
        await self._prefills.close()

    async def reply(self, one: Reply) -> None:
        """Answers. Raises Refused where nothing has been said yet, Gone and Slow for what the client does."""
        self._counts.running += 1
        try:
            await (self._stream(one) if one.call.asked.stream else self._whole(one))
        except Slow:
            self._counts.slow += 1
            raise
        except Gone:
            self._counts.gone += 1
            raise
        finally:
            self._counts.running -= 1

    async def _whole(self, one: Reply) -> None:
        asked = one.call.asked
        passing, fold = OneCall(asked.parallel_calls), Fold()

        def hears(event: Event) -> None:
            if passing.passes(event):
                fold.add(event)

        answered: Answered = await _while_there(one.request, answer(self._served, one.call, hears, listens=False))
        fold.add(answered.finished)
        whole = fold.whole()
        body = one.api.whole(asked, one.heading, whole)
        if one.new is not None:
            await one.shelf.keep(asked, one.new, whole, body)
        self._prefills.after(one.call, answered.ids, whole)
        await one.request.tell(body)

    async def _stream(self, one: Reply) -> None:
        config, request = self._config, one.request
        stream = one.api.opened(one.call.asked, one.heading, config)
        headers = request.answer_headers
        outbox = Outbox(request.send, headers, stream.idle, config.ping_seconds, config.slow_seconds)
        doing = Work(request.receive, self._say(one, stream, outbox))
        doing.task.add_done_callback(lambda _: outbox.close())
        try:
            await outbox.run()
            request.begun = outbox.began
            if doing.gone:
                raise Gone
            if (error := doing.task.exception()) is not None:
                if not outbox.began or not isinstance(error, Refused):
                    raise error
                self._counts.refused += 1
                outbox.put(stream.fail(error))
            await outbox.end()
        finally:
            doing.end()

    async def _say(self, one: Reply, stream: Stream, outbox: Outbox) -> None:
        """Makes the call and writes what comes of it."""
        fold = Fold() if self._prefills.wants(one.call) else None
        write = outbox.open

        def hears(event: Event) -> None:
            nonlocal write
            if fold is not None:
                fold.add(event)
            write(stream.feed(event))
            write = outbox.put

        answered = await answer(self._served, one.call, hears, listens=True)
        last = stream.feed(answered.finished)
        if isinstance(stream, ResponsesStream) and one.new is not None:
            assert stream.reply is not None and stream.body is not None, "it has heard the end"
            await one.shelf.keep(one.call.asked, one.new, stream.reply, stream.body)
        if fold is not None:
            fold.add(answered.finished)
            self._prefills.after(one.call, answered.ids, fold.whole())
        outbox.put(last)


async def _while_there(request: Request, work: Coroutine[Any, Any, Answered]) -> Answered:
    """What the work gives. Raises Gone when the client hangs up, which ends it."""
    doing = Work(request.receive, work)
    try:
        await doing.done()
    finally:
        doing.end()
    if doing.gone:
        raise Gone
    return doing.task.result()
