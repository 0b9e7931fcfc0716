from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import av
import pytest
from av.container import OutputContainer
from hypothesis import given
from hypothesis import strategies as st

from worker.ground.errors import MediaRefusedError
from worker.media.facts import StreamFacts, VideoFacts
from worker.media.layout import choose_extension
from worker.media.probe import probe_video

CODECS = {
    "mp4": ("libx264", "yuv420p"),
    "mov": ("mpeg4", "yuv420p"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "gif": ("gif", "rgb8"),
}


def render_video(
    path: Path,
    frames: int = 12,
    rate: Fraction | int = 24,
    *,
    audio: bool = False,
    codec: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    name, pixels = CODECS[path.suffix[1:]] if codec is None else (codec, "yuv420p")
    with av.open(path, "w", options=options or {}) as container:
        stream = container.add_stream(name, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        sound = add_sound(container) if audio else None
        for index in range(frames):
            container.mux(stream.encode(paint_frame(index * 255 // frames)))
        container.mux(stream.encode())
        if sound is not None:
            encode_silence(container, sound)
    return path


def paint_frame(shade: int) -> av.VideoFrame:
    frame = av.VideoFrame(64, 48, "rgb24")
    frame.planes[0].update(bytes([shade]) * frame.planes[0].buffer_size)
    return frame


def add_sound(container: OutputContainer) -> av.AudioStream:
    stream = container.add_stream("aac", rate=48000, layout="mono")
    assert isinstance(stream, av.AudioStream)
    return stream


def encode_silence(container: OutputContainer, sound: av.AudioStream) -> None:
    frame = av.AudioFrame("fltp", "mono", 1024)
    frame.planes[0].update(bytes(frame.planes[0].buffer_size))
    frame.rate = 48000
    container.mux(sound.encode(frame))
    container.mux(sound.encode())


def test_probe_video_mp4_with_audio_gives_all_facts(tmp_path):
    path = render_video(tmp_path / "v.mp4", frames=12, rate=24, audio=True)

    assert probe_video(path) == VideoFacts(
        container="mov,mp4,m4a,3gp,3g2,mj2",
        codec="h264",
        width=64,
        height=48,
        fps=24.0,
        frames=12,
        duration=timedelta(seconds=0.5),
        media_type="video/mp4",
        rotation=0,
        streams=(StreamFacts("video", "h264"), StreamFacts("audio", "aac")),
        is_whole=True,
    )


@pytest.mark.parametrize("extension", sorted(CODECS))
def test_probe_video_each_container_counts_its_frames(tmp_path, extension):
    facts = probe_video(render_video(tmp_path / f"v.{extension}", frames=10, rate=25))

    assert (facts.frames, facts.fps, len(facts.streams)) == (10, 25.0, 1)
    assert facts.duration == timedelta(seconds=0.4)


def test_probe_video_broken_rate_keeps_its_fraction(tmp_path):
    facts = probe_video(render_video(tmp_path / "v.mp4", frames=30, rate=Fraction(30000, 1001)))

    assert facts.fps == pytest.approx(29.97, abs=0.001)
    assert facts.duration == timedelta(seconds=1.001)


def test_probe_video_cut_short_counts_only_what_decodes(tmp_path):
    path = render_video(tmp_path / "v.webm", frames=48)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])

    assert 0 < probe_video(path).frames < 48


def test_probe_video_with_index_but_no_frames_is_refused(tmp_path):
    path = render_video(tmp_path / "v.mov", options={"movflags": "faststart"})
    body = path.read_bytes()
    path.write_bytes(body[: body.index(b"mdat") + 4])

    with pytest.raises(MediaRefusedError, match="no frames"):
        probe_video(path)


@pytest.mark.parametrize(
    "body", [b"", b"<html>Not found</html>", b"\0\0\0\x20ftypisom" + bytes(64)]
)
def test_probe_video_of_other_bytes_is_refused(tmp_path, body):
    path = tmp_path / "v.mp4"
    path.write_bytes(body)

    with pytest.raises(MediaRefusedError, match="not a readable video"):
        probe_video(path)


def test_probe_video_of_missing_file_is_refused(tmp_path):
    with pytest.raises(MediaRefusedError, match="No such file"):
        probe_video(tmp_path / "missing.mp4")


def test_probe_video_of_sound_alone_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(path, "w") as container:
        encode_silence(container, add_sound(container))

    with pytest.raises(MediaRefusedError, match="no video stream"):
        probe_video(path)


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile {name}\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n",
    ],
)
def test_probe_video_of_playlist_never_opens_what_it_names(tmp_path, playlist):
    secret = render_video(tmp_path / "secret.mp4")
    path = tmp_path / "v.mp4"
    path.write_text(playlist.format(name=secret.name))

    with pytest.raises(MediaRefusedError, match="not a readable video"):
        probe_video(path)


@pytest.mark.parametrize("extension", [*CODECS, "mkv", "avi"])
def test_choose_extension_real_file_is_told_by_its_bytes(tmp_path, extension):
    path = render_video(tmp_path / f"v.{extension}", codec=None if extension in CODECS else "mpeg4")

    assert choose_extension("text/html", "page.html", path.read_bytes()[:256]) == extension


@pytest.mark.parametrize(
    ("content_type", "file_name", "head", "extension"),
    [
        (None, None, b"GIF87a", "gif"),
        (None, None, b"\0\0\0\x08wide\0\0\0\0mdat", "mov"),
        ("video/webm", "v.mp4", b"", "webm"),
        ("Video/MP4; codecs=avc1", None, b"unknown", "mp4"),
        ("application/octet-stream", "out.MKV", b"", "mkv"),
        (None, "folder.x/out.webm", b"", "webm"),
        (None, "out.m2ts", b"RIFF....WAVE", "m2ts"),
        (None, "out.toolong", b"", "bin"),
        (None, "out./../x", b"", "bin"),
        (None, None, b"", "bin"),
    ],
)
def test_choose_extension_takes_bytes_then_type_then_name(content_type, file_name, head, extension):
    assert choose_extension(content_type, file_name, head) == extension


@given(st.none() | st.text(), st.none() | st.text(), st.binary(max_size=64))
def test_choose_extension_of_anything_is_short_and_plain(content_type, file_name, head):
    extension = choose_extension(content_type, file_name, head)

    assert 1 <= len(extension) <= 5
    assert extension.isascii()
    assert extension.isalnum()
    assert extension == extension.lower()
