"""What the emulator makes of a small clip, with what it states of the file, as Python values."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from emulator.model import describe, place_order
from emulator.render import render
from emulator.schema import read_input
from tests.emulator.clips import draw_pattern, make_clip, play_tone
from worker.fal.model import VideoFile
from worker.media.facts import Stated
from worker.stages.fetch import read_stated

FORMS = {
    "mp4": "X264 (.mp4)",
    "webm": "VP9 (.webm)",
    "mov": "PRORES4444 (.mov)",
    "gif": "GIF (.gif)",
}
FEW = {"num_frames": 17, "num_context_frames": 5, "seed": 1, "end_image_url": None}


@dataclass(frozen=True)
class Output:
    path: Path
    stated: Stated


def render_output(directory: Path, form: str) -> Output:
    """24 frames of source, 12 per second, and 12 new ones."""
    named = {"prompt": "p", "video_url": "v", "video_output_type": FORMS[form]}
    directory.mkdir(parents=True, exist_ok=True)
    order = place_order(read_input({**named, **FEW}), directory)
    clip = make_clip(directory / "clip.mp4")
    shutil.move(clip, order.video)
    rendered = render(order, lambda: False)
    size = rendered.path.stat().st_size
    told = VideoFile.model_validate({"url": "https://v3.fal.media/v", **describe(rendered)})
    file = told.model_copy(update={"file_size": size})
    return Output(rendered.path, read_stated(file, size))


def mux_odd(
    path: Path,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
    sound_seconds: float = 2.0,
    place: Callable[[int], int] = int,
) -> Path:
    """Two seconds at 24 per second, but for what a test wants to be unusual."""
    rate, size = 24, (128, 96)
    sound_codec = {".webm": "libopus", ".avi": "mp2"}.get(path.suffix, "aac")
    with av.open(path, "w", options=muxing or {}) as container:
        video = container.add_stream(codec, rate, options or {})
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream(sound_codec, 48_000, layout="stereo")
        assert isinstance(audio, av.AudioStream)
        for number, frame in enumerate(draw_pattern(48, size)):
            frame.pts, frame.time_base = place(number), Fraction(1, rate)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for sound in [*play_tone(sound_seconds), None]:
            container.mux(audio.encode(sound))
    return path
