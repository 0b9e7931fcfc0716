"""Real videos pass as they are, and do not once they are mutilated."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import av
import pytest
from av.container import InputContainer
from hypothesis import given
from hypothesis import strategies as st

import worker.media.probe
from tests.emulator.clips import make_clip, make_sound, turn_clip
from tests.harness.outputs import FORMS, Output, mux_odd, render_output
from worker.errors import MediaMismatchError
from worker.media.decode import open_video
from worker.media.probe import StreamFacts, examine_video
from worker.media.verify import (
    Stated,
    compare_facts,
    fits_frames,
    fits_rate,
    fits_seconds,
    verify_video,
)

NOTHING = Stated()
AUDIO_CODECS = {"mp4": "aac", "webm": "opus", "mov": "pcm_s16le"}
TYPES = {"mp4": "video/mp4", "webm": "video/webm", "mov": "video/quicktime", "gif": "image/gif"}

Spoil = Callable[[bytes], bytes]


@pytest.fixture(scope="session")
def outputs(tmp_path_factory) -> dict[str, Output]:
    """One small file of each form, with sound where the form has any."""
    directory = tmp_path_factory.mktemp("outputs")
    return {form: render_output(directory / form, form) for form in FORMS}


def list_fields(path: Path, stated: Stated = NOTHING) -> list[str]:
    """The evidence's fields; the file must not pass."""
    with pytest.raises(MediaMismatchError) as caught:
        verify_video(path, stated)
    return [one.field for one in caught.value.evidence]


def spoil(output: Output, directory: Path, change: Spoil) -> Path:
    path = directory / output.path.name
    path.write_bytes(change(output.path.read_bytes()))
    return path


# ------------------------------------------------------------------ the way it ought to be


@pytest.mark.parametrize("form", FORMS)
def test_output_of_every_form_passes_as_it_is_stated(outputs, form) -> None:
    output = outputs[form]

    facts = verify_video(output.path, output.stated).facts

    assert facts.is_whole
    assert (facts.width, facts.height) == (output.stated.width, output.stated.height)
    assert facts.frames == output.stated.frames
    sound = [StreamFacts("audio", AUDIO_CODECS[form])] if form in AUDIO_CODECS else []
    assert list(facts.streams) == [StreamFacts("video", facts.codec), *sound]
    assert facts.media_type == TYPES[form]
    # Decoded in samples it shows the same: what is right must pass in any size.
    sampled = examine_video(output.path, whole_bytes=0)
    assert not sampled.facts.is_whole
    assert [*sampled.flaws, *compare_facts(output.stated, sampled)] == []


def test_turned_video_may_be_stated_either_way(tmp_path) -> None:
    path = turn_clip(make_clip(tmp_path / "a.mp4"), tmp_path / "turned.mp4", 90)

    assert verify_video(path, Stated(width=128, height=96)).facts.rotation == 90
    assert verify_video(path, Stated(width=96, height=128)).facts.rotation == 90
    assert list_fields(path, Stated(width=128, height=128)) == ["size"]


