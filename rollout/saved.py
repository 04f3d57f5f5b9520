"""Finished turns in files: how one is written as bytes, framed, found again and read.

A file is a line that says what wrote it, then records one after the other:

    u32 length of the body | u32 crc32 of key and body | u16 length of the key | key | body

little-endian; the key is (episode id, number of the turn), the body the Saved turn, both msgpack. Nothing is ever
changed in place. A process that is killed leaves at worst a torn last record, which length or checksum give away:
what stands before it counts.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from rollout.errors import RolloutError
from rollout.run_folder import code_version
from rollout.turn import Event, Message, Turn

HEADER = f"rollout turns 1, written by {code_version()}\n".encode()
"""A file that begins otherwise is not read: another version may mean another thing by the same bytes."""
_FRAME = struct.Struct("<IIH")

T = TypeVar("T")


class Unreadable(RolloutError):
    """A file of turns that another version wrote, or whose record does not say what a turn is."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A finished turn, and what is needed to go on behind it."""

    turn: Turn
    snapshot: bytes | None = None
    """The session's state after the turn, of resources that give one and where a tool has run."""
    opening: tuple[Message, ...] = ()
    """With turn 0: the conversation that the policy was given."""
    decided: tuple[Event, ...] = ()
    """What somebody decided about the turn's calls."""
    answered: bool = True
    """False for a turn whose calls wait for somebody: it has no results yet."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the record of a saved turn begins."""

    file: Path
    offset: int


def record(episode_id: str, number: int, saved: Saved) -> bytes:
    """A saved turn as it stands in a file. Raises TypeError or ValueError for what cannot be written."""
    key = _encoder.encode((episode_id, number))
    body = _encoder.encode(saved)
    return _FRAME.pack(len(body), zlib.crc32(body, zlib.crc32(key)), len(key)) + key + body


def scan(file: Path, offset: int = 0) -> Iterator[tuple[str, int, Place, int]]:
    """Episode, number and place of every whole record from `offset` on, and where the record ends.

    Raises Unreadable, and OSError when there is no such file.
    """
    held = file.read_bytes()
    if not held.startswith(HEADER[: len(held)]):
        raise Unreadable(f"{file}: was written by another version")
    offset = max(offset, len(HEADER))
    while (ends := _end_of(held, offset)) is not None:
        episode_id, number = _keys.decode(_key(held, offset))
        yield episode_id, number, Place(file, offset), ends
        offset = ends


def put(kept: list[T], number: int, found: T) -> list[T]:
    """Puts a turn behind those of its episode; which ones that makes void.

    A turn replaces what an earlier attempt had from there on; one whose predecessors are missing is of no use.
    """
    if number > len(kept):
        return [found]
    void, kept[number:] = kept[number:], [found]
    return void


def read(places: Iterable[Place]) -> tuple[Saved, ...]:
    """The turns at these places. Raises Unreadable, and OSError when a file is gone."""
    saved: list[Saved] = []
    for path, inside in groupby(places, key=lambda place: place.file):
        with path.open("rb") as file:
            for at in inside:
                file.seek(at.offset)
                held = file.read(_FRAME.size)
                if len(held) == _FRAME.size:
                    length, _, key_length = _FRAME.unpack(held)
                    held += file.read(key_length + length)
                if _end_of(held, 0) is None:
                    raise Unreadable(f"{path}: a record has changed since it was written")
                saved.append(decoded(held[_FRAME.size + len(_key(held, 0)) :]))
    return tuple(saved)


def _end_of(held: bytes, offset: int) -> int | None:
    """Where the record at `offset` ends; None when it is not whole, as its writer died in the middle of it."""
    if offset + _FRAME.size > len(held):
        return None
    length, checksum, key_length = _FRAME.unpack_from(held, offset)
    begins = offset + _FRAME.size
    ends = begins + key_length + length
    whole = ends <= len(held) and zlib.crc32(memoryview(held)[begins:ends]) == checksum
    return ends if whole and key_length else None


def _key(held: bytes, offset: int) -> bytes:
    key_length = _FRAME.unpack_from(held, offset)[2]
    begins = offset + _FRAME.size
    return held[begins : begins + key_length]


def decoded(body: bytes) -> Saved:
    """A record's body as what was saved; numbers come back in the arrays they were in. Raises Unreadable."""
    try:
        told = _decoder.decode(body)
        turn, completion = told["turn"], told["turn"]["completion"]
        # What is already as it was, is kept from the conversion: it would make lists of arrays, drop unknown keys.
        prompt_ids, turn["prompt_ids"] = turn["prompt_ids"], None
        kept = {name: completion.pop(name, None) for name in ("ids", "logprobs", "prompt_ids", "message")}
        opening, told["opening"] = tuple(told["opening"]), ()
        saved = msgspec.convert(told, Saved)
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
        raise Unreadable(f"a saved turn cannot be read: {error}") from error
    completed = replace(saved.turn.completion, **kept)
    return replace(saved, turn=replace(saved.turn, prompt_ids=prompt_ids, completion=completed), opening=opening)


def _plain(value: Any) -> Any:
    """What msgspec does not know: arrays by their bytes, numpy's numbers as Python's."""
    if isinstance(value, array):
        numbers = cast("array[int]", value)
        return msgspec.msgpack.Ext(ord(numbers.typecode), numbers.tobytes())
    return value.item() if hasattr(value, "item") and not getattr(value, "shape", ()) else list(value)


def _array(code: int, data: memoryview) -> array[Any]:
    numbers: array[Any] = array(chr(code))
    numbers.frombytes(data)
    return numbers


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_decoder = msgspec.msgpack.Decoder(ext_hook=_array)
_keys = msgspec.msgpack.Decoder(tuple[str, int])
