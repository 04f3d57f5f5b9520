"""What is in flight is written down: a runner's finished turns, so that whoever plays an episode next can go on.

RUN/turns/<runner>-0000.turns, -0001.turns, ...: appended to by one runner, read by those that play after it. Turns
are handed over as they are and encoded about once a second in a thread, so that a turn costs the event loop an
append to a list. A file that no unfinished episode stands in is deleted, so disk and memory follow what is in flight.

Nothing is flushed to the disk by force: what a killed process wrote stays, and a node that dies takes at most the
last seconds along, which are then played again. What goes wrong here costs turns, never an episode or a run: it is
logged once and the episode starts again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path

import msgspec

from rollout.errors import describe
from rollout.saved import HEADER, Place, Saved, Unreadable, put, read, record, scan
from rollout.thread import DISK_SECONDS, threaded
from rollout.trajectory import Lease

WRITE_SECONDS = 1.0
"""How long a finished turn waits for company: what a killed runner loses at most."""
SEGMENT_BYTES = 8 << 20
"""A file that has so much is followed by another one."""
RETRY_SECONDS = 300.0
"""How long the turns of an attempt that failed are kept for the next one, wherever that is played."""

_SUFFIX = ".turns"
_CANNOT_WRITE = (msgspec.MsgspecError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What encoding raises for values that are not what their types say."""

log = logging.getLogger(__name__)

Entry = tuple[str, int, Saved]
"""Episode, number of the turn, turn."""


