"""What writing to local disk needs everywhere: directories that last, reasons in plain words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
