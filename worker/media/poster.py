"""Pictures of a video for people: a poster frame, and a contact sheet of frames spread over it.

Both are JPEGs in full range and in the colours of BT.601, as viewers expect, and upright where the
video is shown turned. Same video, same bytes.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.filter import Graph

from worker.ground.errors import MediaRefusedError
from worker.media.probe import VideoFacts, check_pixels, find_picture, open_video

POSTER_WIDTH = 640
SHEET_COLUMNS, SHEET_ROWS = 4, 3
# A sheet of wide pictures is 1300 pixels wide.
SHEET_SIDE = 320
SHEET_GAP = 4
# Of 2 (best) to 31: a poster 640 wide takes some tens of kilobytes.
QUANTISER = 4
# Where a frame is looked for, as parts of the length: the first one that is not black.
PLACES = (1 / 3, 1 / 2, 2 / 3, 1 / 6, 5 / 6, 0.0)
# Of 255, the mean of a thumbnail: scenes at night are lighter, and faded ones are not.
LIGHT = 20
THUMB_SIDE = 16
# Each thread of a decoder holds frames of its own.
THREADS = 2
# Of one search, beyond which the frame that was reached will do: a file may have one key frame.
SEARCH_PIXELS = 500_000_000
SEARCH_FRAMES = 5_000
TURNS = {90: ("transpose", "clock"), 180: ("rotate", "PI"), 270: ("transpose", "cclock")}


def make_poster(path: Path, facts: VideoFacts) -> bytes:
    """A JPEG at most POSTER_WIDTH wide. Raises MediaRefusedError if no frame can be read."""
    with _refusing():
        best = _choose_frame(path, facts)
        return encode_jpeg(_draw(best, facts, POSTER_WIDTH, best.width + best.height))


def make_sheet(path: Path, facts: VideoFacts) -> bytes:
    """A JPEG of SHEET_COLUMNS by SHEET_ROWS frames in their order. As `make_poster`."""
    count = SHEET_COLUMNS * SHEET_ROWS
    seconds = _count_seconds(facts)
    places = [(number + 0.5) / count * seconds for number in range(count)]
    with _reading(path) as (container, stream):
        # A search decodes from the key frame before: in short files far more than one pass does.
        is_searched = stream.codec_context.codec.intra_only or not facts.is_whole
        read = _read_each if is_searched else _read_in_order
        frames = read(container, stream, places)
        pictures = [_draw(frame, facts, SHEET_SIDE, SHEET_SIDE) for frame in frames]
    if not pictures:
        raise MediaRefusedError("no frame of the video can be shown")
    layout = f"{SHEET_COLUMNS}x{SHEET_ROWS}:padding={SHEET_GAP}:margin={SHEET_GAP}"
    return encode_jpeg(_filter(pictures, [("tile", layout)]))


def measure_light(frame: av.VideoFrame) -> float:
    """How light it is on the whole, from 0 to 255."""
    thumb = frame.reformat(THUMB_SIDE, THUMB_SIDE, "gray", dst_color_range="JPEG")
    plane = thumb.planes[0]
    content = bytes(plane)
    rows = (content[at : at + THUMB_SIDE] for at in range(0, len(content), plane.line_size))
    return sum(map(sum, rows)) / THUMB_SIDE**2


def encode_jpeg(frame: av.VideoFrame) -> bytes:
    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, av.VideoCodecContext)  # noqa: S101 - mjpeg is one
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, frame.format.name
    encoder.time_base = encoder.sample_aspect_ratio = Fraction(1, 1)
    # without bitexact the version of FFmpeg stands in each file
    encoder.options = {"flags": "+bitexact", "qmin": str(QUANTISER), "qmax": str(QUANTISER)}
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def _choose_frame(path: Path, facts: VideoFacts) -> av.VideoFrame:
    best, light, seconds = None, -1.0, _count_seconds(facts)
    with _reading(path) as (container, stream):
        for place in PLACES:
            frame, is_cut = _read_frame(container, stream, place * seconds)
            found = -1.0 if frame is None else measure_light(frame)
            if found > light:
                best, light = frame, found
            if light >= LIGHT or is_cut:
                break
    if best is None:
        raise MediaRefusedError("no frame of the video can be shown")
    return best


def _count_seconds(facts: VideoFacts) -> float:
    """0 if it is unknown: then there is the first frame."""
    return facts.duration.total_seconds() if facts.duration else 0.0


@contextmanager
def _refusing() -> Iterator[None]:
    """Raises MediaRefusedError for whatever FFmpeg cannot do with the file."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        reason = f"no frame of the video can be shown: {error.strerror}"
        raise MediaRefusedError(reason) from error


