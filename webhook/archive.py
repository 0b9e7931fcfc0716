"""Archived files for the page. Only what a job's own row names, and only inside the archive.

Files on this machine are served with ranges. What lies in a remote store is not streamed yet:
`find_file` is where that would begin.
"""

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from worker.jobs.values import Job

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


class Part(StrEnum):
    """Which of a job's archived files is meant."""

    VIDEO = "video"
    POSTER = "poster"


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A file that is there, and what a browser is told of it."""

    path: Path
    content_type: str
    etag: str | None


def read_uri(job: Job, part: Part) -> str | None:
    """What the row says. The poster's column is not in every version of the table."""
    name = "archive_uri" if part is Part.VIDEO else "archive_poster_uri"
    uri: str | None = getattr(job, name, None)
    return uri


def find_file(job: Job, part: Part, archive_url: str) -> ArchiveFile | None:
    """The job's file; None if it has none, or not in this archive on this machine."""
    uri = read_uri(job, part)
    path, root = read_path(uri or ""), read_path(archive_url)
    if path is None or root is None:
        return None
    try:
        found = path.resolve(strict=True)
    except OSError:
        return None
    content_type = CONTENT_TYPES.get(found.suffix.lower())
    if content_type is None or not found.is_relative_to(root.resolve()) or not found.is_file():
        return None
    return ArchiveFile(found, content_type, job.archive_sha256 if part is Part.VIDEO else None)


def read_path(url: str) -> Path | None:
    """The path of a `file:` URL; None of any other."""
    parts = urlsplit(url)
    is_plain = parts.scheme == "file" and not (parts.netloc or parts.query or parts.fragment)
    path = os.fsdecode(unquote_to_bytes(parts.path)) if is_plain else ""
    return Path(path).absolute() if path and "\0" not in path else None
