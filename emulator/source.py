"""Reading the caller's video: one pass, one frame at a time."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast

import av
from av.container import InputContainer
from av.filter import Graph

from emulator.problems import ModelError, Problem

PIXELS = "yuv420p"
MEDIA: Mapping[str, tuple[str, str, list[str]]] = {
    "video": (
        "mov,matroska,avi,mpegts,mpeg,flv,ogg,gif",
        "video_url",
        ["mp4", "mov", "webm", "m4v", "mkv", "gif"],
    ),
    "image": (
        "png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,gif,mov",
        "end_image_url",
        ["png", "jpeg", "webp", "avif", "gif"],
    ),
}
"""Demuxers allowed, the input's field, and what the caller is told is supported. Playlists,
which could name further files, are not among them."""
TURNS: Mapping[int, list[tuple[str, str | None]]] = {
    90: [("transpose", "cclock")],
    180: [("hflip", None), ("vflip", None)],
    270: [("transpose", "clock")],
}
"""Filters that show a frame as it asks to be shown: turned so many degrees counter-clockwise."""


@dataclass(frozen=True, slots=True)
class Source:
    """What there is to know of a video before all of it was decoded."""

    path: Path
    size: tuple[int, int]
    rate: Fraction
    has_audio: bool


def inspect_source(path: Path) -> Source:
    """Look at the first frame.

    Raises ModelError: `unsupported_video_format`, on `video_url`.
    """
    with open_media(path, "video") as container:
        frame = _decode_first(container)
        stream = container.streams.video[0]
        is_upright = frame.rotation % 180 == 0
        size = (frame.width, frame.height) if is_upright else (frame.height, frame.width)
        rate = stream.average_rate or stream.base_rate or Fraction(24)
        return Source(path, size, Fraction(rate), bool(container.streams.audio))


def read_image(path: Path, size: tuple[int, int]) -> av.VideoFrame:
    """The picture, cropped to the size.

    Raises ModelError: `unsupported_image_format`, on `end_image_url`.
    """
    with open_media(path, "image") as container:
        return Fitting(size).apply(_decode_first(container))


@contextmanager
def open_media(path: Path, kind: Literal["video", "image"]) -> Iterator[InputContainer]:
    """Whatever goes wrong with the file meanwhile is the fault of its field."""
    demuxers, field, supported = MEDIA[kind]
    try:
        with av.open(path, "r", options={"format_whitelist": demuxers}) as container:
            if not container.streams.video:
                raise av.InvalidDataError(0, "no picture in it")
            yield container
    except av.FFmpegError as error:
        message = f"The file is no {kind} that can be read: {error.strerror}"
        formats = {"supported_formats": supported}
        problem = Problem(f"unsupported_{kind}_format", (field,), message, None, formats)
        raise ModelError(problem) from error


def read_frames(
    source: Source,
    size: tuple[int, int],
    rate: Fraction,
    on_sound: Callable[[av.AudioFrame], None],
) -> Iterator[av.VideoFrame]:
    """Every frame of the source at the wanted size and rate; sound is handed over on the way.

    At the source's own rate that is each frame once. At another rate frames are repeated or
    left out so that the speed stays: `max(1, round(frames * rate / source.rate))` of them.
    """
    fit = Fitting(size)
    given = 0
    last = None
    for read, frame in enumerate(decode(source, on_sound), start=1):
        last = fit.apply(frame)
        for _ in range(count_due(read, rate / source.rate) - given):
            given += 1
            yield last
    if last is not None and given == 0:
        yield last


def count_due(read: int, ratio: Fraction) -> int:
    """How many frames the first `read` frames of the source become."""
    return int(read * ratio + Fraction(1, 2))


def decode(source: Source, on_sound: Callable[[av.AudioFrame], None]) -> Iterator[av.VideoFrame]:
    with open_media(source.path, "video") as container:
        streams = [container.streams.video[0], *container.streams.audio[:1]]
        for packet in container.demux(streams):
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    yield frame
                else:
                    on_sound(cast(av.AudioFrame, frame))


def _decode_first(container: InputContainer) -> av.VideoFrame:
    frame = next(container.decode(container.streams.video[0]), None)
    if frame is None:
        raise av.InvalidDataError(0, "no frame in it")
    return frame


class Fitting:
    """Scales frames to a size, cropping what sticks out, turned upright, as 4:2:0."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._shape: tuple[object, ...] = ()
        self._graph = Graph()

    def apply(self, frame: av.VideoFrame) -> av.VideoFrame:
        shape = (frame.width, frame.height, frame.format.name, frame.rotation)
        if shape == (*self._size, PIXELS, 0):
            return frame
        if shape != self._shape:
            self._shape = shape
            self._graph = build_fit_graph(frame, self._size)
        self._graph.vpush(frame)
        return self._graph.vpull()


def build_fit_graph(frame: av.VideoFrame, size: tuple[int, int]) -> Graph:
    width, height = size
    graph = Graph()
    buffer = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    nodes = [
        buffer,
        *(graph.add(*turn) for turn in TURNS.get(frame.rotation % 360, ())),
        graph.add("scale", f"{width}:{height}:force_original_aspect_ratio=increase"),
        graph.add("crop", f"{width}:{height}"),
        graph.add("setsar", "1"),
        graph.add("format", PIXELS),
        graph.add("buffersink"),
    ]
    graph.link_nodes(*nodes).configure()
    return graph
