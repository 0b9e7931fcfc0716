"""The spool: files on their way into the archive, on local disk; and writing to disk so it lasts.

Each partial file is locked (flock) by the process that writes it. The kernel gives the lock up
when that process ends, however it ends: a partial whose lock is free was left behind.
"""

import fcntl
import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from worker.ground.errors import StoreUnavailableError


@contextmanager
def naming_reason(trouble: str) -> Iterator[None]:
    """Turn an OSError into a StoreUnavailableError, with the system's reason and no path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StoreUnavailableError(f"{trouble}: {reason}") from error


def make_directory(path: Path) -> None:
    """Make a directory and its parents, each entry flushed to disk."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


SUFFIX = ".part"
# What is archived has this mode too: for owner and group, less what the umask takes away.
PRIVATE = 0o640
TROUBLE = "the spool cannot be written"

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class SpoolFile:
    """One file that is being written; `bytes` counts what is in it.

    What `write` has taken can be read at `path` at once.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.bytes = 0
        self._file = io.FileIO(descriptor, "r+b")
        self._digest = hashlib.sha256()

    def lock(self) -> bool:
        """False if another process has found the new file unlocked, and removed it.

        Waits only for a process that is about to do that.
        """
        fcntl.flock(self._file.fileno(), fcntl.LOCK_EX)
        return os.fstat(self._file.fileno()).st_nlink > 0

    def write(self, chunk: bytes, /) -> None:
        rest = memoryview(chunk)
        with naming_reason(TROUBLE):
            while rest:  # a write may be short, the last one before a full disk always is
                rest = rest[self._file.write(rest) :]
        self._digest.update(chunk)
        self.bytes += len(chunk)

    def restart(self) -> None:
        """Forget all that was written."""
        with naming_reason(TROUBLE):
            self._file.seek(0)
            self._file.truncate()
        self._digest = hashlib.sha256()
        self.bytes = 0

    def sha256(self) -> str:
        """The hash, as hex, of what was written since the beginning or the last `restart`."""
        return self._digest.hexdigest()

    def flush(self) -> None:
        """When this returns, what was written survives a crash of the machine."""
        with naming_reason(TROUBLE):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the writing and give the lock up. Never raises; may be called again."""
        with suppress(OSError):  # what had to be on disk was flushed before
            self._file.close()

    def discard(self) -> None:
        """Remove the file and close it; what was renamed away is no longer there to be removed.

        Never raises: what cannot be removed now is left to `remove_partials`.
        """
        with suppress(OSError):
            self.path.unlink()
        self.close()


@dataclass(frozen=True, slots=True)
class Spool:
    """A directory of partials, made when the first one is begun."""

    directory: Path

    @contextmanager
    def begin(self, label: str) -> Iterator[SpoolFile]:
        """Open a new partial; it is gone when the context is left, unless it was published.

        `label` (a job id) marks the file for those who find it. Raises StoreUnavailableError.
        """
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{label!r} cannot mark a file in the spool")
        with naming_reason(TROUBLE):
            make_directory(self.directory.absolute())
            file = self._create(label)
        try:
            yield file
        finally:
            file.discard()

    def remove_partials(self) -> int:
        """Remove every partial that no living process writes; returns how many.

        One that cannot be removed keeps no other from it. Raises StoreUnavailableError for it.
        """
        removed, failures = 0, list[OSError]()
        for partial in sorted(self.directory.glob(f"*{SUFFIX}")):
            try:
                removed += _remove_if_left(partial)
            except OSError as error:
                failures.append(error)
        with naming_reason("a partial cannot be removed"):
            for failure in failures:
                raise failure
        return removed

    def _create(self, label: str) -> SpoolFile:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        while True:
            path = self.directory.absolute() / f"{label}.{uuid4().hex}{SUFFIX}"
            file = SpoolFile(path, os.open(path, flags, PRIVATE))
            is_ours = False
            try:
                is_ours = file.lock()
            finally:
                if not is_ours:
                    file.discard()
            if is_ours:
                return file


def _remove_if_left(partial: Path) -> bool:
    """The lock is held until the file is gone, so that no process begins to write it meanwhile."""
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:  # published, or another sweep was faster
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        partial.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(descriptor)
    return True
