"""Whether a file reaches as far as its own container says, told without decoding anything.

MP4 and QuickTime name the length of each box, WebM and Matroska of their segment, AVI of its
chunk, and GIF is a chain of blocks that ends with a trailer. So a file that was cut short, if only
by its last byte, is known in any size within milliseconds; what decoders pass over in silence too.
"""

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from worker.errors import Mismatch

FIELD = "extent"
HEAD_BYTES = 64
MOST_BOXES = 100_000

Content: TypeAlias = mmap.mmap | bytes
Walk: TypeAlias = Callable[[Content], str | None]

_SEGMENT = b"\x18\x53\x80\x67"
_EBML = b"\x1a\x45\xdf\xa3"
_IMAGE, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B


def find_cut(path: Path, extension: str) -> Mismatch | None:
    """What shows that the file ends too early; None if nothing does, or its kind is unknown."""
    walk = _WALKS.get(extension)
    if walk is None or not path.stat().st_size:
        return None
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        told = walk(content)
        return None if told is None else Mismatch(FIELD, told, f"{len(content)} bytes in all")


def _walk_boxes(content: Content) -> str | None:
    """Each top-level box follows the one before; the last may be open (size 0: to the end)."""
    at = 0
    for _ in range(MOST_BOXES):
        size, kind = int.from_bytes(content[at : at + 4], "big"), bytes(content[at + 4 : at + 8])
        if size == 1:
            size = int.from_bytes(content[at + 8 : at + 16], "big")
        if len(kind) < 4 or size < 8:  # noqa: PLR2004 - the length of a box's header
            return None
        at += size
        if at > len(content):
            return f"its box {kind.decode('ascii', 'replace')} ends at byte {at}"
        if at == len(content):
            return None
    return None


def _walk_segment(content: Content) -> str | None:
    """The segment holds all but the header; one of unknown size (all bits set) tells nothing."""
    if bytes(content[:4]) != _EBML:
        return None
    header = _read_vint(content, 4)
    at = 4 if header is None else header[0] + header[1]
    segment = _read_vint(content, at + 4)
    if header is None or segment is None or bytes(content[at : at + 4]) != _SEGMENT:
        return "a segment after the header"
    start, size = segment
    is_open = size == (1 << 7 * (start - at - 4)) - 1
    end = start + size
    return None if is_open or end <= len(content) else f"its segment ends at byte {end}"


def _walk_riff(content: Content) -> str | None:
    end = 8 + int.from_bytes(content[4:8], "little")
    return f"its first chunk ends at byte {end}" if end > len(content) else None


def _walk_gif(content: Content) -> str | None:
    """Extensions and images, each a chain of sub-blocks, up to the trailer."""
    try:
        at = 13 + _count_colours(content[10])
        while content[at] != _TRAILER:
            if content[at] == _EXTENSION:
                at += 2
            elif content[at] == _IMAGE:
                at += 11 + _count_colours(content[at + 9])
            else:
                return f"a block of GIF at byte {at}, not 0x{content[at]:02x}"
            while content[at]:
                at += 1 + content[at]
            at += 1
    except IndexError:
        return "a trailer at its end"
    return None


def _count_colours(flags: int) -> int:
    """Bytes of the colour table that the flags announce."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _read_vint(content: Content, at: int) -> tuple[int, int] | None:
    """Where a number of EBML ends, and the number; None if there is none."""
    if at >= len(content) or not content[at]:
        return None
    length = 9 - content[at].bit_length()
    value = int.from_bytes(content[at : at + length], "big") & (1 << 7 * length) - 1
    return (at + length, value) if at + length <= len(content) else None


_WALKS: dict[str, Walk] = {
    "mp4": _walk_boxes,
    "mov": _walk_boxes,
    "webm": _walk_segment,
    "mkv": _walk_segment,
    "avi": _walk_riff,
    "gif": _walk_gif,
}
