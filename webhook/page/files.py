"""Archived files for the page. Only what a job's own row names, and only inside the archive.

They come with ranges out of every store. A reader occupies a thread as long as it takes, and
webhooks need threads, too: a range is answered in small parts, for players request more, and only a
few files are sent at once.
"""

import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import structlog
from flask import Response, request
from werkzeug.exceptions import NotFound, ServiceUnavailable
from werkzeug.http import parse_range_header

from worker.ground.settings import Settings
from worker.jobs.values import Job
from worker.media.local_store import LocalStore

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
# Of one process, and half of the threads that a receiver is started with.
MOST_AT_ONCE = 4
RETRY_SECONDS = 5
# A player that pauses leaves the rest unread, and the thread waits for it.
LONGEST_RANGE = 4 * 1024 * 1024

log = structlog.stdlib.get_logger(__name__)


class Part(StrEnum):
    """Which of a job's archived files is meant."""

    VIDEO = "video"
    POSTER = "poster"


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A file that can be shown, and what a browser needs to know of it."""

    name: str
    content_type: str
    sha256: str | None
    is_remote: bool

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends files out of the archive, a few at once."""

    store: "Store | None"
    free: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MOST_AT_ONCE))

    def find(self, job: Job, part: Part) -> ArchiveFile | None:
        """The job's file; None if it has none here. A remote store is not queried."""
        uri = job.archive_uri if part is Part.VIDEO else job.archive_poster_uri
        store, sha256 = self.store, job.archive_sha256 if part is Part.VIDEO else None
        name = store.find_name(uri) if store is not None and uri else None
        content_type = CONTENT_TYPES.get(PurePosixPath(name or "").suffix.lower())
        if name is None or content_type is None:
            return None
        if not isinstance(store, LocalStore):
            return ArchiveFile(name, content_type, sha256, is_remote=True)
        is_inside = _is_inside(store, name)
        return ArchiveFile(name, content_type, sha256, is_remote=False) if is_inside else None

    def send(self, found: ArchiveFile) -> Response:
        """The file, or the range of it that this request names.

        Raises ServiceUnavailable while others read as many, RequestedRangeNotSatisfiable,
        NotFound and StoreUnavailableError.
        """
        if not self.free.acquire(blocking=False):
            words = f"{MOST_AT_ONCE} archived files are being read here. Try again in a moment."
            raise ServiceUnavailable(words, retry_after=RETRY_SECONDS)
        with ExitStack() as held:
            held.callback(self.free.release)
            answer = self._open(found)
            answer.call_on_close(held.pop_all().close)
        return answer

    def _open(self, found: ArchiveFile) -> Response:
        """The answer, with its first bytes at hand: what is wrong with the store is known then."""
        assert self.store is not None  # noqa: S101 - it has named the file
        facts = self.store.stat(found.name)
        if facts is None:
            raise NotFound("The archive has no such file.")
        answer = Response(mimetype=found.content_type)
        answer.set_etag(found.sha256 or f"{facts.modified_at.timestamp()}-{facts.bytes}")
        # Who goes on with a download wants all the rest of it.
        given = None if "download" in request.args else request.headers.get("Range")
        environ = request.environ | cut_range(given, facts.bytes)
        answer.make_conditional(environ, accept_ranges=True, complete_length=facts.bytes)
        if answer.status_code == HTTPStatus.NOT_MODIFIED:
            return answer
        part = answer.content_range
        start, stop = (part.start or 0, part.stop) if part.stop else (0, facts.bytes)
        answer.content_length = (stop or 0) - start
        if request.method != "HEAD":
            chunks = self.store.read(found.name, start, stop)
            answer.response = chain([next(chunks, b"")], chunks)
        return answer


def open_sender(settings: Settings) -> Sender:
    """Without a store if ARCHIVE_URL makes no sense here: a receiver's own work needs none."""
    # A receiver without a page does not load it.
    from worker.media.store import open_store

    try:
        return Sender(open_store(settings.archive_url, Path(settings.spool_dir)))
    except ValueError as error:
        log.warning("archive_not_shown", reason=str(error))
        return Sender(None)


def cut_range(header: str | None, length: int) -> dict[str, str]:
    """The header of a range, no longer than is sent at once; nothing if it means none."""
    wanted = parse_range_header(header)
    span = None if wanted is None else wanted.range_for_length(length)
    if span is None:
        return {}
    start, stop = span
    return {"HTTP_RANGE": f"bytes={start}-{min(stop, start + LONGEST_RANGE) - 1}"}


def _is_inside(store: LocalStore, name: str) -> bool:
    """Also a link may not lead out of the archive."""
    try:
        path = (store.root / name).resolve(strict=True)
    except OSError:
        return False
    return path.is_relative_to(store.root.resolve()) and path.is_file()
