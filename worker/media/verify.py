"""Whether a downloaded file is a video that can be read, and how it differs from what was stated.

A paid video that can be read is archived: what differs is a warning. It is refused only on proof:
fewer bytes than its host announced, no video stream that decodes, or damage (`probe.py`).

What is compared is the table below. What is not stated, or not known of the file, is not compared.

- bytes, width and height: exactly; sides changed about where the picture is shown turned by a
  quarter.
- frames: within one frame or 1 %, whichever is more. Who counts by length times rate is off by one.
- frames per second: within 1 %, by any of the ways to read a rate.
- seconds: within 0.25 s or 2 %, whichever is more, of the length of the picture or of the file.
- a GIF's delays are whole hundredths of a second, and a writer may keep a standing picture once for
  longer. So its rate is not compared, its length may differ by one hundredth for each frame more,
  and fewer frames are none too few if its length is right.
- the media type, if both are types of video.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from worker.ground.errors import Finding, MediaBoundError, MediaMismatchError, MediaRefusedError
from worker.media.probe import (
    EXTENSIONS_BY_TYPE,
    LEAST_SECONDS,
    LENGTH_PART,
    Examined,
    VideoFacts,
    examine_video,
)

RATE_PART = 0.01
FRAMES_PART = 0.01
GIF_STEP = 0.01
QUARTER_TURNS = (90, 270)
QUOTED_BYTES = 80

Fits: TypeAlias = Callable[[float, float], bool]


@dataclass(frozen=True, slots=True)
class Stated:
    """What fal and its host have said of a file; None, and what is not above zero: nothing.

    `content_length` is what the host announced. Bytes, pixels, frames per second, seconds.
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
    """What the video is; what differs from what was stated is among its oddities.

    Raises MediaMismatchError with the proof, and all that differs beside it; MediaBoundError for
    what takes too much to decode, which proves nothing.
    """
    size = path.stat().st_size
    lengths = tuple(compare_bytes(stated, size))
    short = tuple(find_missing_bytes(stated, size))
    try:
        examined = examine_video(path)
    except MediaBoundError:
        raise
    except MediaRefusedError as error:
        raise MediaMismatchError((*short, describe_other(path, stated, error), *lengths)) from error
    differences = (*lengths, *compare_facts(stated, examined))
    if short or examined.damages:
        raise MediaMismatchError((*short, *examined.damages, *differences))
    return replace(examined, oddities=(*differences, *examined.oddities))


def find_missing_bytes(stated: Stated, size: int) -> Iterator[Finding]:
    told = stated.content_length
    if told is not None and size < told:
        message = f"{size} bytes came, its host announced {told}"
        yield Finding("bytes_missing", message, "Content-Length", str(told), str(size))


def compare_bytes(stated: Stated, size: int) -> Iterator[Finding]:
    if _is_told(stated.bytes) and stated.bytes != size:
        yield describe_difference("video.file_size", stated.bytes, size)


def compare_facts(stated: Stated, examined: Examined) -> Iterator[Finding]:
    """What fal has stated of the picture, against what reading has shown."""
    facts = examined.facts
    is_gif = facts.container == "gif"
    slack = GIF_STEP * facts.frames if is_gif else 0.0

    def fits_length(told: float, found: float) -> bool:
        return fits_seconds(told, found, slack)

    width, height = choose_sides(stated, facts)
    table: tuple[tuple[str, float | None, tuple[float, ...], Fits], ...] = (
        ("video.width", stated.width, (width,), fits_exactly),
        ("video.height", stated.height, (height,), fits_exactly),
        ("video.num_frames", stated.frames, (facts.frames,), fits_frames),
        ("video.fps", stated.fps, () if is_gif else examined.rates, fits_rate),
        ("video.duration", stated.duration, examined.lengths, fits_length),
    )
    differences = {
        name: describe_difference(name, told, found[0])
        for name, told, found, fits in table
        if _is_told(told) and found and not any(fits(float(told or 0), one) for one in found)
    }
    if is_gif and "video.duration" not in differences and facts.frames < (stated.frames or 0):
        differences.pop("video.num_frames", None)
    yield from differences.values()
    yield from compare_types(stated, facts)


def compare_types(stated: Stated, facts: VideoFacts) -> Iterator[Finding]:
    told = (stated.media_type or "").partition(";")[0].strip().lower()
    kinds = [EXTENSIONS_BY_TYPE.get(one) for one in (told, facts.media_type)]
    if None not in kinds and kinds[0] != kinds[1]:
        yield describe_difference("video.content_type", told, facts.media_type)


def choose_sides(stated: Stated, facts: VideoFacts) -> tuple[int, int]:
    """Width and height, changed about if the picture is shown so and was stated so."""
    sides, told = (facts.width, facts.height), (stated.width, stated.height)
    turned = sides[::-1]
    is_stated_turned = all(not _is_told(a) or a == b for a, b in zip(told, turned, strict=True))
    return turned if facts.rotation in QUARTER_TURNS and is_stated_turned else sides


def fits_exactly(told: float, found: float) -> bool:
    return told == found


def fits_frames(told: float, found: float) -> bool:
    return abs(found - told) <= max(1, FRAMES_PART * told)


def fits_rate(told: float, found: float) -> bool:
    return abs(found - told) <= RATE_PART * told


def fits_seconds(told: float, found: float, slack: float = 0.0) -> bool:
    return abs(found - told) <= max(LEAST_SECONDS, LENGTH_PART * told) + slack


def describe_difference(name: str, told: object, found: object) -> Finding:
    shown = [f"{one:g}" if isinstance(one, float) else str(one) for one in (told, found)]
    return Finding("differs", f"{name}: stated {shown[0]}, found {shown[1]}", name, *shown)


def describe_other(path: Path, stated: Stated, error: MediaRefusedError) -> Finding:
    """What came instead of a video, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(QUOTED_BYTES)
    told, found = stated.media_type or "a video", f"{quote_bytes(head)} ({error})"
    return Finding("no_video", f"stated {told}, found {found}", "media type", told, found)


def quote_bytes(head: bytes) -> str:
    """The bytes as printable ASCII, all others as escapes."""
    return ascii(head.decode("latin-1"))


def _is_told(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0
