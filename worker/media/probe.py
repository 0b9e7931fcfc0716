"""What a video file is, by one pass over it: its facts, what is odd, and what proves damage.

Every packet is read and counted. Up to two bounds every packet is decoded too; beyond them head,
tail and places between, so that a long video costs little more than reading it once.

FFmpeg decodes as a player does, and what it conceals or complains of is no proof. Proof are: an
index that names samples outside of the file, a packet that the end of the file cuts off, a
container whose chain breaks among its samples (`extent.py`), and a picture of which packets fail to
decode *and* their frames are missing, more than one in a hundred.

What is not found: damage that a codec cannot tell from content. VP9 and GIF have no check sums, so
bytes overwritten inside a frame often are another picture, and any bytes are PCM sound; nor what
lies between the samples of a file that is too large to be decoded whole.

The very file alone is read: playlists and other files' names are not followed.
"""

import errno
import math
import re
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TypeAlias, TypeGuard

import av
from av.container import InputContainer
from av.stream import Disposition, Stream

from worker.ground.errors import Finding, MediaBoundError, MediaRefusedError
from worker.media.extent import find_break

DEFAULT_EXTENSION = "bin"
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
# playlists and scripts that name other files or URLs are not among them, whatever the file's name
READ_OPTIONS = {"format_whitelist": "mov,matroska,gif,avi", "protocol_whitelist": "file"}
# Width times height of what is decoded: a few bytes can announce gigabytes. 8K has half of it.
MAX_PIXELS = 8192 * 8192
# What is decoded from end to end: a few seconds' work. Beyond any of them samples have to do.
# Pixels and frames are those that came out, whatever the header says; the time is CPU time.
WHOLE_BYTES = 256 * 1024 * 1024
WHOLE_PIXELS = 4_000_000_000
WHOLE_FRAMES = 20_000
WHOLE_TIME = timedelta(seconds=10)
# Where samples begin, as parts of the file, and how many pictures each has.
SAMPLE_PLACES = (*(part / 16 for part in range(16)), 63 / 64)
SAMPLE_PICTURES = 24
# Of packets that were decoded: what may fail and be missing, beyond a single one, without proof.
LOST_PICTURES = 0.01
LOST_SOUND = 0.1
# Lengths differ by the padding of a sound codec's last block, and by rounding to a time base.
LEAST_SECONDS = 0.25
LENGTH_PART = 0.02

_EXTENSION = re.compile(r"[a-z0-9]{1,5}")
_EBML = b"\x1a\x45\xdf\xa3"
_QUICKTIME_ATOMS = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})

