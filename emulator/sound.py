"""The soundtrack: the source's own, then its last second, quieter, over and over."""

import array
import math

import av
from av.audio.resampler import AudioResampler

RATE = 48_000
SAMPLE_BYTES = 4
"""Two channels of 16 bits."""
QUIETER = 0.4
EDGE = 480
"""Samples of fade at both ends of the loop, so that it does not click."""
TONE_HERTZ = 220
TONE_LEVEL = 1500


class Sound:
    """The source's sound, resampled; remembers its first or last second."""

    def __init__(self, *, keeps_first: bool = False) -> None:
        self._resampler = AudioResampler("s16", "stereo", RATE)
        self._pending = bytearray()
        self._kept = bytearray()
        self._keeps_first = keeps_first

    @property
    def kept(self) -> bytes:
        """At most a second of it."""
        return bytes(self._kept)

    @property
    def has_kept_a_second(self) -> bool:
        return len(self._kept) >= RATE * SAMPLE_BYTES

    def feed(self, frame: av.AudioFrame | None) -> None:
        """Add decoded sound; None when there is no more."""
        for converted in self._resampler.resample(frame):
            samples = bytes(converted.planes[0])[: converted.samples * SAMPLE_BYTES]
            self._pending += samples
            self._keep(samples)

    def take(self, samples: int) -> bytes:
        """At most so many samples."""
        taken = bytes(self._pending[: samples * SAMPLE_BYTES])
        del self._pending[: len(taken)]
        return taken

    def take_exactly(self, samples: int) -> bytes:
        """So many samples, silence where there are no more."""
        return self.take(samples).ljust(samples * SAMPLE_BYTES, b"\0")

    def _keep(self, samples: bytes) -> None:
        self._kept += samples
        excess = len(self._kept) - RATE * SAMPLE_BYTES
        if excess > 0 and self._keeps_first:
            del self._kept[-excess:]
        elif excess > 0:
            del self._kept[:excess]


class Loop:
    """An endless soundtrack for the new part; a soft tone where the source had no sound."""

    def __init__(self, kept: bytes) -> None:
        self._loop = quieten(kept) if kept else synthesize_tone()
        self._given = 0

    def take(self, samples: int) -> bytes:
        start = self._given * SAMPLE_BYTES % len(self._loop)
        length = samples * SAMPLE_BYTES
        self._given += samples
        repeats = (start + length) // len(self._loop) + 1
        return (self._loop * repeats)[start : start + length]


def quieten(kept: bytes) -> bytes:
    """Softer, and silent at both ends."""
    values = array.array("h", kept)
    values = array.array("h", [int(value * QUIETER) for value in values])
    for distance in range(min(2 * EDGE, len(values) // 2)):
        for index in (distance, -1 - distance):
            values[index] = values[index] * distance // (2 * EDGE)
    return values.tobytes()


def synthesize_tone() -> bytes:
    """One second, a whole number of waves, so that it repeats without a seam."""
    step = 2 * math.pi * TONE_HERTZ / RATE
    wave = (int(TONE_LEVEL * math.sin(step * number)) for number in range(RATE))
    return array.array("h", [value for one in wave for value in (one, one)]).tobytes()
