"""Where a run is kept: a folder on a disk, or a prefix of an object store (s3://bucket/run, gs://bucket/run).

The table itself goes through delta-rs; this is for the files beside it and the Parquet files it names. obstore is the
object store library that delta-rs has inside, so both take their settings from the same environment variables
(AWS_ENDPOINT_URL, AWS_REGION, AWS_ALLOW_HTTP, GOOGLE_SERVICE_ACCOUNT, ...) and no secret is ever in a configuration.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

import obstore
import pyarrow
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore, from_url

from rollout.errors import UserError

if TYPE_CHECKING:  # it is only a type
    from obstore.store import RetryConfig

pa = cast(Any, pyarrow)
_SPOOL = 64 << 20
_RETRIES: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
"""Not obstore's minutes: a mistyped endpoint is to be told soon."""
Place = str | Path
"""A folder as a person names it: a path, or a URL of an object store."""


class Folder(Protocol):
    """Files by their names. What goes wrong is an OSError with one line."""

    @property
    def place(self) -> str:
        """As delta-rs takes it."""
        ...

    def read(self, name: str) -> bytes | None:
        """A file's content; None when there is none."""
        ...

    def put(self, name: str, content: bytes, new: bool = False) -> None:
        """Writes a file, whole or not at all. With `new`, raises FileExistsError when there is one."""
        ...

    def write(self, name: str) -> Any:
        """A context with a binary file, which is there whole and durable after it, or not at all when it raises."""
        ...

    def open(self, name: str) -> Any:
        """A context with a file for reading in any order."""
        ...

    def names(self) -> list[str]:
        """Files and folders that are in it; none when it is not there."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Deletes files; one that is not there is no error."""
        ...

    def clear(self, name: str) -> None:
        """Deletes a folder in it with all there is in that."""
        ...


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder on a disk or a network file system."""

    place: str

    def read(self, name: str) -> bytes | None:
        """See Folder."""
        file = Path(self.place, name)
        return file.read_bytes() if file.is_file() else None

    def put(self, name: str, content: bytes, new: bool = False) -> None:
        """See Folder. The draft it writes first is named `.NAME.new`."""
        if new and Path(self.place, name).exists():
            raise FileExistsError(f"{self.place}/{name}: is there already")
        with self.write(f".{name}.new") as file:  # synced, or a crash could leave the new name with nothing behind it
            file.write(content)
        Path(self.place, f".{name}.new").replace(Path(self.place, name))

    @contextmanager
    def write(self, name: str) -> Generator[IO[bytes]]:
        """See Folder."""
        path = Path(self.place, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def open(self, name: str) -> Any:
        """See Folder."""
        return pa.OSFile(f"{self.place}/{name}")

    def names(self) -> list[str]:
        """See Folder."""
        folder = Path(self.place)
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []

    def delete(self, names: Sequence[str]) -> None:
        """See Folder."""
        for name in names:
            Path(self.place, name).unlink(missing_ok=True)

    def clear(self, name: str) -> None:
        """See Folder."""
        shutil.rmtree(Path(self.place, name), ignore_errors=True)


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A prefix of an object store, which writes a file whole or not at all by itself."""

    place: str
    store: ObjectStore

    def read(self, name: str) -> bytes | None:
        """See Folder."""
        with _plainly(self.place):
            try:
                return bytes(obstore.get(self.store, name).bytes())
            except FileNotFoundError:
                return None

    def put(self, name: str, content: bytes, new: bool = False) -> None:
        """See Folder. One conditional request decides who was first."""
        with _plainly(self.place):
            try:
                obstore.put(self.store, name, content, mode="create" if new else "overwrite")
            except AlreadyExistsError:
                raise FileExistsError(f"{self.place}/{name}: is there already") from None

    @contextmanager
    def write(self, name: str) -> Generator[IO[bytes]]:
        """See Folder. It is sent when it is whole; until then it waits in memory, or on the disk if it is large."""
        with SpooledTemporaryFile(_SPOOL) as file:
            yield cast(IO[bytes], file)
            file.seek(0)
            with _plainly(self.place):
                obstore.put(self.store, name, cast(IO[bytes], file))

    def open(self, name: str) -> Any:
        """See Folder."""
        with _plainly(self.place):  # whole: what obstore opens itself, Arrow takes for a closed file
            return BytesIO(obstore.get(self.store, name).bytes())

    def names(self) -> list[str]:
        """See Folder."""
        with _plainly(self.place):
            listed = obstore.list_with_delimiter(self.store)
        files = [entry["path"] for entry in cast(Any, listed["objects"])]
        return [*files, *cast(Any, listed["common_prefixes"])]

    def delete(self, names: Sequence[str]) -> None:
        """See Folder."""
        with _plainly(self.place):
            for name in names:
                try:
                    obstore.delete(self.store, name)
                except FileNotFoundError:
                    continue

    def clear(self, name: str) -> None:
        """See Folder."""
        with _plainly(self.place):
            listed = [entry["path"] for batch in obstore.list(self.store, name) for entry in batch]
        self.delete(listed)


def is_remote(place: Place) -> bool:
    """True for a URL of an object store."""
    return "://" in str(place)


def absolute(place: Place) -> str:
    """The same place for whoever works in another folder."""
    return str(place) if is_remote(place) else str(Path(place).resolve())


def inside(place: Place, name: str) -> str:
    """The folder `name` in it."""
    return f"{str(place).rstrip('/')}/{name}"


def folder(place: Place) -> Folder:
    """The folder at a place, which need not be there. Raises UserError for a URL that nothing can be kept at."""
    if not is_remote(place):
        return LocalFolder(str(place))
    try:
        return RemoteFolder(str(place).rstrip("/"), from_url(str(place), retry_config=_RETRIES))
    except (BaseError, ValueError) as error:
        raise UserError(f"{place}: cannot be used: {_one_line(error)}") from error


@contextmanager
def _plainly(place: str) -> Generator[None]:
    """An object store's own errors as OSErrors with one line."""
    try:
        yield
    except (BaseError, FileNotFoundError, PermissionError) as error:
        raise OSError(f"{place}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """Without the debug tree that follows."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