def test_upright_video_may_not_be_stated_turned(outputs) -> None:
    assert list_fields(outputs["mp4"].path, Stated(width=96, height=128)) == ["size"]


ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "avi": ("a.avi", {"codec": "mpeg4"}),
    "in fragments": ("a.mp4", {"muxing": {"movflags": "frag_keyframe+empty_moov"}}),
    "open groups": ("a.mp4", {"options": {"x264-params": "open-gop=1:keyint=12:scenecut=0"}}),
    "shorter sound": ("a.mp4", {"sound_seconds": 0.5}),
    "varying rate": ("a.mp4", {"place": lambda number: number + number // 10 * 7}),
    "hidden frames": ("a.webm", {"codec": "libvpx-vp9", "options": {"lag-in-frames": "25"}}),
}


class Unsearchable:
    """A container as it is, but for what some cannot do."""

    def __init__(self, container: InputContainer) -> None:
        self._container = container

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def seek(self, *_: object) -> None:
        raise av.FFmpegError(1, "Operation not permitted")


def test_large_file_that_cannot_be_searched_is_decoded_whole(tmp_path, monkeypatch) -> None:
    path = mux_odd(tmp_path / "a.mp4")
    assert not examine_video(path, whole_bytes=0).facts.is_whole

    @contextmanager
    def open_unsearchable(path: Path) -> Iterator[Unsearchable]:
        with open_video(path) as container:
            yield Unsearchable(container)

    monkeypatch.setattr(worker.media.probe, "open_video", open_unsearchable)

    assert examine_video(path, whole_bytes=0).facts.is_whole


@pytest.mark.parametrize("kind", ODD)
def test_unusual_but_sound_video_passes(tmp_path, kind) -> None:
    name, how = ODD[kind]

    examined = examine_video(mux_odd(tmp_path / name, **how))

    assert [*examined.flaws, *compare_facts(Stated(frames=48), examined)] == []


# ------------------------------------------------------------------ mutilated


def cut(part: float) -> Spoil:
    return lambda content: content[: int(len(content) * part)]


def overwrite(part: float, length: int, *, fill: int | None = 0) -> Spoil:
    """So many bytes from there on: all the same, or random ones."""

    def change(content: bytes) -> bytes:
        at = int(len(content) * part)
        random = Random(1).randbytes(length)
        return (
            content[:at]
            + (random if fill is None else bytes([fill]) * length)
            + content[at + length :]
        )

    return change


def cut_last(content: bytes) -> bytes:
    return content[:-1]


def cut_index(content: bytes) -> bytes:
    """In the middle of the box that says where everything lies."""
    return content[: content.index(b"moov") + 300]


ENDS: dict[str, Spoil] = {
    "a byte short": cut_last,
    "two thirds": cut(2 / 3),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("harm", ENDS)
def test_file_that_lost_bytes_is_found_though_nothing_was_stated(
    outputs, tmp_path, form, harm
) -> None:
    assert list_fields(spoil(outputs[form], tmp_path, ENDS[harm]))


@pytest.mark.parametrize("form", FORMS)
def test_file_overwritten_in_the_middle_is_found_though_its_length_is_right(
    outputs, tmp_path, form
) -> None:
    path = spoil(outputs[form], tmp_path, overwrite(0.5, 4096))

    assert path.stat().st_size == outputs[form].stated.bytes
    assert list_fields(path)


def test_file_cut_within_its_index_is_found(outputs, tmp_path) -> None:
    assert "media type" in list_fields(spoil(outputs["mp4"], tmp_path, cut_index))


def test_lost_tail_of_the_sound_is_found_by_the_sounds_own_stream(outputs, tmp_path) -> None:
    path = spoil(outputs["mp4"], tmp_path, cut(0.995))

    assert list_fields(path) == ["extent", "audio stream 1"]


def test_damage_to_the_sound_alone_is_found(outputs, tmp_path) -> None:
    """Sixteen bytes in an AAC packet: the picture has none of it."""
    with av.open(outputs["mp4"].path) as container:
        packets = [one for one in container.demux(audio=0) if one.pos and one.size > 100]
        at = packets[len(packets) // 2].pos
    assert at is not None

    def change(content: bytes) -> bytes:
        return content[:at] + b"\xff" * 16 + content[at + 16 :]

    assert list_fields(spoil(outputs["mp4"], tmp_path, change)) == ["audio stream 1"]


def test_file_that_lost_bytes_is_found_in_samples_too(outputs, tmp_path) -> None:
    path = spoil(outputs["mp4"], tmp_path, cut(2 / 3))

    examined = examine_video(path, whole_bytes=0)

    assert "extent" in [flaw.field for flaw in examined.flaws]


def test_bound_on_pixels_decides_as_the_bound_on_bytes_does(outputs) -> None:
    path = outputs["mp4"].path
    pixels = 36 * 128 * 96

    assert examine_video(path, whole_pixels=pixels).facts.is_whole
    assert not examine_video(path, whole_pixels=pixels - 1).facts.is_whole


# ------------------------------------------------------------------ no video at all


@pytest.mark.parametrize(
    ("content", "kind", "quote"),
    [
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "HTML", "<!DOCTYPE html>"),
        (b'{"detail": "expired"}', "JSON", '{"detail": "expired"}'),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "XML", "AccessDenied"),
        (b"\x1b[2J\x00\xff" * 50, "other bytes", r"\x1b[2J\x00\xff"),
        (b"", "nothing", "''"),
    ],
)
def test_what_came_instead_of_a_video_is_named_and_quoted(tmp_path, content, kind, quote) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(content)

    with pytest.raises(MediaMismatchError) as caught:
        verify_video(path, Stated(media_type="video/mp4"))

    (evidence,) = caught.value.evidence
    assert (evidence.field, evidence.stated) == ("media type", "video/mp4")
    assert evidence.found.startswith(f"{kind}: ")
    assert quote in evidence.found
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 500


def test_sound_without_picture_is_no_video(tmp_path) -> None:
    assert list_fields(make_sound(tmp_path / "a.mp4")) == ["media type"]


# ------------------------------------------------------------------ other than stated

WRONG: dict[str, dict[str, Any]] = {
    "file_size": {"bytes": 1},
    "Content-Length": {"content_length": 1},
    "size": {"width": 127},
    "num_frames": {"frames": 40},
    "fps": {"fps": 12.2},
    "duration": {"duration": 3.3},
}


@pytest.mark.parametrize("field", WRONG)
def test_each_other_statement_is_evidence(outputs, field) -> None:
    output = outputs["mp4"]

    assert list_fields(output.path, replace(output.stated, **WRONG[field])) == [field]


def test_all_other_statements_are_told_at_once(outputs) -> None:
    wrong = {name: value for one in WRONG.values() for name, value in one.items()}

    fields = list_fields(outputs["mp4"].path, replace(outputs["mp4"].stated, **wrong))

    assert fields == list(WRONG)


def test_gif_of_other_frames_and_other_length_is_found(outputs) -> None:
    stated = replace(outputs["gif"].stated, frames=30, duration=30 / 6)

    assert list_fields(outputs["gif"].path, stated) == ["num_frames", "duration"]


def test_gif_may_keep_a_standing_picture_once_for_longer(outputs) -> None:
    stated = replace(outputs["gif"].stated, frames=72, fps=24.0)

    assert verify_video(outputs["gif"].path, stated).facts.frames == 36


@pytest.mark.parametrize("value", [None, 0])
def test_what_is_not_stated_is_not_compared(outputs, value) -> None:
    stated = Stated(value, value, None, value, value, value, value, value)

    assert verify_video(outputs["mp4"].path, stated).facts.frames == 36


# ------------------------------------------------------------------ tolerances

COUNTS = st.integers(1, 10_000_000)
LENGTHS = st.floats(0.01, 100_000)


@given(COUNTS, COUNTS)
def test_frames_fit_within_one_or_a_hundredth(told, found) -> None:
    assert fits_frames(told, found) == (abs(told - found) <= 1 or 100 * abs(told - found) <= told)


@given(LENGTHS, st.floats(-0.0099, 0.0099), st.floats(0.0102, 10))
def test_rate_fits_within_a_hundredth(told, near, far) -> None:
    assert fits_rate(told, told * (1 + near))
    assert not fits_rate(told, told * (1 + far))


@given(LENGTHS, st.floats(-0.99, 0.99))
def test_seconds_fit_within_a_quarter_or_two_hundredths(told, part) -> None:
    bound = max(0.25, 0.02 * told)

    assert fits_seconds(told, told + part * bound)
    assert not fits_seconds(told, told + 1.01 * bound)
    assert not fits_seconds(told, told - 1.01 * bound)


@given(st.none() | st.floats(max_value=0) | st.just(float("nan")), LENGTHS)
def test_no_statement_fits_everything(told, found) -> None:
    assert fits_rate(told, found)
    assert fits_seconds(told, found)
