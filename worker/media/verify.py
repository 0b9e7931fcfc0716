"""How a downloaded file differs from what fal and its host have stated of it.

A paid video that can be read is archived: what differs is a warning. It is refused only on proof:
fewer bytes than its host announced, no video stream that decodes, or damage (`probe.py`).

What is compared is one table, in `compare_facts`. What is not stated, or not known of the file, is
not compared.
"""

import math
from collections.abc import Iterator
from typing import TypeGuard

from worker.ground.errors import Finding
from worker.media.facts import Examined, Stated
from worker.media.layout import EXTENSIONS_BY_TYPE

RATE_PART = 0.01
FRAMES_PART = 0.01
GIF_STEP = 0.01
QUARTER_TURNS = (90, 270)
# Lengths differ by the padding of a sound codec's last block, and by rounding to a time base.
LEAST_SECONDS = 0.25
LENGTH_PART = 0.02


def find_missing_bytes(stated: Stated, size: int) -> Iterator[Finding]:
    announced = stated.content_length
    if announced is not None and size < announced:
        message = f"{size} bytes came, its host announced {announced}"
        yield Finding("bytes_missing", message, "Content-Length", str(announced), str(size))


def compare_bytes(stated: Stated, size: int) -> Iterator[Finding]:
    if is_stated(stated.bytes) and stated.bytes != size:
        yield describe_difference("video.file_size", stated.bytes, size)


def compare_facts(stated: Stated, examined: Examined) -> Iterator[Finding]:
    """What fal has stated of the picture, against what reading has shown."""
    facts = examined.facts
    is_gif = facts.container == "gif"
    width, height = facts.width, facts.height
    turned = ((stated.width, height), (stated.height, width))
    if facts.rotation in QUARTER_TURNS and all(not is_stated(a) or a == b for a, b in turned):
        # Stated as the picture is shown.
        width, height = height, width
    # A GIF's delays are whole hundredths of a second, and a writer may keep a standing picture once
    # for longer: its rate is not compared, and its length may differ by a hundredth for each frame.
    rates = () if is_gif else examined.rates
    slack = GIF_STEP * facts.frames if is_gif else 0.0
    # Field, what is stated, the ways to read it off the file, and by how much it may differ: the
    # greater of an amount and a part of it. Length times rate is a frame off.
    table: tuple[tuple[str, float | None, tuple[float, ...], float, float], ...] = (
        ("video.width", stated.width, (width,), 0, 0),
        ("video.height", stated.height, (height,), 0, 0),
        ("video.num_frames", stated.frames, (facts.frames,), 1, FRAMES_PART),
        ("video.fps", stated.fps, rates, 0, RATE_PART),
        ("video.duration", stated.duration, examined.lengths, LEAST_SECONDS + slack, LENGTH_PART),
    )
    differences = {
        name: describe_difference(name, value, found[0])
        for name, value, found, least, part in table
        if is_stated(value) and found and not any(fits(value, one, least, part) for one in found)
    }
    if is_gif and "video.duration" not in differences and facts.frames < (stated.frames or 0):
        # Fewer frames are none too few if the length is right.
        differences.pop("video.num_frames", None)
    yield from differences.values()
    media_type = (stated.media_type or "").partition(";")[0].strip().lower()
    kinds = [EXTENSIONS_BY_TYPE.get(one) for one in (media_type, facts.media_type)]
    if None not in kinds and kinds[0] != kinds[1]:
        yield describe_difference("video.content_type", media_type, facts.media_type)


def fits(stated: float, found: float, least: float, part: float) -> bool:
    """Whether they differ by `least` at most, or by this part of what is stated."""
    return abs(found - stated) <= max(least, part * stated)


def is_stated(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value) and value > 0


def describe_difference(name: str, stated: object, found: object) -> Finding:
    shown = [f"{one:g}" if isinstance(one, float) else str(one) for one in (stated, found)]
    return Finding("differs", f"{name}: stated {shown[0]}, found {shown[1]}", name, *shown)
