"""A poster: one frame of a video as a JPEG, for people.

In full range and the colours of BT.601, as viewers expect, and upright where the video is shown
turned. The same video gives the same bytes.
"""

from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.filter import Graph

from worker.ground.errors import MediaRefusedError
from worker.media.facts import VideoFacts
from worker.media.probe import check_pixels, find_picture, open_video

POSTER_WIDTH = 640
# From 2 (best) to 31: a poster 640 wide takes some tens of kilobytes.
QUANTISER = 4
# Where a frame is taken, as parts of the length: the first one that is not black.
PLACES = (1 / 3, 1 / 2, 2 / 3, 1 / 6, 5 / 6, 0.0)
# Of 255, the mean: scenes at night are lighter, and faded ones are not.
LIGHT = 20
# Each thread of a decoder holds frames of its own.
THREADS = 2
# Of one search, beyond which the frame that was reached will do: a file may have one key frame.
SEARCH_PIXELS = 500_000_000
SEARCH_FRAMES = 5_000
TURNS = {90: ("transpose", "clock"), 180: ("rotate", "PI"), 270: ("transpose", "cclock")}


def make_poster(path: Path, facts: VideoFacts | None) -> bytes:
    """A JPEG at most POSTER_WIDTH wide; without facts it shows the first frame.

    Raises MediaRefusedError if no frame can be read.
    """
    seconds = facts.duration.total_seconds() if facts and facts.duration else 0.0
    best, light = None, -1.0
    try:
        with open_video(path) as container:
            stream = find_picture(container)
            if stream is None:
                raise MediaRefusedError("no frame of the video can be shown: it has none")
            check_pixels(stream.codec_context.width, stream.codec_context.height)
            stream.thread_type, stream.codec_context.thread_count = "AUTO", THREADS
            for place in PLACES:
                frame, is_cut = _read_frame(container, stream, place * seconds)
                found = -1.0 if frame is None else measure_light(frame)
                if found > light:
                    best, light = frame, found
                if light >= LIGHT or is_cut:
                    break
        if best is None:
            raise MediaRefusedError("no frame of the video can be shown")
        return encode_jpeg(_draw_upright(best, facts.rotation if facts else 0))
    except (av.FFmpegError, OSError) as error:
        reason = f"no frame of the video can be shown: {error.strerror}"
        raise MediaRefusedError(reason) from error


def measure_light(frame: av.VideoFrame) -> float:
    """The mean brightness, from 0 to 255."""
    return bytes(
        frame.reformat(1, 1, "gray", interpolation="AREA", dst_color_range="JPEG").planes[0]
    )[0]


def encode_jpeg(frame: av.VideoFrame) -> bytes:
    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, av.VideoCodecContext)  # noqa: S101 - mjpeg is one
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, frame.format.name
    encoder.time_base = encoder.sample_aspect_ratio = Fraction(1, 1)
    # without bitexact the version of FFmpeg stands in each file
    encoder.options = {"flags": "+bitexact", "qmin": str(QUANTISER), "qmax": str(QUANTISER)}
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def _read_frame(
    container: InputContainer, stream: av.VideoStream, seconds: float
) -> tuple[av.VideoFrame | None, bool]:
    """The frame shown then, or the last one that decodes before it; whether it was too far."""
    at = (container.start_time or 0) / av.time_base + seconds
    latest, is_cut = None, False
    with suppress(av.FFmpegError):  # what came before it will do
        container.seek(round(at * av.time_base))
        for number, frame in enumerate(container.decode(stream), start=1):
            check_pixels(frame.width, frame.height)
            latest = frame
            is_cut = number >= min(SEARCH_FRAMES, SEARCH_PIXELS / (frame.width * frame.height))
            lasts = float((frame.duration or 0) * (frame.time_base or 0))
            if is_cut or frame.pts is None or (frame.time or 0.0) + lasts > at:
                break
    return latest, is_cut


def _draw_upright(frame: av.VideoFrame, rotation: int) -> av.VideoFrame:
    """Turned as it is shown, at most POSTER_WIDTH wide, in a JPEG's own colours."""
    is_quarter = rotation % 180 == 90  # noqa: PLR2004 - a quarter turn
    width, height = (frame.height, frame.width) if is_quarter else (frame.width, frame.height)
    part = min(1.0, POSTER_WIDTH / width)
    columns, rows = (max(1, round(side * part)) for side in (width, height))
    steps = [
        *([TURNS[rotation]] if rotation in TURNS else []),
        ("scale", f"{columns}:{rows}:out_color_matrix=bt601:out_range=pc"),
        ("format", "yuvj420p"),
    ]
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1)
    )
    nodes = [graph.add(name, options) for name, options in steps]
    graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
    frame.pts = 0
    graph.vpush(frame)
    graph.vpush(None)
    return graph.vpull()
