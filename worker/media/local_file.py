"""A file of this machine that is to be an input: found, bounded, looked into, and hashed."""

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from worker.ground.errors import MediaRefusedError
from worker.media.facts import FileKind

Inspect: TypeAlias = Callable[[Path], FileKind]


COPY_BYTES = 1024 * 1024


@runtime_checkable
class Readable(Protocol):
    """An open file, or what reads like one."""

    def read(self, size: int, /) -> object: ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file as it was when it was hashed; `sha256` is hex."""

    path: Path
    size: int
    sha256: str
    kind: FileKind
    stamp: tuple[int, int, int]

    def is_unchanged(self) -> bool:
        """Whether it still is the file that was hashed."""
        try:
            return _stamp(self.path.stat()) == self.stamp
        except OSError:
            return False


def take_file(path: Path, inspect: Inspect, max_bytes: int) -> LocalFile:
    """Check the file and hash it. Raises MediaRefusedError with the reason."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise MediaRefusedError("it is not a regular file")
        if not 0 < found.st_size <= max_bytes:
            allowed = f"MAX_UPLOAD_BYTES allows 1 to {max_bytes}"
            raise MediaRefusedError(f"it has {found.st_size} bytes; {allowed}")
        with path.open("rb") as file:
            kind = inspect(path)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        raise MediaRefusedError(_describe(error)) from error
    return LocalFile(path, found.st_size, digest, kind, _stamp(found))


def keep_stream(source: Readable, target: Path, max_bytes: int) -> None:
    """Copy what can still be read of an open file to disk. Raises MediaRefusedError."""
    written = 0
    with target.open("xb") as file:
        while True:
            try:
                chunk = source.read(COPY_BYTES)
            except (OSError, ValueError) as error:
                raise MediaRefusedError(_describe(error)) from error
            if not isinstance(chunk, bytes):
                raise MediaRefusedError("it gives no bytes; open it in binary mode")
            if not chunk:
                return
            written += len(chunk)
            if written > max_bytes:
                reason = f"it has more than {max_bytes} bytes; MAX_UPLOAD_BYTES allows {max_bytes}"
                raise MediaRefusedError(reason)
            file.write(chunk)


def _describe(error: OSError | ValueError) -> str:
    return f"it cannot be read: {getattr(error, 'strerror', None) or error}"


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns
