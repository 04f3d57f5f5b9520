"""What of a reply a stream tells, and when: what is told cannot be taken back."""

from __future__ import annotations

from collections.abc import Callable

from rollout.wire.reply import (
    ArgumentsDelta,
    CallEnded,
    CallStarted,
    ContentDelta,
    Event,
    Finished,
    OneCall,
    ReasoningDelta,
)


def never(_: str) -> bool:
    """Holds no call back."""
    return False


class Shown:
    """Events as a client gets to see them.

    Calls to tools that `holds` names are told when they can be made, all at once, so that a call that is cut off is
    never seen; the others as they are drawn. A call that cannot be read and was not begun is told as content.
    """

    __slots__ = ("_holds", "_one", "_started", "_unread")

    def __init__(self, parallel: bool, holds: Callable[[str], bool] = never) -> None:
        self._one = OneCall(parallel)
        self._holds = holds
        self._started = -1
        """The last part whose call was begun before the client's eyes."""
        self._unread: ContentDelta | None = None

    @property
    def full(self) -> bool:
        """Nothing that the model may still say will be shown."""
        return self._one.full

    def of(self, event: Event) -> tuple[Event, ...]:
        """What is told now."""
        if not self._one.passes(event):
            return ()
        if self._unread is None and isinstance(event, ContentDelta | ReasoningDelta):
            return (event,)
        before: tuple[Event, ...] = ()
        if self._unread is not None:
            if not (isinstance(event, Finished) and event.cut):
                before = (self._unread,)
            self._unread = None
        return (*before, *self._now(event))

    def _now(self, event: Event) -> tuple[Event, ...]:
        match event:
            case CallStarted(part, _, name):
                if self._holds(name):
                    return ()
                self._started = part
            case ArgumentsDelta(part) if part != self._started:
                return ()
            case CallEnded(part, id, name, arguments, text, error) if part != self._started:
                if error is not None:
                    self._unread = ContentDelta(part, text)
                    return ()
                return (CallStarted(part, id, name), ArgumentsDelta(part, id, arguments), event)
            case _:
                pass
        return (event,)
