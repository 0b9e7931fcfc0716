"""What a video file is, by one bounded pass over it: its facts, what is odd, what proves damage.

Every packet is read and counted, and decoded until one of the bounds is reached. FFmpeg decodes as
a player does, and what it conceals or complains of is no proof. Proof are: an index that names
samples outside of the file, a packet that the end of the file cuts off, a container whose chain
breaks among its samples, and a picture of which packets fail to decode *and* their frames are
missing, more than one in a hundred.

Not found is damage that a codec cannot distinguish from content (VP9 and GIF have no check sums,
and any bytes are PCM sound), nor what lies beyond the bounds and leaves the container whole.

The very file alone is read: playlists and other files' names are not followed.
"""

import errno
import math
import mmap
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeAlias

import av
from av.container import InputContainer
from av.stream import Disposition, Stream

from worker.ground.errors import Finding, MediaBoundError, MediaRefusedError
from worker.media.facts import Examined, StreamFacts, VideoFacts
from worker.media.layout import HEAD_BYTES, UNKNOWN_TYPE, VIDEO_TYPES, recognise_bytes
from worker.media.verify import LEAST_SECONDS, LENGTH_PART

# playlists and scripts that name other files or URLs are not among them
READ_OPTIONS = {"format_whitelist": "mov,matroska,gif,avi", "protocol_whitelist": "file"}
# Width times height of what is decoded: a few bytes can announce gigabytes. 8K has half of it.
MAX_PIXELS = 8192 * 8192
# A file of more bytes is decoded at its head alone; any other until so many pixels came out or so
# much CPU time has passed: its header proves nothing.
WHOLE_BYTES = 256 * 1024 * 1024
WHOLE_PIXELS = 4_000_000_000
WHOLE_TIME = timedelta(seconds=10)
HEAD_PICTURES = 24
# Of packets that were decoded: what may fail and be missing, beyond a single one, without proof.
LOST_PICTURES = 0.01
LOST_SOUND = 0.1


Media: TypeAlias = av.VideoStream | av.AudioStream
Packet: TypeAlias = "av.Packet[Stream]"


@dataclass(slots=True)
class Reading:
    """What the pass has shown of one stream; `tried` packets were given to the decoder.

    `begin` and `end` are those of its packets, and `step` is how long a picture lasts; in seconds.
    """

    stream: Media
    step: float
    packets: int = 0
    tried: int = 0
    frames: int = 0
    pixels: int = 0
    failures: int = 0
    reason: str = ""
    is_cut: bool = False
    rotation: int = 0
    begin: float = math.inf
    end: float = 0.0

    @property
    def broken(self) -> int:
        """Packets that failed and whose frames are missing: one alone of both is no proof."""
        return max(0, min(self.failures, self.tried - self.frames))

    @property
    def is_broken(self) -> bool:
        """Sound of which nothing decodes may be of a kind that FFmpeg does not know."""
        part = LOST_PICTURES if isinstance(self.stream, av.VideoStream) else LOST_SOUND
        return self.frames > 0 and self.broken > max(1, part * self.tried)

    def count(self, packet: Packet) -> None:
        self.is_cut = self.is_cut or packet.is_corrupt
        if not packet.is_discard:
            self.packets += 1
            begin = float((packet.pts or 0) * (packet.time_base or 0))
            lasts = float((packet.duration or 0) * (packet.time_base or 0)) or self.step
            self.begin, self.end = min(begin, self.begin), max(begin + lasts, self.end)

    def decode(self, packet: "Packet | None") -> None:
        """None: what the decoder still holds, after which it begins anew. Failures are counted."""
        self.tried += packet is not None and not packet.is_discard
        try:
            for frame in self.stream.codec_context.decode(packet):
                self.frames += 1
                if isinstance(frame, av.VideoFrame):
                    self.pixels += check_pixels(frame.width, frame.height)
                    self.rotation = self.rotation or -frame.rotation % 360
                    self.failures += frame.is_corrupt
                    self.reason = self.reason or "a frame is damaged" * frame.is_corrupt
        except av.FFmpegError as error:
            require_memory(error)
            self.failures += 1
            self.reason = self.reason or str(error.strerror)
        if packet is None:
            self.stream.codec_context.flush_buffers()


def probe_video(path: Path) -> VideoFacts:
    """Decode the file and say what it is; raises MediaRefusedError if it is no video."""
    return examine_video(path).facts


