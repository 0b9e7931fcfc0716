"""Whether a downloaded file is the video that fal stated: complete, real, and all of it decodes.

What is compared, and within which tolerance:

- bytes: exactly, with `file_size` and with Content-Length. One byte less is a file cut short.
- width and height: exactly; changed about where the file is shown turned by a quarter.
- frames: within one frame or 1 %, whichever is more. Who counts by length times rate is off by one,
  and encoders may put a first or last frame twice.
- frames per second: within 1 %, by any of the ways to read a rate. 23.976 for 24 is 0.1 %, and a
  short file's average depends on how long its last frame stands.
- seconds: within 0.25 s or 2 %, whichever is more, of the length of the picture or of the file:
  sound codecs work in blocks (1024 samples, 2112 of priming), and rates are stated rounded.
- a GIF's delays are whole hundredths of a second, and a writer may keep a standing picture once for
  longer. So its rate is not compared, its length may differ by one hundredth for each frame more,
  and fewer frames are none too few if its length is right.
- the media type: not at all. It is told by the bytes; a wrong label does no harm to a video.

Beside what fal stated, a file has to agree with itself (`probe.py`, `extent.py`): every packet
decodes, as much as the container tells of, and up to where it says it ends.

What is not found, although all is decoded: damage that a codec cannot tell from content. VP9 and
GIF have no check sums, so bytes overwritten inside a frame often are another picture; so is a
single changed bit of ProRes, and any sample of PCM sound. Only a changed length or structure shows.
Of a file decoded in samples, damage between two of them is not found either.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from worker.errors import MediaMismatchError, MediaRefusedError, Mismatch
from worker.media.extent import find_cut
from worker.media.probe import (
    LEAST_SECONDS,
    LENGTH_PART,
    Examined,
    VideoFacts,
    examine_video,
    recognise_bytes,
)

RATE_PART = 0.01
FRAMES_PART = 0.01
GIF_STEP = 0.01
QUARTER_TURNS = (90, 270)
QUOTED_BYTES = 80


@dataclass(frozen=True, slots=True)
class Stated:
    """What fal and its host have said of a file; None, and what is not above zero: nothing.

    `content_length` is the HTTP header's. Bytes, pixels, frames per second, seconds.
    """

    bytes: int | None = None
    content_length: int | None = None
    media_type: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    frames: int | None = None
    duration: float | None = None


def verify_video(path: Path, stated: Stated) -> Examined:
    """What the video is. Raises MediaMismatchError with everything that is not as stated."""
    size = path.stat().st_size
    lengths = tuple(compare_lengths(stated, size))
    try:
        examined = examine_video(path)
    except MediaRefusedError as error:
        evidence = (*list_unreadable(path, stated, error), *lengths)
        raise MediaMismatchError(evidence) from error
    evidence = (*lengths, *examined.flaws, *compare_facts(stated, examined))
    if evidence:
        raise MediaMismatchError(evidence)
    return examined


def compare_lengths(stated: Stated, size: int) -> Iterator[Mismatch]:
    for field, told in (("file_size", stated.bytes), ("Content-Length", stated.content_length)):
        if _is_told(told) and told != size:
            yield Mismatch(field, f"{told} bytes", f"{size} bytes")


def compare_facts(stated: Stated, examined: Examined) -> Iterator[Mismatch]:
    """What fal has stated of the picture, against what decoding has shown."""
    facts = examined.facts
    yield from _compare_size(stated, facts)
    is_gif = facts.container == "gif"
    slack = GIF_STEP * facts.frames if is_gif else 0.0
    length_fits = _fits_length(stated.duration, examined.lengths, slack)
    is_merged = is_gif and length_fits and facts.frames < (stated.frames or 0)
    if examined.is_counted and not is_merged and not fits_frames(stated.frames, facts.frames):
        yield Mismatch("num_frames", str(stated.frames), str(facts.frames))
    if not is_gif and not any(fits_rate(stated.fps, rate) for rate in examined.rates):
        yield Mismatch("fps", f"{stated.fps:g}", f"{facts.fps:g}")
    if not length_fits:
        found = f"{facts.duration.total_seconds():.3f}"
        yield Mismatch("duration", f"{stated.duration:g}", found)


def fits_frames(told: int | None, found: int) -> bool:
    return not _is_told(told) or abs(found - told) <= max(1, FRAMES_PART * told)


def fits_rate(told: float | None, found: float) -> bool:
    return not _is_told(told) or abs(found - told) <= RATE_PART * told


def fits_seconds(told: float | None, found: float, slack: float = 0.0) -> bool:
    return not _is_told(told) or abs(found - told) <= max(LEAST_SECONDS, LENGTH_PART * told) + slack


def list_unreadable(path: Path, stated: Stated, error: MediaRefusedError) -> Iterator[Mismatch]:
    """What came instead of a video, by its first bytes; or that it is one, cut short."""
    with path.open("rb") as file:
        head = file.read(QUOTED_BYTES)
    told = stated.media_type or "a video"
    yield Mismatch("media type", told, f"{name_content(head)}: {quote_bytes(head)} ({error})")
    cut = find_cut(path, recognise_bytes(head) or "")
    if cut is not None:
        yield cut


def name_content(head: bytes) -> str:
    """What a file begins like."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower()
    if not head:
        return "nothing"
    if start.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if start.startswith((b"<?xml", b"<error")):
        return "XML"
    if start.startswith((b"{", b"[")):
        return "JSON"
    return "text" if head.isascii() and head.decode().isprintable() else "other bytes"


def quote_bytes(head: bytes) -> str:
    """The bytes as printable ASCII, all others as escapes."""
    return ascii(head.decode("latin-1"))


def _is_told(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value) and value > 0


def _fits_length(told: float | None, lengths: tuple[float, ...], slack: float) -> bool:
    return any(fits_seconds(told, length, slack) for length in lengths)


def _compare_size(stated: Stated, facts: VideoFacts) -> Iterator[Mismatch]:
    is_turned = facts.rotation in QUARTER_TURNS
    sizes = [(facts.width, facts.height)]
    if is_turned:
        sizes.append((facts.height, facts.width))
    told = (stated.width, stated.height)
    fits = any(
        all(not _is_told(want) or want == got for want, got in zip(told, size, strict=True))
        for size in sizes
    )
    if not fits:
        shown = "x".join("?" if side is None else str(side) for side in told)
        yield Mismatch("size", shown, f"{facts.width}x{facts.height}")
