"""Names in the archive: which a store allows, and which a job's objects have by ARCHIVE_LAYOUT.

Every name is made of the job alone, and has its id in it: archiving the job again gives the same
names, and no two jobs share one. Only another video in place of one that is archived has names of
its own, marked by its content.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from urllib.parse import quote
from uuid import UUID

# One part of a name. None begins with a dot, so it can name neither a parent nor what is hidden,
# such as the directory of partials.
_PART = re.compile(r"[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*")
MOST_PART_BYTES = 255  # a file system's bound
MOST_NAME_BYTES = 900  # S3 allows 1024, its prefix included
# Which archive this is; hidden, so that no listing has it.
ARCHIVE_MARK = ".archive-id"

UNKNOWN_EXTENSION = "bin"
EXTENSIONS_BY_TYPE = {
    "image/gif": "gif",
    "video/matroska": "mkv",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/x-matroska": "mkv",
    "video/x-msvideo": "avi",
}
VIDEO_TYPES = {extension: media_type for media_type, extension in EXTENSIONS_BY_TYPE.items()}
UNKNOWN_TYPE = "application/octet-stream"
HEAD_BYTES = 256
ENDING = ".{ext}"
QUARANTINE = "quarantine"
# What stands beside a video under its name; a video cannot end so.
SIDECAR, POSTER = ".json", ".jpg"
# A contact sheet, which earlier versions could keep: still deleted with its video.
SHEET = ".sheet.jpg"

MOST_TENANT_CHARACTERS = 100
# The longest that each field can become.
LENGTHS = {"yyyy": 4, "mm": 2, "dd": 2, "hh": 2, "tenant": MOST_TENANT_CHARACTERS, "job_id": 36}
MOST_PART_CHARACTERS = 230
MARK_CHARACTERS = 12
MOST_CHARACTERS = 800

ALLOWED = (
    "must be a relative path of letters, digits and . _ = - / with the field {job_id} and perhaps "
    "{tenant}, {yyyy}, {mm}, {dd} and {hh} in it, and .{ext} at its end; no part of it is empty or "
    f"begins with a dot, and the first is not {QUARANTINE}"
)
_FIELD = re.compile("|".join(rf"\{{{name}\}}" for name in LENGTHS))
_LITERAL = re.compile(r"[A-Za-z0-9._=/-]*")
_EXTENSION = re.compile(r"[a-z0-9]{1,10}")
_SUFFIX = re.compile(r"[a-z0-9]{1,5}")
_QUICKTIME_ATOMS = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_EBML = b"\x1a\x45\xdf\xa3"
_TAKEN = {"json", "jpg"}


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A whole object in the archive; `sha256` (hex) and `bytes` are of what was written."""

    uri: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object as its archive lists it; `name` is relative to the archive."""

    name: str
    bytes: int
    modified_at: datetime


def check_name(name: str) -> str:
    """Give the name back. Raises ValueError if it would lead outside the archive on any store.

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


@dataclass(frozen=True, slots=True)
class ArchiveNames:
    """Where a job's video lies, and what belongs to it."""

    video: str
    sidecar: str
    poster: str


@dataclass(frozen=True, slots=True)
class QuarantineNames:
    """Where bytes lie that did not pass verification, and the evidence against them."""

    video: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Layout:
    """A template that `parse_layout` has found good; `stem` is all of it before the extension."""

    stem: str

    def name(
        self, job_id: UUID, tenant: str, enqueued_at: datetime, extension: str, mark: str = ""
    ) -> ArchiveNames:
        """The names of a job's objects; of the extension only `video` depends.

        With a `mark` (hex digits) they are other ones than those without.
        """
        at = enqueued_at.astimezone(UTC)
        stem = self.stem.format(
            yyyy=f"{at.year:04}",
            mm=f"{at.month:02}",
            dd=f"{at.day:02}",
            hh=f"{at.hour:02}",
            tenant=encode_tenant(tenant),
            job_id=str(job_id),
        )
        if stem.startswith(f"{QUARANTINE}/"):  # a tenant of that name
            stem = f"%{ord(stem[0]):02X}{stem[1:]}"
        if mark:
            stem = f"{stem}-{mark[:MARK_CHARACTERS]}"
        return ArchiveNames(
            check_name(f"{stem}.{_check_extension(extension)}"),
            check_name(stem + SIDECAR),
            check_name(stem + POSTER),
        )


def parse_layout(text: str) -> Layout:
    """Read `ARCHIVE_LAYOUT`. Raises ValueError with what is allowed."""
    stem = text.removesuffix(ENDING)
    parts = stem.split("/")
    is_template = (
        text.endswith(ENDING)
        and "{job_id}" in stem  # or jobs would share a name
        and all(_LITERAL.fullmatch(piece) for piece in _FIELD.split(stem))
        and not any(not part or part.startswith(".") for part in parts)
        and parts[0] != QUARANTINE
    )
    if not is_template:
        raise ValueError(ALLOWED)
    longest = [
        len(part.format_map({name: "x" * n for name, n in LENGTHS.items()})) for part in parts
    ]
    if max(longest) > MOST_PART_CHARACTERS or sum(longest) + len(parts) > MOST_CHARACTERS:
        raise ValueError(f"makes names longer than {MOST_PART_CHARACTERS} characters a part")
    return Layout(stem)


def name_quarantine(job_id: UUID, extension: str) -> QuarantineNames:
    """Apart from all layouts, so that it is listed and cleared by itself."""
    stem = f"{QUARANTINE}/{job_id}"
    return QuarantineNames(f"{stem}.{_check_extension(extension)}", stem + SIDECAR)


def encode_tenant(tenant: str) -> str:
    """One part of a name, or a piece of one, that shows the tenant but cannot lead elsewhere.

    Percent-encoded; a long one is cut, and kept apart from others by a hash.
    """
    encoded = quote(tenant, safe="", errors="surrogatepass").replace("~", "%7E")
    if encoded.startswith("."):
        encoded = f"%2E{encoded[1:]}"
    if len(encoded) > MOST_TENANT_CHARACTERS:
        digest = hashlib.sha256(tenant.encode(errors="surrogatepass")).hexdigest()[:32]
        encoded = f"{encoded[: MOST_TENANT_CHARACTERS - 33]}~{digest}"
    return encoded or "_"


def _check_extension(extension: str) -> str:
    """Also one that came from outside may not change what the name is."""
    is_free = _EXTENSION.fullmatch(extension) and extension not in _TAKEN
    return extension if is_free else UNKNOWN_EXTENSION


def choose_extension(content_type: str | None, file_name: str | None, head: bytes) -> str:
    """Give a file extension without the dot: by the bytes, else the type, else the name."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    suffix = PurePosixPath(file_name or "").suffix.removeprefix(".").lower()
    named = suffix if _SUFFIX.fullmatch(suffix) else UNKNOWN_EXTENSION
    return recognise_bytes(head) or EXTENSIONS_BY_TYPE.get(media_type) or named


def recognise_bytes(head: bytes) -> str | None:
    kind, brand = head[4:8], head[8:12]
    if kind == b"ftyp":
        return "mov" if brand == b"qt  " else "mp4"
    if kind in _QUICKTIME_ATOMS:
        return "mov"
    if head.startswith(_EBML):
        return "mkv" if b"matroska" in head else "webm"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(b"RIFF") and brand == b"AVI ":
        return "avi"
    return None
