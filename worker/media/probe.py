"""What a video file is: facts by decoding it, and its file extension by its first bytes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain
from pathlib import Path, PurePosixPath

import av
from av.container import InputContainer
from av.stream import Stream

from worker.errors import MediaRefusedError, Mismatch
from worker.media.decode import (
    Decoded,
    Reading,
    Still,
    decode_samples,
    decode_whole,
    find_picture,
    open_video,
)
from worker.media.extent import find_cut

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
HEAD_BYTES = 256
# What is decoded from end to end: a few seconds' work. Beyond either bound samples have to do.
WHOLE_BYTES = 256 * 1024 * 1024
WHOLE_PIXELS = 4_000_000_000
# Lengths differ by the padding of a sound codec's last block, and by rounding to a time base.
LEAST_SECONDS = 0.25
LENGTH_PART = 0.02
# Where the picture is taken that stands for the whole, as a part of the length.
STILL_PLACE = 1 / 3
UNKNOWN_TYPE = "application/octet-stream"

_CLOCK = re.compile(r"([0-9]+):([0-9]{2}):([0-9]{2}(?:\.[0-9]+)?)")
_EXTENSION = re.compile(r"[a-z0-9]{1,5}")
_EBML = b"\x1a\x45\xdf\xa3"
_QUICKTIME_ATOMS = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """One stream: FFmpeg's word for its kind, and its codec; None if FFmpeg knows none."""

    kind: str
    codec: str | None


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What decoding has shown.

    `container` is FFmpeg's name, such as `mov,mp4,m4a,3gp,3g2,mj2`; `media_type` is told by the
    first bytes. `fps` is the average rate, `frames` were really decoded, and `duration` is
    `frames / fps`. A GIF counts in hundredths of a second, so its `fps` is made of the other two.
    `rotation` says by how many degrees, 0 to 359, the picture is turned clockwise when it is shown.

    If not `is_whole`, the file was too large to be decoded from end to end: `frames` is then what
    the container counts, or reckons.
    """

    container: str
    media_type: str
    codec: str
    width: int
    height: int
    rotation: int
    fps: float
    frames: int
    duration: timedelta
    streams: tuple[StreamFacts, ...]
    is_whole: bool

    @property
    def has_audio(self) -> bool:
        return any(stream.kind == "audio" for stream in self.streams)


@dataclass(frozen=True, slots=True)
class Examined:
    """A video's facts, what is wrong with it in itself, and what else may be called its rate.

    Its frames are counted, or reckoned from its length. `rates` are the ways in which a frame rate
    can be read, and `lengths` those of the picture and of the file. `still` is the picture about
    STILL_PLACE of its length, if the whole was decoded and has one.
    """

    facts: VideoFacts
    flaws: tuple[Mismatch, ...]
    is_counted: bool
    rates: tuple[float, ...]
    lengths: tuple[float, ...]
    still: Still | None = None


def probe_video(path: Path) -> VideoFacts:
    """Decode the file and tell what it is; raises MediaRefusedError if it is no video."""
    return examine_video(path).facts


def examine_video(
    path: Path, *, whole_bytes: int = WHOLE_BYTES, whole_pixels: int = WHOLE_PIXELS
) -> Examined:
    """Decode the file, whole if it is within both bounds. Raises MediaRefusedError."""
    try:
        examined = _examine(path, (whole_bytes, whole_pixels))
        cut = find_cut(path, EXTENSIONS_BY_TYPE.get(examined.facts.media_type, ""))
    except (av.FFmpegError, OSError) as error:
        raise MediaRefusedError(f"not a readable video: {error.strerror}") from error
    return examined if cut is None else replace(examined, flaws=(cut, *examined.flaws))


def choose_extension(content_type: str | None, file_name: str | None, head: bytes) -> str:
    """Give a file extension without the dot: by the bytes, else the type, else the name."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    suffix = PurePosixPath(file_name or "").suffix.removeprefix(".").lower()
    named = suffix if _EXTENSION.fullmatch(suffix) else DEFAULT_EXTENSION
    return recognise_bytes(head) or EXTENSIONS_BY_TYPE.get(media_type) or named


def is_short(found: float, told: float) -> bool:
    """Whether a length in seconds is less than told by more than what containers round away."""
    return told - found > max(LEAST_SECONDS, LENGTH_PART * told)


def _examine(path: Path, bounds: tuple[int, int]) -> Examined:
    """What fails in samples is decoded whole, to be sure of it."""
    with open_video(path) as container:
        picture = _choose_picture(container)
        seconds = _read_span(container)[1]
        pixels = _count_pixels(picture, seconds)
        still_at = STILL_PLACE * _guess_length(picture, seconds)
        if path.stat().st_size <= bounds[0] and pixels <= bounds[1]:
            return _describe(container, path, decode_whole(container, still_at))
        decoded = decode_samples(container)
        if not decoded.has_failures:
            return _describe(container, path, decoded)
    with open_video(path) as container:
        return _describe(container, path, decode_whole(container, still_at))


