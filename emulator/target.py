"""Writing the clip: containers, codecs, and the sound kept level with the picture.

Encoders run single-threaded and bit-exact, so that the same frames give the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self, cast

import av
from av.audio.stream import AudioStream
from av.video.frame import PictureType
from av.video.stream import VideoStream

from emulator.sound import RATE, SAMPLE_BYTES

COMMENT = "Rendered by the extend-video emulator; no model was used."

AUDIO_OPTIONS = {"aac": {"aac_coder": "fast"}}


@dataclass(frozen=True, slots=True)
class Format:
    """One `video_output_type`. Quality and write mode are the codec's own options."""

    suffix: str
    content_type: str
    video_codec: str
    pixels: str
    audio_codec: str | None
    options: Mapping[str, str]
    by_quality: tuple[str, Mapping[str, str]] | None = None
    by_write_mode: tuple[str, Mapping[str, str]] | None = None
    container_options: Mapping[str, str] | None = None

    def choose_options(self, quality: str, write_mode: str) -> dict[str, str]:
        options = {**self.options, "flags": "+bitexact"}
        for values, choice in ((self.by_quality, quality), (self.by_write_mode, write_mode)):
            if values is not None:
                name, levels = values
                options[name] = levels[choice]
        return options


FORMATS = {
    "X264 (.mp4)": Format(
        suffix=".mp4",
        content_type="video/mp4",
        video_codec="libx264",
        pixels="yuv420p",
        audio_codec="aac",
        options={},
        by_quality=("crf", {"low": "32", "medium": "26", "high": "20", "maximum": "14"}),
        by_write_mode=(
            "preset",
            {"fast": "ultrafast", "balanced": "veryfast", "small": "medium"},
        ),
        container_options={"movflags": "+faststart"},
    ),
    "VP9 (.webm)": Format(
        suffix=".webm",
        content_type="video/webm",
        video_codec="libvpx-vp9",
        pixels="yuv420p",
        audio_codec="libopus",
        options={"deadline": "realtime", "b": "0"},
        by_quality=("crf", {"low": "45", "medium": "38", "high": "31", "maximum": "20"}),
        by_write_mode=("cpu-used", {"fast": "8", "balanced": "7", "small": "5"}),
    ),
    "PRORES4444 (.mov)": Format(
        suffix=".mov",
        content_type="video/quicktime",
        video_codec="prores_ks",
        pixels="yuva444p10le",
        audio_codec="pcm_s16le",
        options={"profile": "4444"},
        by_quality=(
            "bits_per_mb",
            {"low": "400", "medium": "800", "high": "1600", "maximum": "3200"},
        ),
    ),
    "GIF (.gif)": Format(
        suffix=".gif",
        content_type="image/gif",
        video_codec="gif",
        pixels="rgb8",
        audio_codec=None,
        options={},
    ),
}


@dataclass(frozen=True, slots=True)
class Encoding:
    format: Format
    quality: str
    write_mode: str
    wants_audio: bool


class Target:
    """A clip being written; complete when the `with` block ends."""

    def __init__(
        self, path: Path, size: tuple[int, int], rate: Fraction, encoding: Encoding
    ) -> None:
        self.size = size
        self.rate = rate
        self.frames = 0
        self._path = path
        self._encoding = encoding
        self._samples = 0
        options = {"fflags": "+bitexact", **(encoding.format.container_options or {})}
        self._container = av.open(path, "w", options=options)
        self._container.metadata["comment"] = COMMENT
        self._video = self._add_video()
        self._audio = self._add_audio()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._container.mux(self._video.encode(None))
            if self._audio is not None:
                self._container.mux(self._audio.encode(None))
        self._container.close()
        if kind is None and self._encoding.format.suffix == ".gif":
            add_gif_comment(self._path)

    @property
    def has_audio(self) -> bool:
        return self._audio is not None

    @property
    def lacking_samples(self) -> int:
        """How much sound there must be yet to last as long as the picture."""
        if self._audio is None:
            return 0
        return round(self.frames / self.rate * RATE) - self._samples

    def add_frame(self, frame: av.VideoFrame) -> None:
        frame = frame.reformat(format=self._encoding.format.pixels)
        frame.pts = self.frames
        frame.time_base = 1 / self.rate
        frame.pict_type = PictureType.NONE  # the source's choice of key frames is not ours
        self.frames += 1
        self._container.mux(self._video.encode(frame))

    def add_sound(self, samples: bytes) -> None:
        if self._audio is None or not samples:
            return
        frame = av.AudioFrame("s16", "stereo", len(samples) // SAMPLE_BYTES)
        frame.planes[0].update(samples)
        frame.sample_rate = RATE
        frame.time_base = Fraction(1, RATE)
        frame.pts = self._samples
        self._samples += frame.samples
        self._container.mux(self._audio.encode(frame))

    def _add_video(self) -> VideoStream:
        form = self._encoding.format
        options = form.choose_options(self._encoding.quality, self._encoding.write_mode)
        stream = cast(VideoStream, self._container.add_stream(form.video_codec, self.rate, options))
        stream.width, stream.height = self.size
        stream.pix_fmt = form.pixels
        stream.thread_count = 1
        return stream

    def _add_audio(self) -> AudioStream | None:
        codec = self._encoding.format.audio_codec
        if codec is None or not self._encoding.wants_audio:
            return None
        options = {"flags": "+bitexact", **AUDIO_OPTIONS.get(codec, {})}
        stream = self._container.add_stream(codec, RATE, options, layout="stereo")
        return cast(AudioStream, stream)


def add_gif_comment(path: Path) -> None:
    """GIF has no metadata but comment blocks; put one before the trailer byte."""
    with path.open("r+b") as file:
        file.seek(-1, 2)
        text = COMMENT.encode()
        file.write(b"\x21\xfe" + bytes([len(text)]) + text + b"\x00\x3b")
