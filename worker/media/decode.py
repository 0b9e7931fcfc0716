"""Decode every video and audio stream of a file, whole or in samples, and note what fails.

FFmpeg is told to give up on what it would otherwise conceal, and reads the very file alone:
playlists and other files' names are not followed.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias, TypeGuard

import av
from av.container import InputContainer
from av.stream import Disposition, Stream

# playlists and scripts that name other files or URLs are not among them, whatever the file's name
READ_OPTIONS = {"format_whitelist": "mov,matroska,gif,avi", "protocol_whitelist": "file"}
# FFmpeg's own bound on width times height while decoding: a few bytes can announce gigabytes.
MAX_PIXELS = 16_384 * 16_384
STRICT = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
# Evenly between the head and the tail of a file that is not decoded whole.
SAMPLES = 16
SAMPLE_FRAMES = 8
TAIL_FRAMES = 300
SAMPLE_PACKETS = 2_000

Media: TypeAlias = av.VideoStream | av.AudioStream
Packet: TypeAlias = "av.Packet[Stream]"


@dataclass(frozen=True, slots=True)
class Still:
    """A decoded picture, shown from `since` to `until`: seconds from the beginning of the file."""

    frame: av.VideoFrame
    since: float
    until: float


@dataclass(slots=True)
class Reading:
    """What decoding one stream has shown.

    `seconds` is how long its decoded frames last, and `end` is when the last one does. `still` is
    the picture that is shown `still_at`, in seconds from `origin`, when the file begins.
    """

    stream: Media
    origin: float = 0.0
    still_at: float = math.inf
    still: Still | None = None
    packets: int = 0
    discarded: int = 0
    frames: int = 0
    samples: int = 0
    failures: int = 0
    first_failure: str = ""
    rotation: int = 0
    _begin: float | None = None
    _end: float = 0.0

    @property
    def seconds(self) -> float:
        rate = getattr(self.stream.codec_context, "sample_rate", 0)
        return self.samples / rate if rate else self._end - (self._begin or 0.0)

    @property
    def end(self) -> float:
        return (self._begin or 0.0) + self.seconds

    def take(self, packet: Packet) -> None:
        """Decode it. What is wrong with it is counted, never raised."""
        self.packets += bool(packet.size)
        self.discarded += packet.is_discard
        if packet.is_corrupt:
            self._fail("the file ends within a packet", packet)
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            self._fail(str(error.strerror), packet)
            return
        for frame in frames:
            if isinstance(frame, av.AudioFrame):
                self._take_frame(frame)
                self.samples += frame.samples
            elif isinstance(frame, av.VideoFrame):
                self._take_frame(frame)
                self._take_picture(frame)

    def _take_frame(self, frame: av.VideoFrame | av.AudioFrame) -> None:
        self.frames += 1
        if frame.time is not None:
            self._begin = frame.time if self._begin is None else min(frame.time, self._begin)

    def _take_picture(self, frame: av.VideoFrame) -> None:
        self.rotation = self.rotation or -frame.rotation % 360
        if frame.is_corrupt:
            self._fail("a frame is damaged", frame)
        if frame.time is not None:
            lasts = (frame.duration or 0) * (frame.time_base or 0) or _find_step(self.stream)
            end = frame.time + float(lasts)
            self._end = max(self._end, end)
            since, until = frame.time - self.origin, end - self.origin
            if since <= self.still_at < until:
                self.still = Still(frame, since, until)

    def _fail(self, reason: str, part: "Packet | av.VideoFrame") -> None:
        self.failures += 1
        if not self.first_failure:
            at = None if part.pts is None else float(part.pts * (part.time_base or 0))
            self.first_failure = reason if at is None else f"{reason} at {at:.2f} s"


@dataclass(slots=True)
class Decoded:
    """Every stream's reading, and why the container could not be read to its end, if so."""

    readings: list[Reading]
    is_whole: bool
    failure: str | None = None
    _by_index: dict[int, Reading] = field(init=False)

    def __post_init__(self) -> None:
        self._by_index = {one.stream.index: one for one in self.readings}

    @property
    def has_failures(self) -> bool:
        return self.failure is not None or any(one.failures for one in self.readings)

    def take(self, packets: Iterable[Packet]) -> None:
        try:
            for packet in packets:
                self._by_index[packet.stream.index].take(packet)
        except av.FFmpegError as error:
            self.failure = self.failure or str(error.strerror)


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


def decode_whole(container: InputContainer, still_at: float = math.inf) -> Decoded:
    """All of it; each stream's picture at `still_at` (seconds from the beginning) is kept."""
    decoded = _prepare(container, is_whole=True, still_at=still_at)
    decoded.take(container.demux([one.stream for one in decoded.readings]))
    return decoded


def decode_samples(container: InputContainer) -> Decoded:
    """Head, tail and places spread between: about a second or two, however long the file is.

    What is damaged between two samples is not seen. What fails may only lack a picture before it
    (in an open group of pictures): whoever wants to know has to decode the whole.
    """
    decoded = _prepare(container, is_whole=False)
    pictures = next(one for one in decoded.readings if isinstance(one.stream, av.VideoStream))
    decoded.take(_limit(container, decoded, pictures, SAMPLE_FRAMES))
    length = container.duration or 0
    for part in range(1, SAMPLES + 1):
        most = TAIL_FRAMES if part == SAMPLES else SAMPLE_FRAMES
        try:
            container.seek((container.start_time or 0) + length * part // SAMPLES)
        except av.FFmpegError as error:
            # Its head alone proves nothing: a failure, so that the whole is decoded.
            decoded.failure = decoded.failure or f"cannot be searched: {error.strerror}"
            break
        decoded.take(_limit(container, decoded, pictures, most))
    return decoded


def _prepare(container: InputContainer, *, is_whole: bool, still_at: float = math.inf) -> Decoded:
    origin = (container.start_time or 0) / av.time_base
    readings = [Reading(one, origin, still_at) for one in list_media(container)]
    for one in readings:
        one.stream.codec_context.options = STRICT
        # With several threads H.264 now and then loses what it has noticed of a damaged frame.
        one.stream.codec_context.thread_type = "NONE"
        one.stream.codec_context.thread_count = 1
    return Decoded(readings, is_whole)


def _is_media(stream: Stream) -> TypeGuard[Media]:
    """One that FFmpeg has no decoder for has no codec context either."""
    is_kind = isinstance(stream, av.VideoStream | av.AudioStream)
    is_cover = bool(stream.disposition & Disposition.attached_pic)
    return is_kind and not is_cover and stream.codec_context is not None


def _find_step(stream: Media) -> Fraction:
    rate = stream.average_rate if isinstance(stream, av.VideoStream) else None
    return 1 / rate if rate else Fraction(0)


def _limit(
    container: InputContainer, decoded: Decoded, pictures: Reading, most: int
) -> Iterator[Packet]:
    """Packets from here on until so many pictures have been seen."""
    enough = pictures.frames + most
    packets = container.demux([one.stream for one in decoded.readings])
    for number, packet in enumerate(packets):
        if pictures.frames >= enough or number >= SAMPLE_PACKETS:
            return
        yield packet
