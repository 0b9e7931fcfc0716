"""Posters, read back as any viewer reads a JPEG."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.filter import Graph

from tests.emulator.clips import make_clip, make_sound, turn_clip
from tests.harness.outputs import FORMS, render_output
from worker.ground.errors import MediaRefusedError
from worker.media.poster import POSTER_WIDTH, make_poster, measure_light
from worker.media.probe import probe_video

Colour = tuple[int, int, int]
RED, GREEN, BLUE, BLACK = (192, 32, 32), (32, 192, 32), (32, 32, 192), (0, 0, 0)
BT709 = 1


def paint_video(
    path: Path,
    colours: list[Colour],
    *,
    size: tuple[int, int] = (128, 72),
    matrix: str = "bt601",
    tag: int | None = None,
    value_range: str = "tv",
) -> Path:
    """A second of each colour, ten frames a second; its colours coded by the matrix."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", 10, {"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if tag is not None:
            stream.codec_context.colorspace = tag
            stream.codec_context.color_range = {"tv": 1, "pc": 2}[value_range]
        for number, colour in enumerate(one for one in colours for _ in range(10)):
            frame = paint_frame(colour, size, f"out_color_matrix={matrix}:out_range={value_range}")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def paint_frame(colour: Colour, size: tuple[int, int], coding: str) -> av.VideoFrame:
    graph = Graph()
    graph.link_nodes(
        graph.add("color", f"0x{bytes(colour).hex()}:size={size[0]}x{size[1]}"),
        graph.add("format", "rgb24"),
        graph.add("scale", coding),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ).configure()
    return graph.vpull()


def read_jpeg(content: bytes) -> av.VideoFrame:
    """As JFIF has it: the matrix of BT.601, in full range."""
    assert content[:4] == b"\xff\xd8\xff\xe0"
    assert content[6:10] == b"JFIF"
    assert content.endswith(b"\xff\xd9")
    decoder = av.CodecContext.create("mjpeg", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    (frame,) = [*decoder.decode(av.Packet(content)), *decoder.decode(None)]
    return frame.reformat(format="rgb24", src_colorspace="itu601", src_color_range="JPEG")


def read_colour(frame: av.VideoFrame, across: float = 0.5, down: float = 0.5) -> Colour:
    plane = frame.planes[0]
    at = int(down * frame.height) * plane.line_size + int(across * frame.width) * 3
    red, green, blue = bytes(plane)[at : at + 3]
    return red, green, blue


def is_like(found: Colour, wanted: Colour) -> bool:
    return all(abs(one - other) <= 8 for one, other in zip(found, wanted, strict=True))


def make_picture(make: Callable[..., bytes], path: Path) -> av.VideoFrame:
    return read_jpeg(make(path, probe_video(path)))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_a_poster(tmp_path, form) -> None:
    poster = make_picture(make_poster, render_output(tmp_path, form).path)

    assert (poster.width, poster.height) == (128, 96)


def test_poster_is_of_the_frame_a_third_into_the_video(tmp_path) -> None:
    path = paint_video(tmp_path / "v.mp4", [RED, GREEN, BLUE])

    # 1.0 of 3 seconds is the first green frame.
    assert is_like(read_colour(make_picture(make_poster, path)), GREEN)


@pytest.mark.parametrize(
    ("colours", "wanted"),
    [
        ([RED, BLACK, BLUE], BLUE),
        ([RED, BLACK, BLACK], RED),
        ([BLACK, BLACK, BLACK], BLACK),
    ],
)
def test_poster_is_not_black_where_another_frame_is_not(tmp_path, colours, wanted) -> None:
    path = paint_video(tmp_path / "v.mp4", colours)

    assert is_like(read_colour(make_picture(make_poster, path)), wanted)


@pytest.mark.parametrize(
    "coding",
    [
        {},
        {"matrix": "bt709", "tag": BT709, "value_range": "pc"},
    ],
)
def test_colours_are_those_of_the_video_however_they_are_coded(tmp_path, coding) -> None:
    path = paint_video(tmp_path / "v.mp4", [RED, RED, RED], **coding)

    assert is_like(read_colour(make_picture(make_poster, path)), RED)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((1280, 704), (POSTER_WIDTH, 352)), ((704, 1280), (640, 1164)), ((130, 66), (130, 66))],
)
def test_poster_is_at_most_so_wide_and_never_blown_up(tmp_path, size, wanted) -> None:
    path = make_clip(tmp_path / "v.mp4", frames=3, size=size, has_audio=False)

    frame = make_picture(make_poster, path)

    assert (frame.width, frame.height) == wanted


@pytest.mark.parametrize(
    ("degrees", "corner"), [(90, (0.9, 0.1)), (180, (0.9, 0.9)), (270, (0.1, 0.9))]
)
def test_turned_video_has_an_upright_poster(tmp_path, degrees, corner) -> None:
    """The mark in the top left corner goes where a player shows it."""
    video = paint_marked(tmp_path / "v.mp4")
    path = turn_clip(video, tmp_path / "turned.mp4", degrees)

    frame = make_picture(make_poster, path)

    assert (frame.width > frame.height) == (degrees == 180)
    assert read_colour(frame, *corner)[0] > 200
    assert read_colour(frame, 1 - corner[0], 1 - corner[1])[0] < 150


def paint_marked(path: Path) -> Path:
    """Grey, white in the top left corner."""
    graph = Graph()
    graph.link_nodes(
        graph.add("color", "0x606060:size=128x64"),
        graph.add("drawbox", "x=0:y=0:w=32:h=32:color=white:t=fill"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ).configure()
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", 10, {"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for number in range(5):
            frame = graph.vpull()
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_same_video_gives_same_bytes(tmp_path) -> None:
    path = make_clip(tmp_path / "v.mp4")
    facts = probe_video(path)

    assert make_poster(path, facts) == make_poster(path, facts)
    assert b"Lavc" not in make_poster(path, facts)


def test_length_that_is_told_wrong_still_gives_a_poster(tmp_path) -> None:
    path = paint_video(tmp_path / "v.mp4", [RED])
    facts = replace(probe_video(path), duration=timedelta(hours=1))

    assert is_like(read_colour(read_jpeg(make_poster(path, facts))), RED)


def test_file_without_pictures_is_refused(tmp_path) -> None:
    facts = probe_video(make_clip(tmp_path / "v.mp4"))
    html = tmp_path / "page.mp4"
    html.write_text("<html>")

    for path in (html, make_sound(tmp_path / "sound.mp4"), tmp_path / "missing.mp4"):
        with pytest.raises(MediaRefusedError, match="no frame of the video can be shown"):
            make_poster(path, facts)


@pytest.mark.parametrize(
    ("colour", "light"), [((0, 0, 0), 0), ((128,) * 3, 128), ((255,) * 3, 255)]
)
def test_light_is_from_0_to_255(colour, light) -> None:
    frame = paint_frame(colour, (64, 64), "out_range=tv")

    assert measure_light(frame) == pytest.approx(light, abs=2)