@contextmanager
def _reading(path: Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    """Raises MediaRefusedError, as above."""
    with _refusing(), open_video(path) as container:
        stream = find_picture(container)
        if stream is None:
            raise MediaRefusedError("no frame of the video can be shown: it has none")
        check_pixels(stream.codec_context.width, stream.codec_context.height)
        stream.thread_type, stream.codec_context.thread_count = "AUTO", THREADS
        yield container, stream


def _read_frame(
    container: InputContainer, stream: av.VideoStream, seconds: float
) -> tuple[av.VideoFrame | None, bool]:
    """The frame shown then, or the last before what cannot be decoded; whether it was too far."""
    begin = (container.start_time or 0) / av.time_base
    latest, is_cut = None, False
    with suppress(av.FFmpegError):  # whatever came before it will do
        container.seek(round((begin + seconds) * av.time_base))
        for number, frame in enumerate(container.decode(stream), start=1):
            check_pixels(frame.width, frame.height)
            latest = frame
            is_cut = number >= min(SEARCH_FRAMES, SEARCH_PIXELS / (frame.width * frame.height))
            if is_cut or frame.pts is None or _find_end(frame) > begin + seconds:
                break
    return latest, is_cut


def _read_each(
    container: InputContainer, stream: av.VideoStream, places: list[float]
) -> Iterator[av.VideoFrame]:
    frames = (_read_frame(container, stream, place)[0] for place in places)
    return (frame for frame in frames if frame is not None)


def _read_in_order(
    container: InputContainer, stream: av.VideoStream, places: list[float]
) -> Iterator[av.VideoFrame]:
    """In one pass: each frame that is shown at one of the places, as far as it decodes."""
    begin = (container.start_time or 0) / av.time_base
    waiting = [begin + place for place in places]
    with suppress(av.FFmpegError):  # whatever came before it will do
        for frame in container.decode(stream):
            end = _find_end(frame)
            if waiting and end > waiting[0]:
                waiting = [place for place in waiting if place >= end]
                yield frame


def _find_end(frame: av.VideoFrame) -> float:
    return (frame.time or 0.0) + float((frame.duration or 0) * (frame.time_base or 0))


def _draw(
    frame: av.VideoFrame, facts: VideoFacts, most_columns: int, most_rows: int
) -> av.VideoFrame:
    """Upright, at most so large, in a JPEG's own colours."""
    turn = [TURNS[facts.rotation]] if facts.rotation in TURNS else []
    is_turned = facts.rotation % 180 == 90  # noqa: PLR2004 - a quarter turn
    width, height = (frame.height, frame.width) if is_turned else (frame.width, frame.height)
    part = min(1.0, most_columns / width, most_rows / height)
    columns, rows = (max(1, round(side * part)) for side in (width, height))
    scale = ("scale", f"{columns}:{rows}:out_color_matrix=bt601:out_range=pc")
    return _filter([frame], [*turn, scale, ("format", "yuvj420p")])


def _filter(frames: list[av.VideoFrame], steps: list[tuple[str, str]]) -> av.VideoFrame:
    """The first picture that the filters make of all the frames, which are of one size."""
    first, graph = frames[0], Graph()
    source = graph.add_buffer(
        width=first.width, height=first.height, format=first.format, time_base=Fraction(1, 1)
    )
    nodes = [source, *(graph.add(name, options) for name, options in steps)]
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    for number, frame in enumerate(frames):
        frame.pts = number
        graph.vpush(frame)
    graph.vpush(None)
    return graph.vpull()
