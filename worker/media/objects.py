"""What archives of every kind share: what an object is, and which names it may have."""

import re
from dataclasses import dataclass
from datetime import datetime

# One part of a name. None begins with a dot, so it can name neither a parent nor what is hidden,
# such as the directory of partials.
_PART = re.compile(r"[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*")
MOST_PART_BYTES = 255  # a file system's bound
MOST_NAME_BYTES = 900  # S3 allows 1024, its prefix included
# Which archive this is; hidden, so that no listing has it.
ARCHIVE_MARK = ".archive-id"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A whole object in the archive; `sha256` (hex) and `bytes` are of what was written."""

    uri: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object as its archive tells of it; `name` is relative to the archive."""

    name: str
    bytes: int
    modified_at: datetime


def check_name(name: str) -> str:
    """Give the name back. Raises ValueError unless it stays within the archive, on every store.

    Parts are separated by slashes; none is empty, begins with a dot or has control characters.
    """
    if name != ARCHIVE_MARK and not is_name(name):
        raise ValueError(f"{name[:100]!r} cannot name an object in the archive")
    return name


def is_name(text: str) -> bool:
    """Whether an object of a job can have this name."""
    parts = text.split("/")
    sizes = [len(part.encode()) for part in parts if _PART.fullmatch(part)]
    too_long = max(sizes, default=0) > MOST_PART_BYTES or len(text.encode()) > MOST_NAME_BYTES
    return len(sizes) == len(parts) and not too_long