def _describe(container: InputContainer, path: Path, decoded: Decoded) -> Examined:
    picture = _choose_picture(container)
    shown = next(one for one in decoded.readings if one.stream is picture)
    rates = [*filter(None, (picture.average_rate, picture.guessed_rate, picture.base_rate))]
    if not shown.frames or not rates:
        raise MediaRefusedError("not a readable video: it has no frames")
    begin, length = _read_span(container)
    is_whole = decoded.is_whole
    frames = shown.frames if is_whole else picture.frames or round(length * float(rates[0]))
    is_gif = container.format.name == "gif" and length > 0
    fps = frames / length if is_gif else float(rates[0])
    facts = VideoFacts(
        container=container.format.name,
        media_type=_read_type(path),
        codec=picture.codec_context.name,
        width=picture.codec_context.width,
        height=picture.codec_context.height,
        rotation=shown.rotation,
        fps=fps,
        frames=frames,
        duration=timedelta(seconds=length if is_gif else frames / fps),
        streams=tuple(_name_stream(stream) for stream in container.streams),
        is_whole=is_whole,
    )
    flaws = tuple(chain(_list_failures(decoded), _list_losses(decoded, begin, length)))
    ways = (*map(float, rates), *((frames / length,) if length else ()))
    is_counted = is_whole or bool(picture.frames)
    return Examined(facts, flaws, is_counted, ways, (frames / fps, length), shown.still)


def _read_span(container: InputContainer) -> tuple[float, float]:
    """When the container says that it begins, and how long it lasts; in seconds."""
    return (container.start_time or 0) / av.time_base, (container.duration or 0) / av.time_base


def _choose_picture(container: InputContainer) -> av.VideoStream:
    picture = find_picture(container)
    if picture is None:
        raise MediaRefusedError("not a readable video: it has no video stream")
    return picture


def _guess_length(picture: av.VideoStream, seconds: float) -> float:
    """How long the picture is to last, if the container tells of it; else as long as that does."""
    told = picture.frames / picture.average_rate if picture.average_rate else 0
    return float(told) or seconds


def _count_pixels(picture: av.VideoStream, seconds: float) -> int:
    """How much there is to decode; 0 if the container does not tell its length."""
    frames = picture.frames or seconds * (picture.average_rate or 0)
    return int(frames) * picture.codec_context.width * picture.codec_context.height


def _name_stream(stream: Stream) -> StreamFacts:
    return StreamFacts(stream.type, getattr(stream.codec_context, "name", None))


def _list_failures(decoded: Decoded) -> Iterator[Mismatch]:
    if decoded.failure is not None:
        yield Mismatch("container", "readable to its end", decoded.failure)
    for one in decoded.readings:
        told = f"{one.failures} failures, the first: {one.first_failure}"
        if one.failures:
            yield Mismatch(_name_reading(one), "decodes", told)
        elif one.packets and not one.frames:
            yield Mismatch(_name_reading(one), "decodes", "no frame of it")


def _list_losses(decoded: Decoded, begin: float, length: float) -> Iterator[Mismatch]:
    """What the container tells of, and decoding has not shown. Samples cannot show it."""
    if not decoded.is_whole:
        return
    for one in decoded.readings:
        told = _read_length(one)
        if told is not None and is_short(one.seconds, told):
            yield Mismatch(f"{_name_reading(one)}: seconds", f"{told:.3f}", f"{one.seconds:.3f}")
        counted = one.stream.frames - one.discarded
        if isinstance(one.stream, av.VideoStream) and counted - one.frames > max(1, counted // 100):
            yield Mismatch(f"{_name_reading(one)}: frames", str(counted), str(one.frames))
    last = max(one.end for one in decoded.readings) - begin
    if is_short(last, length):
        yield Mismatch("container: seconds", f"{length:.3f}", f"{last:.3f}")


def _name_reading(one: Reading) -> str:
    return f"{one.stream.type} stream {one.stream.index}"


def _read_length(one: Reading) -> float | None:
    """Seconds that the container tells of the stream; Matroska may, as a tag."""
    stream = one.stream
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = _CLOCK.fullmatch(stream.metadata.get("DURATION", ""))
    return None if tag is None else int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])


def _read_type(path: Path) -> str:
    with path.open("rb") as file:
        extension = recognise_bytes(file.read(HEAD_BYTES))
    return VIDEO_TYPES.get(extension or "", UNKNOWN_TYPE)


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