class Journal:
    """The turns of the episodes that one runner plays. Belongs to one event loop."""

    def __init__(
        self, folder: Path, name: str, every: float = WRITE_SECONDS, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self.name = name
        self._folder = folder
        self._every = every
        self._segment_bytes = segment_bytes
        self._earlier = Earlier(folder)
        self._pending: list[Entry] = []
        self._writing: list[Entry] = []
        self._settled: set[str] = set()
        """Episodes that ended since the last writing began, while turns were on their way."""
        self._places: dict[str, list[Place]] = {}
        self._live: Counter[Path] = Counter()
        """Turns of unfinished episodes by file."""
        self._leaving: dict[str, asyncio.TimerHandle] = {}
        self._segments = 0
        self._file: FileIO | None = None
        self._path: Path | None = None
        """Of the file that is written to."""
        self._lock = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None
        self._broken = False

    def add(self, episode_id: str, number: int, saved: Saved) -> None:
        """Takes a finished turn; it is written within about a second."""
        if self._broken:
            return
        self._pending.append((episode_id, number, saved))
        if self._writer is None:
            self._writer = asyncio.create_task(self._keep_writing())

    async def take_over(self, episode_id: str, played_by: str | None) -> tuple[Saved, ...]:
        """The turns that the attempt before, played by that runner, has left of an episode that begins here."""
        self._stay(episode_id)
        if played_by is None:
            return ()
        if played_by == self.name:
            return await self._own(episode_id)
        saved = await self._earlier.turns(played_by, episode_id)
        for number, one in enumerate(saved):
            self.add(episode_id, number, one)
        return saved

    def settle(self, episode_ids: Iterable[str]) -> None:
        """Episodes whose rows are committed: nobody will play them again."""
        for episode_id in episode_ids:
            self._stay(episode_id)
            if self._pending or self._writing:
                self._settled.add(episode_id)
            self._release(self._places.pop(episode_id, ()))

    def leave(self, episode_id: str) -> None:
        """An episode whose attempt failed and that may be played elsewhere: its turns are kept for a while."""
        loop = asyncio.get_running_loop()
        self._leaving[episode_id] = loop.call_later(RETRY_SECONDS, self.settle, [episode_id])

    async def close(self) -> None:
        """Writes what is left; the files stay for those who play after this runner."""
        for timer in self._leaving.values():
            timer.cancel()
        await self._write_all()
        if self._writer is not None:
            self._writer.cancel()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _stay(self, episode_id: str) -> None:
        if (timer := self._leaving.pop(episode_id, None)) is not None:
            timer.cancel()

    async def _own(self, episode_id: str) -> tuple[Saved, ...]:
        kept: list[Place | Saved] = [*self._places.get(episode_id, ())]
        for written_by, number, saved in (*self._writing, *self._pending):
            if written_by == episode_id:
                put(kept, number, saved)
        places = [one for one in kept if isinstance(one, Place)]
        saved = await _read(places)
        return (*saved, *(one for one in kept if isinstance(one, Saved))) if len(saved) == len(places) else ()

    async def _keep_writing(self) -> None:
        try:
            while self._pending:
                await asyncio.sleep(self._every)
                await self._write_all()
        finally:
            self._writer = None

    async def _write_all(self) -> None:
        async with self._lock:
            settled, self._settled = self._settled, set()
            entries, self._pending = [entry for entry in self._pending if entry[0] not in settled], []
            if not entries or self._broken:
                return
            self._writing = entries
            try:
                written = await threaded(lambda: self._write(entries), DISK_SECONDS, "disk")
            except OSError as error:
                log.warning("%s: finished turns are not kept any more: %s", self._folder, error.strerror or error)
                self._broken = True
                self._pending = []
                return
            finally:
                self._writing = []
            for episode_id, number, place in written:
                if episode_id not in self._settled:
                    self._live[place.file] += 1
                    self._release(put(self._places.setdefault(episode_id, []), number, place))
            self._roll()

    def _write(self, entries: list[Entry]) -> list[tuple[str, int, Place]]:
        """In a thread, one at a time."""
        file, path = self._opened()
        offset = file.tell()
        parts: list[bytes] = []
        written: list[tuple[str, int, Place]] = []
        for episode_id, number, saved in entries:
            try:
                part = record(episode_id, number, saved)
            except _CANNOT_WRITE as error:
                log.warning("turn %d of %s is not kept: %s", number, episode_id, describe(error))
                continue
            parts.append(part)
            written.append((episode_id, number, Place(path, offset)))
            offset += len(part)
        _write_whole(file, b"".join(parts))
        return written

    def _opened(self) -> tuple[FileIO, Path]:
        if self._file is None or self._path is None:
            self._folder.mkdir(exist_ok=True)
            self._path = self._folder / f"{self.name}-{self._segments:04}{_SUFFIX}"
            self._file = FileIO(self._path, "x")  # without a buffer, whose rest could fail when it is closed
            _write_whole(self._file, HEADER)
            self._segments += 1
        return self._file, self._path

    def _roll(self) -> None:
        """Ends the file that is written to when it is full."""
        if self._file is not None and self._file.tell() >= self._segment_bytes:
            self._file.close()
            full, self._file, self._path = self._path, None, None
            if full is not None and not self._live[full]:
                self._live.pop(full, None)
                _delete(full)

    def _release(self, places: Iterable[Place]) -> None:
        for place in places:
            self._live[place.file] -= 1
            if not self._live[place.file] and place.file != self._path:
                del self._live[place.file]
                _delete(place.file)


@dataclass(slots=True)
class _Index:
    """What one runner's files hold, as far as they have been read."""

    places: dict[str, list[Place]] = field(default_factory=dict[str, list[Place]])
    read: dict[Path, tuple[int, int]] = field(default_factory=dict[Path, tuple[int, int]])
    """Of each file: how long it was when it was last read, and where its last whole record ended."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def refresh(self, folder: Path, name: str) -> None:
        """Reads what was added since the last time; nothing for a runner that is dead. In a thread."""
        there = sorted(folder.glob(f"{name}-*{_SUFFIX}"))
        if gone := self.read.keys() - set(there):
            self.places = {key: at for key, at in self.places.items() if gone.isdisjoint(place.file for place in at)}
        self.read = {file: self.read.get(file, (0, 0)) for file in there}
        for file in there:
            try:
                self._extend(file)
            except FileNotFoundError:
                continue  # its runner is alive and has just deleted it
            except (Unreadable, OSError) as error:
                log.warning("finished turns of %s cannot be used: %s", name, describe(error))

    def _extend(self, file: Path) -> None:
        size, end = self.read[file]
        if (now := file.stat().st_size) == size:
            return
        self.read[file] = now, end
        for episode_id, number, place, ends in scan(file, end):
            put(self.places.setdefault(episode_id, []), number, place)
            self.read[file] = now, ends


class Earlier:
    """The turns that other runners have left, dead ones or those of an earlier driver."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._indices: dict[str, _Index] = {}

    async def turns(self, name: str, episode_id: str) -> tuple[Saved, ...]:
        """What a runner has left of an episode; nothing when that cannot be read."""
        index = self._indices.setdefault(name, _Index())
        try:
            async with index.lock:
                await threaded(lambda: index.refresh(self._folder, name), DISK_SECONDS, "disk")
        except TimeoutError as error:
            log.warning("finished turns of %s cannot be used: %s", name, error)
            return ()
        return await _read(index.places.get(episode_id, []))


def left_behind(folder: Path | None) -> dict[str, str]:
    """Which runner has left most turns of each episode that stands in a folder's files. Blocks."""
    best: dict[str, tuple[int, str]] = {}
    if folder is None:
        return {}
    for name in {file.stem.rpartition("-")[0] for file in folder.glob(f"*{_SUFFIX}")}:
        index = _Index()
        index.refresh(folder, name)
        for episode_id, places in index.places.items():
            best[episode_id] = max(best.get(episode_id, (0, "")), (len(places), name))
    return {episode_id: name for episode_id, (turns, name) in best.items() if turns}


def discard(folder: Path | None) -> None:
    """Deletes all turns of a run: nobody goes on behind them any more. Blocks."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def taken_up(leases: Iterator[Lease], left: dict[str, str]) -> Iterator[Lease]:
    """First leases, each naming the runner of an earlier driver that has left turns of its episode."""
    for lease in leases:
        played_by = left.pop(lease.episode_id, None)
        yield lease if played_by is None else replace(lease, played_by=played_by)


async def _read(places: list[Place]) -> tuple[Saved, ...]:
    try:
        return await threaded(lambda: read(list(places)), DISK_SECONDS, "disk") if places else ()
    except (Unreadable, OSError) as error:
        log.warning("an episode starts again, its turns cannot be read: %s", describe(error))
        return ()


def _write_whole(file: FileIO, data: bytes) -> None:
    """Raises OSError when the disk is full; what it took until then is a torn end."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _delete(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: cannot be deleted: %s", file, error.strerror or error)