def examine_video(
    path: Path, *, whole_bytes: int = WHOLE_BYTES, whole_pixels: int = WHOLE_PIXELS
) -> Examined:
    """Read the file once, decode it as far as the bounds allow, and say what it is.

    Raises MediaRefusedError if no video stream of it decodes, MediaBoundError if it takes too much.
    """
    began, failure, is_whole = time.process_time(), None, True
    try:
        size = path.stat().st_size
        most = whole_pixels if size <= whole_bytes else 0
        with open_video(path) as container:
            picture = find_picture(container)
            if picture is None:
                raise MediaRefusedError("not a readable video: it has no video stream")
            each = check_pixels(picture.codec_context.width, picture.codec_context.height)
            step = float(1 / picture.average_rate) if picture.average_rate else 0.0
            readings = {one.index: Reading(one, step) for one in list_media(container)}
            for one in readings.values():
                # With several threads H.264 now and then forgets that a frame is damaged.
                one.stream.codec_context.thread_type = "NONE"
                one.stream.codec_context.thread_count = 1
            shown = readings[picture.index]
            try:
                for packet in container.demux([one.stream for one in readings.values()]):
                    one = readings[packet.stream.index]
                    if not packet.size:
                        continue
                    one.count(packet)
                    # By its header a picture has `each` pixels; what comes out may have more.
                    is_beyond = (
                        max(shown.pixels, shown.tried * each) + each > most
                        or time.process_time() - began > WHOLE_TIME.total_seconds()
                    )
                    is_whole = is_whole and not (one is shown and is_beyond)
                    if is_whole or shown.tried < HEAD_PICTURES:
                        one.decode(packet)
            except av.FFmpegError as error:
                require_memory(error)
                failure = str(error.strerror)
            for one in readings.values():
                one.decode(None)
            if not shown.frames:
                raise MediaRefusedError("not a readable video: it has no frames")
            return _describe(path, container, shown, readings, failure, is_whole=is_whole)
    except (av.FFmpegError, OSError) as error:
        raise MediaRefusedError(f"not a readable video: {error.strerror}") from error


def open_video(path: Path) -> InputContainer:
    """Raises av.FFmpegError or OSError."""
    return av.open(path.absolute(), container_options=READ_OPTIONS)


def list_media(container: InputContainer) -> list[Media]:
    """The streams that are decoded: pictures and sound, without cover pictures.

    One that FFmpeg has no decoder for has no codec context either.
    """
    return [
        one
        for one in container.streams
        if isinstance(one, av.VideoStream | av.AudioStream)
        and not one.disposition & Disposition.attached_pic
        and one.codec_context is not None
    ]


def find_picture(container: InputContainer) -> av.VideoStream | None:
    """The stream that is shown, of those that are decoded."""
    pictures = [one for one in list_media(container) if isinstance(one, av.VideoStream)]
    best = container.streams.best("video")
    return next((one for one in pictures if one is best), next(iter(pictures), None))


def check_pixels(width: int, height: int) -> int:
    """How many they are. Raises MediaBoundError for a picture that is not decoded."""
    if width * height > MAX_PIXELS:
        reason = f"its picture has {width} x {height} pixels; at most {MAX_PIXELS} are decoded"
        raise MediaBoundError(reason)
    return width * height


def require_memory(error: av.FFmpegError) -> None:
    """Raises MemoryError if it was memory that the decoder lacked: that proves nothing."""
    if error.errno == errno.ENOMEM:
        raise MemoryError from error


