"""Archived files for the page. Only what a job's own row names, and only inside the archive.

Files on this machine are served with ranges; what lies in a remote store is passed through, whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import structlog

from worker.jobs.values import Job
from worker.media.local_store import LocalStore
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.media.store import Store

CONTENT_TYPES = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".mov": "video/quicktime",
    ".gif": "image/gif",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}

log = structlog.stdlib.get_logger(__name__)


class Part(StrEnum):
    """Which of a job's archived files is meant."""

    VIDEO = "video"
    POSTER = "poster"


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A file that can be shown, and what a browser is told of it; `path` is of this machine."""

    name: str
    content_type: str
    sha256: str | None
    bytes: int | None
    path: Path | None

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix


def open_archive(settings: Settings) -> "Store | None":
    """None if ARCHIVE_URL makes no sense here: the receiver's own work needs no archive."""
    # A receiver without a page does not load it.
    from worker.media.store import open_store

    try:
        return open_store(settings.archive_url, Path(settings.spool_dir))
    except ValueError as error:
        log.warning("archive_not_shown", reason=str(error))
        return None


def find_file(job: Job, part: Part, store: "Store | None") -> ArchiveFile | None:
    """The job's file; None if it has none in this archive. A remote store is not asked for it."""
    uri = job.archive_uri if part is Part.VIDEO else job.archive_poster_uri
    name = store.find_name(uri) if store is not None and uri else None
    if name is None:
        return None
    content_type = CONTENT_TYPES.get(PurePosixPath(name).suffix.lower())
    path = _find_path(store, name) if isinstance(store, LocalStore) else None
    if content_type is None or (path is None and isinstance(store, LocalStore)):
        return None
    facts = (job.archive_sha256, job.archive_bytes) if part is Part.VIDEO else (None, None)
    return ArchiveFile(name, content_type, *facts, path)


def stream_file(found: ArchiveFile, store: "Store") -> Iterator[bytes]:
    """The object's bytes from a remote store; when this returns, the first of them are there.

    Raises StoreObjectMissingError and StoreUnavailableError.
    """
    chunks = store.read(found.name)
    return chain([next(chunks, b"")], chunks)


def _find_path(store: LocalStore, name: str) -> Path | None:
    """Also a link may not lead out of the archive."""
    try:
        path = (store.root / name).resolve(strict=True)
        is_inside = path.is_relative_to(store.root.resolve())
    except OSError:
        return None
    return path if is_inside and path.is_file() else None
