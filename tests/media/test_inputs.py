"""What may be an input is decided by its bytes, whatever its name says."""

import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.filter import Graph

from tests.emulator.clips import make_clip, make_sound
from worker.ground.errors import MediaRefusedError
from worker.media.child import inspect_image, inspect_video
from worker.media.facts import FileKind

PICTURES = {"png": "rgb24", "mjpeg": "yuvj420p", "libwebp": "yuv420p", "gif": "rgb8"}


def make_picture(path: Path, codec: str = "png") -> Path:
    graph = Graph()
    graph.link_nodes(
        graph.add("color", "red:size=64x64"), graph.add("format", "rgb24"), graph.add("buffersink")
    ).configure()
    frame = graph.vpull().reformat(format=PICTURES[codec])
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = 64, 64, PICTURES[codec]
    encoder.time_base = Fraction(1, 25)
    path.write_bytes(b"".join(bytes(one) for one in [*encoder.encode(frame), *encoder.encode()]))
    return path


def make_song_with_cover(path: Path, cover: Path) -> Path:
    """A sound file whose only picture is its cover."""
    with av.open(path, "w") as container:
        audio = container.add_stream("aac", 48_000, layout="stereo")
        picture = container.add_stream("mjpeg", 1)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        with av.open(cover) as given:
            frame = next(given.decode(video=0)).reformat(format="yuvj420p")
        for packet in [*picture.encode(frame), *picture.encode(None)]:
            container.mux(packet)
        graph = Graph()
        graph.link_nodes(
            graph.add("sine", "duration=0.2:sample_rate=48000"),
            graph.add("aformat", "sample_fmts=fltp:channel_layouts=stereo"),
            graph.add("abuffersink"),
        ).configure()
        sound = graph.pull()
        assert isinstance(sound, av.AudioFrame)
        for packet in [*audio.encode(sound), *audio.encode(None)]:
            container.mux(packet)
    return path


def announce_picture(path: Path, width: int, height: int) -> Path:
    """A PNG of a few bytes that says it is as large as that."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + rest)
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.mp4", FileKind("video/mp4", "mp4")),
        ("a.mov", FileKind("video/quicktime", "mov")),
        ("a.mkv", FileKind("video/x-matroska", "mkv")),
        ("a.avi", FileKind("video/x-msvideo", "avi")),
    ],
)
def test_video_is_taken_by_its_bytes(tmp_path, name, kind) -> None:
    clip = make_clip(tmp_path / name, frames=3)
    assert inspect_video(clip.rename(tmp_path / "nameless.txt")) == kind


def test_video_of_one_frame_is_taken(tmp_path) -> None:
    assert (
        inspect_video(make_clip(tmp_path / "a.mp4", frames=1, has_audio=False)).extension == "mp4"
    )


def test_moving_gif_is_taken_as_video_and_as_picture(tmp_path) -> None:
    gif = make_picture(tmp_path / "a.gif", "gif")
    kind = FileKind("image/gif", "gif")
    assert (inspect_video(gif), inspect_image(gif)) == (kind, kind)


@pytest.mark.parametrize(
    ("codec", "kind"),
    [
        ("png", FileKind("image/png", "png")),
        ("mjpeg", FileKind("image/jpeg", "jpg")),
        ("libwebp", FileKind("image/webp", "webp")),
    ],
)
def test_picture_is_taken_by_its_bytes(tmp_path, codec, kind) -> None:
    # A name that FFmpeg would take for a sequence of pictures.
    assert inspect_image(make_picture(tmp_path / "%03d.mp4", codec)) == kind


Make = Callable[[Path], Path]


def _write(content: bytes) -> Make:
    def make(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return make


def _cut_clip(path: Path) -> Path:
    clip = make_clip(path)
    clip.write_bytes(clip.read_bytes()[:2000])
    return clip


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_write(b"no video at all"), "not a readable video"),
        (_write(b"#EXTM3U\nhttp://127.0.0.1:9/a.ts\n"), "not a readable video"),
        (_write(b"ffconcat version 1.0\nfile /etc/passwd\n"), "not a readable video"),
        (_cut_clip, "not a readable video"),
        (make_picture, "not a readable video"),
        (make_sound, "it has no video stream"),
    ],
)
def test_other_file_than_a_video_is_refused(tmp_path, make, reason) -> None:
    with pytest.raises(MediaRefusedError, match=reason):
        inspect_video(make(tmp_path / "a.mp4"))


def test_cover_of_a_song_is_no_video(tmp_path) -> None:
    cover = make_picture(tmp_path / "cover.jpg", "mjpeg")
    song = make_song_with_cover(tmp_path / "song.mp4", cover)
    with pytest.raises(MediaRefusedError, match="it has no video stream"):
        inspect_video(song)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_write(b"no picture"), "neither PNG, JPEG, WebP nor GIF"),
        (make_clip, "neither PNG, JPEG, WebP nor GIF"),
        (_write(b"\x89PNG\r\n\x1a\n"), "not a readable image|no video stream"),
        (_write(b"\xff\xd8\xff\xe0nothing more"), "not a readable image|decoded|no video stream"),
    ],
)
def test_other_file_than_a_picture_is_refused(tmp_path, make, reason) -> None:
    with pytest.raises(MediaRefusedError, match=reason):
        inspect_image(make(tmp_path / "a.mp4"))


def test_picture_that_would_fill_the_memory_is_refused(tmp_path) -> None:
    with pytest.raises(MediaRefusedError, match="not a readable image"):
        inspect_image(announce_picture(tmp_path / "a.png", 60_000, 60_000))