Media: TypeAlias = av.VideoStream | av.AudioStream
Packet: TypeAlias = "av.Packet[Stream]"


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """One stream: FFmpeg's word for its kind, and its codec; None if FFmpeg knows none."""

    kind: str
    codec: str | None


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What the pass has shown.

    `container` is FFmpeg's name, such as `mov,mp4,m4a,3gp,3g2,mj2`; `media_type` is told by the
    first bytes. `fps` is the average rate, `frames` were really decoded, and `duration` is
    `frames / fps`; both are None where nothing tells them. `rotation` says by how many degrees, 0
    to 359, the picture is turned clockwise when it is shown.

    If not `is_whole`, the file was too large to be decoded from end to end: `frames` is then the
    number of its packets.
    """

    container: str
    media_type: str
    codec: str
    width: int
    height: int
    rotation: int
    fps: float | None
    frames: int
    duration: timedelta | None
    streams: tuple[StreamFacts, ...]
    is_whole: bool

    @property
    def has_audio(self) -> bool:
        return any(stream.kind == "audio" for stream in self.streams)


@dataclass(frozen=True, slots=True)
class Examined:
    """A video's facts, what is odd about it, and what proves that it is damaged.

    `rates` are the ways in which a frame rate can be read, and `lengths` those of the picture and
    of the file, in seconds.
    """

    facts: VideoFacts
    oddities: tuple[Finding, ...]
    damages: tuple[Finding, ...]
    rates: tuple[float, ...]
    lengths: tuple[float, ...]


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
                    self._fail("a frame is damaged" if frame.is_corrupt else "")
        except av.FFmpegError as error:
            require_memory(error)
            self._fail(str(error.strerror))
        if packet is None:
            self.stream.codec_context.flush_buffers()

    def _fail(self, reason: str) -> None:
        self.failures += bool(reason)
        self.reason = self.reason or reason


@dataclass(slots=True)
class Pass:
    """One reading of all packets; beyond `most` pixels, as all other bounds, it takes samples.

    `each` is how many pixels a picture has by its header; what comes out may have more.
    """

    readings: dict[int, Reading]
    picture: Reading
    size: int
    most: int
    each: int
    is_whole: bool = True
    failure: str | None = None
    _began: float = field(default_factory=time.process_time)
    _place: float = -1.0
    _left: int = 0
    _since: int = 0

    def run(self, container: InputContainer) -> None:
        try:
            for packet in container.demux([one.stream for one in self.readings.values()]):
                one = self.readings[packet.stream.index]
                if packet.size:
                    one.count(packet)
                    if self._chooses(one, packet):
                        one.decode(packet)
        except av.FFmpegError as error:
            require_memory(error)
            self.failure = str(error.strerror)
        self._drain()

    def _chooses(self, one: Reading, packet: Packet) -> bool:
        is_picture = one is self.picture
        if self.is_whole:
            if not is_picture or not self._is_beyond():
                return True
            self.is_whole = False
            self._drain()
        if not is_picture or self._left > 0:
            self._left -= is_picture
            if is_picture and self._left == 0:
                self._drain()
            # Pictures shown before the key frame may need what was passed over.
            return self._left > 0 and not (is_picture and (packet.pts or 0) < self._since)
        place = (packet.pos or 0) / self.size
        is_due = place >= self._place and (packet.is_keyframe or self._place < 0)
        if is_due:
            self._left, self._since = SAMPLE_PICTURES, packet.pts or 0
            self._place = next((one for one in SAMPLE_PLACES if one > place), 1.0)
        return is_due

    def _is_beyond(self) -> bool:
        return (
            max(self.picture.pixels, self.picture.tried * self.each) + self.each > self.most
            or self.picture.tried >= WHOLE_FRAMES
            or time.process_time() - self._began > WHOLE_TIME.total_seconds()
        )

    def _drain(self) -> None:
        for one in self.readings.values():
            one.decode(None)


def probe_video(path: Path) -> VideoFacts:
    """Decode the file and tell what it is; raises MediaRefusedError if it is no video."""
    return examine_video(path).facts


def examine_video(
    path: Path, *, whole_bytes: int = WHOLE_BYTES, whole_pixels: int = WHOLE_PIXELS
) -> Examined:
    """Read the file once, decode it as far as the bounds allow, and tell what it is.

    Raises MediaRefusedError if no video stream of it decodes, MediaBoundError if it takes too much.
    """
    try:
        size = path.stat().st_size
        with open_video(path) as container:
            shown = find_picture(container)
            if shown is None:
                raise MediaRefusedError("not a readable video: it has no video stream")
            step = float(1 / shown.average_rate) if shown.average_rate else 0.0
            readings = {one.index: Reading(one, step) for one in list_media(container)}
            for one in readings.values():
                # With several threads H.264 now and then forgets that a frame is damaged.
                one.stream.codec_context.thread_type = "NONE"
                one.stream.codec_context.thread_count = 1
            each = check_pixels(shown.codec_context.width, shown.codec_context.height)
            most = whole_pixels if size <= whole_bytes else 0
            seen = Pass(readings, readings[shown.index], size, most, each)
            seen.run(container)
            return _describe(container, shown, path, seen)
    except (av.FFmpegError, OSError) as error:
        raise MediaRefusedError(f"not a readable video: {error.strerror}") from error


def open_video(path: Path) -> InputContainer:
    """Raises av.FFmpegError or OSError."""
    return av.open(path.absolute(), container_options=READ_OPTIONS)


def list_media(container: InputContainer) -> list[Media]:
    """The streams that are decoded: pictures and sound, without cover pictures."""
    return [one for one in container.streams if _is_media(one)]


def find_picture(container: InputContainer) -> av.VideoStream | None:
    """The stream that is shown, of those that are decoded."""
    pictures = [one for one in list_media(container) if isinstance(one, av.VideoStream)]
    best = container.streams.best("video")
    return next((one for one in pictures if one is best), next(iter(pictures), None))


def check_pixels(width: int, height: int) -> int:
    """How many they are. Raises MediaBoundError for a picture that is not decoded."""
    if width * height > MAX_PIXELS:
        told = f"its picture has {width} x {height} pixels; at most {MAX_PIXELS} are decoded"
        raise MediaBoundError(told)
    return width * height


def require_memory(error: av.FFmpegError) -> None:
    """Raises MemoryError if it was memory that the decoder lacked: that proves nothing."""
    if error.errno == errno.ENOMEM:
        raise MemoryError from error


def choose_extension(content_type: str | None, file_name: str | None, head: bytes) -> str:
    """Give a file extension without the dot: by the bytes, else the type, else the name."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    suffix = PurePosixPath(file_name or "").suffix.removeprefix(".").lower()
    named = suffix if _EXTENSION.fullmatch(suffix) else DEFAULT_EXTENSION
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


