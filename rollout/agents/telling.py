"""The hooks that listen to a run as it happens: `on_token` and `on_event`.

Events come faster than a person's function may take them, and whoever samples does not wait for it. So they stand in a
line; text that waits there together is told in one piece. Before the turn acts, all that was said has been told.

Content that guardrails are still to judge is held back with `hold`: what nobody is to see is not shown. What they let
pass comes behind the turn's end then, as they leave it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace

from rollout.agents.hooks import Hooks
from rollout.errors import BoundaryError
from rollout.streaming import CallResult, Hears, SegmentDone, StreamEvent, TextDelta, TurnDone
from rollout.trajectory import Segment, ToolUse


@dataclass(slots=True)
class Telling:
    """One agent at work in one episode."""

    hooks: Hooks
    holds: bool = False
    """Content is held back until `release`."""
    _line: deque[StreamEvent] = field(default_factory=deque[StreamEvent])
    _held: list[StreamEvent] = field(default_factory=list[StreamEvent])
    _answered: set[str] = field(default_factory=set[str])
    """Ids of the calls of the turn whose results were told."""
    _task: asyncio.Task[None] | None = None
    _context: Context = field(default_factory=copy_context)
    """That of the episode: who tells what was sampled may be at work for many."""

    @staticmethod
    def of(hooks: Hooks | None, guarded: bool) -> Telling | None:
        """None where nobody listens; `guarded` when guardrails judge what is said."""
        if hooks is None or not hooks.listens:
            return None
        return Telling(hooks, guarded and hooks.holds)

    def listens(self) -> Hears:
        """What is to hear of the turn that is about to be sampled. What nobody has judged by now nobody will."""
        self._context = copy_context()
        self.instead(None)
        return self.hear

    def hear(self, event: StreamEvent) -> None:
        """See Hears."""
        if self.holds and _is_content(event):
            self._held.append(event)
            return
        if isinstance(event, TurnDone):
            self._answered.clear()
        self._say(event)

    def _say(self, event: StreamEvent) -> None:
        self._line.append(event)
        if self._task is None:
            self._task = asyncio.create_task(self._tell(), context=self._context.copy())

    def result(self, use: ToolUse) -> None:
        """A call has its result; told once."""
        if use.call.id not in self._answered:
            self._answered.add(use.call.id)
            self.hear(CallResult(use))

    def release(self) -> None:
        """What was held back may be told."""
        held, self._held = self._held, []
        for event in held:
            self._say(event)

    def instead(self, text: str | None) -> None:
        """What was held back is never told, but `text`; None for nothing."""
        self._held.clear()
        if text is not None:
            self._say(TextDelta(0, text))
            self._say(SegmentDone(0, Segment("content", text)))

    async def settle(self) -> None:
        """Returns when all that was heard has been told. Raises BoundaryError when a hook breaks that is to fail the
        episode."""
        if self._task is not None:
            await self._task

    async def stop(self) -> None:
        """Tells nothing any more."""
        self._held.clear()
        self._line.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _tell(self) -> None:
        try:
            for event in self._next():
                if isinstance(event, TextDelta):
                    await self.hooks.observe("on_token", event.text)
                await self.hooks.observe("on_event", event)
        except BoundaryError:
            self._line.clear()
            raise
        self._task = None

    def _next(self) -> Iterator[StreamEvent]:
        """What is in the line, text of one stretch together."""
        while self._line:
            event = self._line.popleft()
            while isinstance(event, TextDelta) and self._line:
                more = self._line[0]
                if not isinstance(more, TextDelta) or more.place != event.place:
                    break
                event = replace(event, text=event.text + more.text)
                self._line.popleft()
            yield event


def _is_content(event: StreamEvent) -> bool:
    return isinstance(event, TextDelta) or (isinstance(event, SegmentDone) and event.segment.kind == "content")
