"""The archive: where videos are kept, written so that a final name only ever holds a whole file.

In this version the archive is a directory (`ARCHIVE_URL=file:…`). A file grows under `.partial/`
inside it, hence on the same file system, and gets its final name by one rename once it is on disk.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote_to_bytes, urlsplit
from uuid import uuid4

from worker.errors import StoreUnavailableError

PARTIAL_DIRECTORY = ".partial"
PARTIAL_SUFFIX = ".part"
SUPPORTED = "this version supports file:./directory and file:///directory"

# begins with a letter or digit, so it can name neither a parent nor the partial directory
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A whole file in the archive; `sha256` (hex) and `bytes` are of what was written."""

    uri: str
    sha256: str
    bytes: int


class StoreWriter(Protocol):
    """One file on its way into the archive."""

    def write(self, chunk: bytes, /) -> None: ...

    def restart(self) -> None:
        """Forget all that was written."""

    def sha256(self) -> str:
        """Hex, of all that was written."""

    def commit(self, name: str) -> StoredObject:
        """Publish what was written under its final name, replacing an older file of that name.

        When this returns, the file survives a crash of the machine. May be called once.
        """


class Store(Protocol):
    """What a stage needs of an archive. All methods raise StoreUnavailableError."""

    def create(self, label: str) -> AbstractContextManager[StoreWriter]:
        """Begin a file; leaving the context without `commit` leaves nothing behind.

        `label` (the job id) only marks the unfinished file for whoever finds it.
        """

    def remove_partials(self, older_than: timedelta) -> int:
        """Remove files left unfinished by killed processes; give back how many."""


class LocalWriter:
    """A StoreWriter on local disk."""

    def __init__(self, root: Path, label: str) -> None:
        self._root = root
        self._partial = root / PARTIAL_DIRECTORY / f"{label}.{uuid4().hex}{PARTIAL_SUFFIX}"
        self._file = io.FileIO(self._partial, "xb")
        self._digest = hashlib.sha256()
        self._written = 0

    def write(self, chunk: bytes, /) -> None:
        rest = memoryview(chunk)
        with _naming_reason():
            while rest:  # a write may be short, the last one before a full disk always is
                rest = rest[self._file.write(rest) :]
        self._digest.update(chunk)
        self._written += len(chunk)

    def restart(self) -> None:
        with _naming_reason():
            self._file.seek(0)
            self._file.truncate()
        self._digest = hashlib.sha256()
        self._written = 0

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def commit(self, name: str) -> StoredObject:
        final = self._root / _check_name(name)
        with _naming_reason():
            os.fsync(self._file.fileno())
            self._file.close()
            self._partial.replace(final)
            _sync_directory(self._root)
            _sync_directory(self._partial.parent)
        return StoredObject(final.as_uri(), self._digest.hexdigest(), self._written)

    def discard(self) -> None:
        """Close and remove the unfinished file; after `commit` there is none.

        Never raises: what cannot be removed now is left to `remove_partials`.
        """
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._partial.unlink()


@dataclass(frozen=True, slots=True)
class LocalStore:
    """An archive in one directory of this machine, made when the first file is begun."""

    root: Path

    @contextmanager
    def create(self, label: str) -> Iterator[StoreWriter]:
        root = self.root.absolute()
        with _naming_reason():
            _make_directory(root / PARTIAL_DIRECTORY)
            writer = LocalWriter(root, _check_name(label))
        try:
            yield writer
        finally:
            writer.discard()

    def remove_partials(self, older_than: timedelta) -> int:
        """Remove what no process has written to for `older_than`."""
        limit = (datetime.now(UTC) - older_than).timestamp()
        with _naming_reason():
            partials = (self.root / PARTIAL_DIRECTORY).glob(f"*{PARTIAL_SUFFIX}")
            return sum(_remove_if_older(partial, limit) for partial in partials)


def open_store(archive_url: str) -> Store:
    """Open the archive that `ARCHIVE_URL` names; nothing is written yet.

    `file:./archive` is relative to the working directory. Raises ValueError with the reason.
    """
    scheme, colon, _ = archive_url.partition(":")
    if not colon or scheme.lower() != "file":
        given = f"{scheme}: is not supported" if colon else "a scheme is missing"
        raise ValueError(f"{given}; {SUPPORTED}")
    return LocalStore(_read_path(archive_url).absolute())


def local_path(uri: str) -> Path | None:
    """Give the path of a `file:` URI, None for an object that is not on this machine."""
    return _read_path(uri) if uri.lower().startswith("file:") else None


def _read_path(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc:
        raise ValueError(f"a file: URL names no host; {SUPPORTED}")
    if parts.query or parts.fragment:
        raise ValueError(f"a file: URL has neither query nor fragment; {SUPPORTED}")
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if not path or "\0" in path:
        raise ValueError(f"a file: URL needs a path; {SUPPORTED}")
    return Path(path)


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a file in the archive")
    return name


def _make_directory(path: Path) -> None:
    """Make a directory and its parents, each entry flushed to disk."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    path.mkdir(exist_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_older(partial: Path, limit: float) -> bool:
    try:
        if partial.stat().st_mtime > limit:
            return False
        partial.unlink()
    except FileNotFoundError:  # finished, or another sweep was faster
        return False
    return True


@contextmanager
def _naming_reason() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StoreUnavailableError(f"the archive cannot be written: {reason}") from error
