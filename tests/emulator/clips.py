"""Small real videos, made and read with PyAV."""

import hashlib
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.filter import Graph


@dataclass(frozen=True, slots=True)
class Probe:
    """What a decoder sees in a file. `prints` holds a hash per frame, `luma` its mean light."""

    frames: int
    size: tuple[int, int]
    rate: Fraction
    comment: str
    prints: tuple[str, ...]
    luma: tuple[float, ...]
    sound_seconds: float | None
    loudness: tuple[int, ...]


def make_clip(
    path: Path,
    *,
    frames: int = 24,
    size: tuple[int, int] = (128, 96),
    rate: Fraction | int = 12,
    has_audio: bool = True,
) -> Path:
    """Moving test pattern, with a 440 Hz tone as long as the picture."""
    seconds = float(frames / Fraction(rate))
    with av.open(path, "w") as container:
        video = container.add_stream("libx264", rate, {"crf": "12", "preset": "ultrafast"})
        video.width, video.height = size
        audio = container.add_stream("aac", 48_000, layout="stereo") if has_audio else None
        for number, frame in enumerate(draw_pattern(frames, size)):
            frame.pts, frame.time_base = number, 1 / Fraction(rate)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            for sound in play_tone(seconds):
                container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
    return path


def make_sound(path: Path) -> Path:
    """A file with a tone and no picture."""
    with av.open(path, "w") as container:
        audio = container.add_stream("aac", 48_000, layout="stereo")
        for sound in [*play_tone(0.2), None]:
            container.mux(audio.encode(sound))
    return path


def turn_clip(source: Path, target: Path, degrees: int) -> Path:
    """The same file, marked to be shown turned clockwise, as telephones do.

    The mark is the matrix of the track header: 36 bytes, 40 after the start of its contents.
    """
    one = 1 << 16
    cos, sin = {90: (0, one), 180: (-one, 0), 270: (0, -one)}[degrees]
    content = bytearray(source.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 36] = struct.pack(">9i", cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30)
    target.write_bytes(content)
    return target


def draw_pattern(frames: int, size: tuple[int, int]) -> list[av.VideoFrame]:
    graph = Graph()
    graph.link_nodes(
        graph.add("testsrc2", f"size={size[0]}x{size[1]}"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ).configure()
    return [graph.vpull() for _ in range(frames)]


def play_tone(seconds: float) -> list[av.AudioFrame]:
    graph = Graph()
    graph.link_nodes(
        graph.add("sine", f"frequency=440:sample_rate=48000:duration={seconds}"),
        graph.add("volume", "8"),
        graph.add("aformat", "sample_fmts=fltp:channel_layouts=stereo"),
        graph.add("abuffersink"),
    ).configure()
    frames: list[av.AudioFrame] = []
    while True:
        try:
            frame = graph.pull()
        except EOFError:
            return frames
        assert isinstance(frame, av.AudioFrame)
        frames.append(frame)


def make_image(path: Path, *, color: str = "white", size: tuple[int, int] = (64, 64)) -> Path:
    """A PNG of one colour, whatever the path's suffix."""
    graph = Graph()
    graph.link_nodes(
        graph.add("color", f"{color}:size={size[0]}x{size[1]}"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ).configure()
    picture = path.with_suffix(".png")
    graph.vpull().save(picture)
    return picture.rename(path)


def read_picture(path: Path) -> list[list[int]]:
    """The light of the first frame, row by row, as stored."""
    with av.open(path) as container:
        frame = next(container.decode(video=0)).reformat(format="gray")
    plane = frame.planes[0]
    content = bytes(plane)
    starts = range(0, plane.line_size * frame.height, plane.line_size)
    return [list(content[start : start + frame.width]) for start in starts]


def probe(path: Path) -> Probe:
    with av.open(path) as container:
        video = container.streams.video[0]
        frames = [frame.reformat(format="yuv420p") for frame in container.decode(video)]
        rate = video.average_rate
        metadata = {name.lower(): value for name, value in container.metadata.items()}
    planes = [bytes(frame.planes[0]) for frame in frames]
    sound_seconds, loudness = _listen(path)
    assert rate is not None
    return Probe(
        frames=len(frames),
        size=(frames[0].width, frames[0].height),
        rate=rate,
        comment=metadata.get("comment", ""),
        prints=tuple(hashlib.sha256(plane).hexdigest() for plane in planes),
        luma=tuple(sum(plane) / len(plane) for plane in planes),
        sound_seconds=sound_seconds,
        loudness=loudness,
    )


def _listen(path: Path) -> tuple[float | None, tuple[int, ...]]:
    """Length of the sound, and the loudest 16-bit value in each half second."""
    with av.open(path) as container:
        if not container.streams.audio:
            return None, ()
        resampler = av.AudioResampler("s16", "mono", 48_000)
        samples = b"".join(
            bytes(out.planes[0])[: out.samples * 2]
            for frame in [*container.decode(audio=0), None]
            for out in resampler.resample(frame)
        )
    values = memoryview(samples).cast("h")
    parts = [values[at : at + 24_000] for at in range(0, len(values), 24_000)]
    loudness = tuple(max(abs(edge) for edge in (max(part), min(part))) for part in parts)
    return len(values) / 48_000, loudness