def _describe(
    container: InputContainer, picture: av.VideoStream, path: Path, seen: Pass
) -> Examined:
    shown = seen.picture
    if not shown.frames:
        raise MediaRefusedError("not a readable video: it has no frames")
    frames = shown.frames if seen.is_whole else shown.packets
    length = (container.duration or 0) / av.time_base
    lengths = [one for one in (length, shown.end - shown.begin) if one > 0]
    rates = [picture.average_rate, picture.guessed_rate, picture.base_rate]
    known = [*(float(rate) for rate in rates if rate), *(frames / one for one in lengths)]
    # A GIF counts in hundredths of a second.
    fps = frames / length if container.format.name == "gif" and length else next(iter(known), None)
    seconds = frames / fps if fps else None
    with path.open("rb") as file:
        extension = recognise_bytes(file.read(HEAD_BYTES)) or ""
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
        is_whole=seen.is_whole,
    )
    proofs, oddities = _judge(container, path, extension, seen)
    return Examined(
        facts, oddities, proofs, tuple(known), (*([seconds] if seconds else []), *lengths)
    )


def _judge(
    container: InputContainer, path: Path, extension: str, seen: Pass
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """What proves damage, and what is only odd."""
    found: list[tuple[bool, Finding]] = []
    length = (container.duration or 0) / av.time_base
    last = (
        max(one.end for one in seen.readings.values()) - (container.start_time or 0) / av.time_base
    )
    is_short = length - last > max(LEAST_SECONDS, LENGTH_PART * length)
    if is_short:
        told = f"the container tells of {length:.3f} s, its last packet ends at {last:.3f} s"
        found.append((False, Finding("ends_early", told)))
    broken = find_break(path, extension)
    if broken is not None:
        told = f"the container is not whole: {broken.reason}"
        found.append((broken.loses_samples or is_short, Finding("container", told)))
    if seen.failure is not None:
        found.append((True, Finding("container", f"it cannot be read on: {seen.failure}")))
    for one in seen.readings.values():
        name = f"{one.stream.type} stream {one.stream.index}"
        outside = sum(entry.pos + entry.size > seen.size for entry in one.stream.index_entries)
        if outside or one.is_cut:
            told = f"{name}: {outside or 1} samples lie outside of the {seen.size} bytes"
            found.append((True, Finding("samples", told)))
        if one.failures:
            told = f"{name}: {one.failures} of {one.tried} packets fail to decode ({one.reason})"
            told += f", {one.broken} frames are missing"
            found.append((one.is_broken, Finding("decoder", told)))
    proofs, oddities = (
        [one for is_proof, one in found if is_proof is kind] for kind in (True, False)
    )
    return tuple(proofs), tuple(oddities)


def _is_media(stream: Stream) -> TypeGuard[Media]:
    """One that FFmpeg has no decoder for has no codec context either."""
    is_kind = isinstance(stream, av.VideoStream | av.AudioStream)
    is_cover = bool(stream.disposition & Disposition.attached_pic)
    return is_kind and not is_cover and stream.codec_context is not None
