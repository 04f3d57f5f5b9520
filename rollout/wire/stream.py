"""What the three streams have in common: server-sent events, and what a gateway does with whichever it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from rollout.wire.errors import Refused
from rollout.wire.reply import Event

to_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Heading:
    """What a reply is told to be: its id, the model by the name it was asked for, and Unix seconds."""

    id: str
    model: str
    created: int


class Stream(Protocol):
    """A reply on its way out. Bytes may be empty: not every event is told."""

    def feed(self, event: Event) -> bytes:
        """What an event looks like. The first is Begun; after Finished the stream is over."""
        ...

    def fail(self, refused: Refused) -> bytes:
        """The end of a stream that began well."""
        ...

    def idle(self) -> bytes:
        """Something that means nothing, so that the connection is not taken for dead."""
        ...


def named_event(name: str, data: Any) -> bytes:
    """One event with a name; the data is encoded here."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), to_json(data))


COMMENT = b": idle\n\n"
"""Readers of server-sent events skip it."""
