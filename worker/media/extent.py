"""Whether a file's container is whole from its first byte to its last, told without decoding.

MP4 and QuickTime are chains of boxes, WebM and Matroska of elements, and GIF of blocks. A chain
that breaks where samples lie is proof of damage; one that breaks behind them (text after the last
box, a lost index of WebM, a lost trailer) is odd and does no harm.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

MOST_BOXES = 100_000
# No index or tag takes more of a file than this: samples are among what is lost beyond it.
REST_PART = 0.05

Content: TypeAlias = mmap.mmap | bytes


@dataclass(frozen=True, slots=True)
class Break:
    """Where and why the chain ends too early, and whether samples are lost with it."""

    reason: str
    loses_samples: bool


Walk: TypeAlias = Callable[[Content], Break | None]

_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_BLOCKS = frozenset({b"\xa3", b"\xa0"})
# What else is found in a segment (RFC 9559): whatever is not may be what something overwrote.
_KNOWN = frozenset(
    map(
        bytes.fromhex,
        (
            *("114d9b74", "1549a966", "1654ae6b", "1c53bb6b", "1941a469", "1043a770", "1254c367"),
            *("e7", "ab", "a7", "5854", "af", "ec", "bf"),
        ),
    )
)
_INDICES = frozenset({b"moov", b"moof"})
_IMAGE, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B
_BOX_HEADER = 8
_LONGEST_ID = 4


def find_break(path: Path, extension: str) -> Break | None:
    """None if the container is whole, or of a kind that is not walked."""
    walk = _WALKS.get(extension)
    if walk is None or not path.stat().st_size:
        return None
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return walk(content)


def _walk_boxes(content: Content) -> Break | None:
    """Top-level boxes; the last may be open (size 0: to the end).

    Where the samples of a plain file lie is told by its index, which FFmpeg reads; those of a
    fragment by its own. So a box of samples that is cut proves nothing, and an index that is does.
    """
    at, is_fragmented = 0, False
    for _ in range(MOST_BOXES):
        if at == len(content):
            return None
        size, kind = int.from_bytes(content[at : at + 4], "big"), bytes(content[at + 4 : at + 8])
        if size == 1:
            size = int.from_bytes(content[at + 8 : at + 16], "big")
        is_box = len(kind) == _LONGEST_ID and kind.isascii() and kind.decode().isprintable()
        if is_box and size == 0:
            return None
        if not is_box or size < _BOX_HEADER or at + size > len(content):
            rest = len(content) - at
            is_garbage = is_fragmented and rest > REST_PART * len(content)
            is_index = is_box and kind in _INDICES
            return Break(f"its last {rest} bytes are no whole box", is_index or is_garbage)
        is_fragmented = is_fragmented or kind == b"moof"
        at += size
    return None


def _walk_matroska(content: Content) -> Break | None:
    """The elements of the segment, those within clusters among them."""
    header = _read_element(content, 0)
    segment = header and _read_element(content, header[1] + header[2])
    if header is None or segment is None or header[0] != _EBML or segment[0] != _SEGMENT:
        return Break("no segment after the header", loses_samples=True)
    _, at, size = segment
    told = len(content) if size < 0 else at + size
    end = min(told, len(content))
    strange = end
    while at < end:
        element = _read_element(content, at)
        is_lost = end - min(at, strange) > REST_PART * len(content)
        if element is None or (element[2] < 0 and element[0] != _CLUSTER):
            return Break(f"there is no element at byte {at} of {len(content)}", is_lost)
        name, body, size = element
        if name not in _KNOWN | _BLOCKS:
            strange = end if name == _CLUSTER else min(at, strange)
        if body + size > end:
            is_lost = is_lost or name == _CLUSTER or name in _BLOCKS
            return Break(f"element {name.hex()} at byte {at} ends outside of it", is_lost)
        at = body if name == _CLUSTER else body + size
    if told <= len(content):
        return None
    return Break(f"it is to end at byte {told}", told - len(content) > REST_PART * told)


def _walk_gif(content: Content) -> Break | None:
    """Extensions and images, each a chain of sub-blocks, up to the trailer."""
    at, is_within = 13, True
    try:
        at += _count_colours(content[10])
        while True:
            is_within = False
            kind = content[at]
            is_within = True
            if kind == _TRAILER:
                return None
            if kind == _EXTENSION:
                at += 2
            elif kind == _IMAGE:
                at += 11 + _count_colours(content[at + 9])
            else:
                return Break(f"no block of GIF at byte {at}", loses_samples=True)
            while content[at]:
                at += 1 + content[at]
            at += 1
    except IndexError:
        what = "ends within a block" if is_within else "has no trailer"
        return Break(f"the file {what}", loses_samples=is_within)


def _count_colours(flags: int) -> int:
    """Bytes of the colour table that the flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _read_element(content: Content, at: int) -> tuple[bytes, int, int] | None:
    """An element's id, where its body begins, and its length (-1: unknown); None if it is none."""
    if at >= len(content) or not content[at]:
        return None
    width = 9 - content[at].bit_length()
    start = at + width
    if width > _LONGEST_ID or start >= len(content) or not content[start]:
        return None
    length = 9 - content[start].bit_length()
    most = (1 << 7 * length) - 1
    size = int.from_bytes(content[start : start + length], "big") & most
    return bytes(content[at:start]), start + length, -1 if size == most else size


_WALKS: dict[str, Walk] = {
    "mp4": _walk_boxes,
    "mov": _walk_boxes,
    "webm": _walk_matroska,
    "mkv": _walk_matroska,
    "gif": _walk_gif,
}