def _describe(
    path: Path,
    container: InputContainer,
    shown: Reading,
    readings: dict[int, Reading],
    failure: str | None,
    *,
    is_whole: bool,
) -> Examined:
    picture = shown.stream
    assert isinstance(picture, av.VideoStream)  # noqa: S101 - found as one
    with path.open("rb") as file:
        extension = recognise_bytes(file.read(HEAD_BYTES)) or ""
    frames = shown.frames if is_whole else shown.packets
    length = (container.duration or 0) / av.time_base
    lengths = [one for one in (length, shown.end - shown.begin) if one > 0]
    stated = [picture.average_rate, picture.guessed_rate, picture.base_rate]
    rates = [*(float(rate) for rate in stated if rate), *(frames / one for one in lengths)]
    # A GIF counts in hundredths of a second.
    fps = frames / length if container.format.name == "gif" and length else next(iter(rates), None)
    seconds = frames / fps if fps else None
    facts = VideoFacts(
        container=container.format.name,
        media_type=VIDEO_TYPES.get(extension, UNKNOWN_TYPE),
        codec=picture.codec_context.name,
        width=picture.codec_context.width,
        height=picture.codec_context.height,
        rotation=shown.rotation,
        fps=fps,
        frames=frames,
        duration=timedelta(seconds=seconds) if seconds else None,
        streams=tuple(
            StreamFacts(one.type, getattr(one.codec_context, "name", None))
            for one in container.streams
        ),
        is_whole=is_whole,
    )
    proofs, oddities = list[Finding](), list[Finding]()
    last = max(one.end for one in readings.values()) - (container.start_time or 0) / av.time_base
    is_short = length - last > max(LEAST_SECONDS, LENGTH_PART * length)
    if is_short:
        message = f"the container states {length:.3f} s, its last packet ends at {last:.3f} s"
        oddities.append(Finding("ends_early", message))
    broken = find_break(path, extension)
    if broken is not None:
        found = proofs if broken.loses_samples or is_short else oddities
        found.append(Finding("container", f"the container is not whole: {broken.reason}"))
    if failure is not None:
        proofs.append(Finding("container", f"it cannot be read on: {failure}"))
    size = path.stat().st_size
    for one in readings.values():
        name = f"{one.stream.type} stream {one.stream.index}"
        outside = sum(entry.pos + entry.size > size for entry in one.stream.index_entries)
        if outside or one.is_cut:
            message = f"{name}: {outside or 1} samples lie outside of the {size} bytes"
            proofs.append(Finding("samples", message))
        if one.failures:
            message = f"{name}: {one.failures} of {one.tried} packets fail to decode ({one.reason})"
            found = proofs if one.is_broken else oddities
            found.append(Finding("decoder", f"{message}, {one.broken} frames are missing"))
    known = (*([seconds] if seconds else []), *lengths)
    return Examined(facts, tuple(oddities), tuple(proofs), tuple(rates), known)


# Whether a container is whole from its first byte to its last, without decoding. MP4 and QuickTime
# are chains of boxes, WebM and Matroska of elements, and GIF of blocks. A chain that breaks where
# samples lie is proof of damage; one that breaks behind them (text after the last box, a lost index
# of WebM, a lost trailer) is odd and does no harm.

MOST_BOXES = 100_000
# No index or tag takes more of a file than this: samples are among what is lost beyond it.
REST_PART = 0.05

Content: TypeAlias = mmap.mmap | bytes


class Break(NamedTuple):
    """Where and why the chain ends too early, and whether samples are lost with it."""

    reason: str
    loses_samples: bool


_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_BLOCKS = frozenset({b"\xa3", b"\xa0"})
# What else is found in a segment (RFC 9559): anything else may have been overwritten.
_KNOWN = {
    *(b"\x11\x4d\x9b\x74", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x1c\x53\xbb\x6b"),
    *(b"\x19\x41\xa4\x69", b"\x10\x43\xa7\x70", b"\x12\x54\xc3\x67", b"\x58\x54"),
    *(b"\xe7", b"\xab", b"\xa7", b"\xaf", b"\xec", b"\xbf"),
}
_INDICES = frozenset({b"moov", b"moof"})
_BOX_HEADER = 8
_LONGEST_ID = 4


def find_break(path: Path, extension: str) -> Break | None:
    """None if the container is whole, or of a kind that is not walked."""
    if extension not in {"mp4", "mov", "webm", "mkv", "gif"} or not path.stat().st_size:
        return None
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        if extension == "gif":
            return _walk_gif(content)
        return (_walk_boxes if extension in {"mp4", "mov"} else _walk_matroska)(content)


def _walk_boxes(content: Content) -> Break | None:
    """Top-level boxes; the last may be open (size 0: to the end).

    Where the samples of a plain file lie is stated by its index, which FFmpeg reads; those of a
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
    stated_end = len(content) if size < 0 else at + size
    end = min(stated_end, len(content))
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
    if stated_end <= len(content):
        return None
    return Break(
        f"it is to end at byte {stated_end}", stated_end - len(content) > REST_PART * stated_end
    )


def _walk_gif(content: Content) -> Break | None:
    """Extensions and images, each a chain of sub-blocks, up to the trailer."""
    at, is_between = 13, False
    try:
        at += _count_colours(content[10])
        while True:
            is_between = True
            kind = content[at]
            is_between = False
            match kind:
                case 0x3B:  # the trailer
                    return None
                case 0x21:  # an extension
                    at += 2
                case 0x2C:  # an image
                    at += 11 + _count_colours(content[at + 9])
                case _:
                    return Break(f"no block of GIF at byte {at}", loses_samples=True)
            while content[at]:
                at += 1 + content[at]
            at += 1
    except IndexError:
        what = "has no trailer" if is_between else "ends within a block"
        return Break(f"the file {what}", loses_samples=not is_between)


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
