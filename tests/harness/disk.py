"""What tests of the archive look at and do on local disk."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def list_files(root: Path) -> list[str]:
    """Every file below, relative to the root."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """Let the kernel refuse larger files, as it does when a quota or a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
