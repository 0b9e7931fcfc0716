"""Videos that can be read pass, with what is odd about them; damaged ones do not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.emulator.clips import make_clip, make_sound, turn_clip
from tests.harness.outputs import FORMS, Output, mux_odd, render_output
from worker.ground.errors import MediaMismatchError
from worker.media.child import verify_video
from worker.media.facts import Stated, StreamFacts
from worker.media.probe import examine_video
from worker.media.verify import compare_facts, fits

NOTHING = Stated()
AUDIO_CODECS = {"mp4": "aac", "webm": "opus", "mov": "pcm_s16le"}
TYPES = {"mp4": "video/mp4", "webm": "video/webm", "mov": "video/quicktime", "gif": "image/gif"}

Spoil = Callable[[bytes], bytes]


@pytest.fixture(scope="session")
def outputs(tmp_path_factory) -> dict[str, Output]:
    """One small file of each form, with sound where the form has any."""
    directory = tmp_path_factory.mktemp("outputs")
    return {form: render_output(directory / form, form) for form in FORMS}


def list_codes(path: Path, stated: Stated = NOTHING) -> list[str]:
    """The codes of the evidence; the file must not pass."""
    with pytest.raises(MediaMismatchError) as caught:
        verify_video(path, stated)
    return [one.code for one in caught.value.evidence]


def list_differences(path: Path, stated: Stated) -> list[str | None]:
    """What differs from what was stated; the file must pass."""
    return [one.field for one in verify_video(path, stated).oddities if one.code == "differs"]


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
    # Decoded at its head alone it shows the same: what is right must pass in any size.
    sampled = examine_video(output.path, whole_bytes=0)
    assert not sampled.facts.is_whole
    told = (*sampled.damages, *sampled.oddities, *compare_facts(output.stated, sampled))
    assert told == ()


def test_turned_video_may_be_stated_either_way(tmp_path) -> None:
    path = turn_clip(make_clip(tmp_path / "a.mp4"), tmp_path / "turned.mp4", 90)

    assert verify_video(path, Stated(width=128, height=96)).facts.rotation == 90
    assert verify_video(path, Stated(width=96, height=128)).facts.rotation == 90
    assert list_differences(path, Stated(width=128, height=128)) == ["video.height"]


def test_upright_video_may_not_be_stated_turned(outputs) -> None:
    stated = Stated(width=96, height=128)
    assert list_differences(outputs["mp4"].path, stated) == ["video.width", "video.height"]


ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "avi": ("a.avi", {"codec": "mpeg4"}),
    "in fragments": ("a.mp4", {"muxing": {"movflags": "frag_keyframe+empty_moov"}}),
    "open groups": ("a.mp4", {"options": {"x264-params": "open-gop=1:keyint=12:scenecut=0"}}),
    "shorter sound": ("a.mp4", {"sound_seconds": 0.5}),
    "varying rate": ("a.mp4", {"place": lambda number: number + number // 10 * 7}),
    "hidden frames": ("a.webm", {"codec": "libvpx-vp9", "options": {"lag-in-frames": "25"}}),
}


@pytest.mark.parametrize("kind", ODD)
def test_unusual_but_sound_video_passes(tmp_path, kind) -> None:
    name, how = ODD[kind]

    examined = examine_video(mux_odd(tmp_path / name, **how))

    told = (*examined.damages, *examined.oddities, *compare_facts(Stated(frames=48), examined))
    assert told == ()


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


def drop(part: float, length: int) -> Spoil:
    def change(content: bytes) -> bytes:
        at = int(len(content) * part)
        return content[:at] + content[at + length :]

    return change


ENDS: dict[str, Spoil] = {
    "two thirds": cut(2 / 3),
    "1000 bytes dropped": drop(0.5, 1000),
    "middle third of noise": lambda content: overwrite(1 / 3, len(content) // 3, fill=None)(
        content
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("harm", ENDS)
def test_file_that_breaks_off_inside_its_samples_is_refused(outputs, tmp_path, form, harm) -> None:
    assert list_codes(spoil(outputs[form], tmp_path, ENDS[harm]))


# Of ProRes, which has no checks, a block more or less is one frame more or less.
@pytest.mark.parametrize("form", ["mp4", "webm", "gif"])
@pytest.mark.parametrize("fill", [0, None])
def test_file_overwritten_in_the_middle_is_refused_though_its_length_is_right(
    outputs, tmp_path, form, fill
) -> None:
    path = spoil(outputs[form], tmp_path, overwrite(0.5, 4096, fill=fill))

    assert path.stat().st_size == outputs[form].stated.bytes
    assert list_codes(path)


@pytest.mark.parametrize(("form", "code"), [("webm", "container"), ("gif", "container")])
def test_file_that_lost_only_its_index_or_trailer_passes_with_a_warning(
    outputs, tmp_path, form, code
) -> None:
    path = spoil(outputs[form], tmp_path, lambda content: content[:-1])

    examined = verify_video(path, replace(outputs[form].stated, bytes=None, content_length=None))

    assert [one.code for one in examined.oddities] == [code]
    assert examined.facts.frames == 36


def test_last_sample_without_its_last_byte_is_proof(outputs, tmp_path) -> None:
    assert list_codes(spoil(outputs["mp4"], tmp_path, lambda content: content[:-1])) == ["samples"]


def test_file_cut_within_its_index_is_no_video(outputs, tmp_path) -> None:
    path = spoil(outputs["mp4"], tmp_path, lambda content: content[: content.index(b"moov") + 300])

    assert "no_video" in list_codes(path)


def test_fewer_bytes_than_the_host_announced_are_proof(outputs) -> None:
    output = outputs["mp4"]

    assert list_codes(output.path, Stated(content_length=10**6)) == ["bytes_missing"]


def test_damage_to_the_sound_alone_is_a_warning(outputs, tmp_path) -> None:
    """Sixteen bytes in an AAC packet: the picture has none of it."""
    with av.open(outputs["mp4"].path) as container:
        packets = [one for one in container.demux(audio=0) if one.pos and one.size > 100]
        at = packets[len(packets) // 2].pos
    assert at is not None

    def change(content: bytes) -> bytes:
        return content[:at] + b"\xff" * 16 + content[at + 16 :]

    (told,) = verify_video(spoil(outputs["mp4"], tmp_path, change), NOTHING).oddities
    assert told.code == "decoder"
    assert told.message.startswith("audio stream 1: 1 of 141 packets fail to decode")


@pytest.mark.parametrize("form", ["mp4", "webm", "gif"])
def test_lost_samples_are_found_in_large_files_too(outputs, tmp_path, form) -> None:
    path = spoil(outputs[form], tmp_path, cut(2 / 3))

    examined = examine_video(path, whole_bytes=0)

    assert {"container", "samples"} & {one.code for one in examined.damages}


def test_damage_at_the_head_is_found_in_large_files_too(outputs, tmp_path) -> None:
    size = outputs["mov"].path.stat().st_size
    path = spoil(outputs["mov"], tmp_path, overwrite(0.02, size // 12))

    assert [one.code for one in examine_video(path, whole_bytes=0).damages] == ["decoder"]


def test_bound_on_pixels_decides_as_the_bound_on_bytes_does(outputs) -> None:
    path = outputs["mp4"].path
    pixels = 36 * 128 * 96

    assert examine_video(path, whole_pixels=pixels).facts.is_whole
    assert not examine_video(path, whole_pixels=pixels - 1).facts.is_whole


# ------------------------------------------------------------------ no video at all


@pytest.mark.parametrize(
    ("content", "quote"),
    [
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "<!DOCTYPE html>"),
        (b"\x1b[2J\x00\xff" * 50, r"\x1b[2J\x00\xff"),
        (b"", "''"),
    ],
)
def test_what_came_instead_of_a_video_is_quoted(tmp_path, content, quote) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(content)

    with pytest.raises(MediaMismatchError) as caught:
        verify_video(path, Stated(media_type="video/mp4"))

    (evidence,) = caught.value.evidence
    assert (evidence.code, evidence.stated) == ("no_video", "video/mp4")
    assert quote in str(evidence.found)
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()
    assert len(str(caught.value)) < 500


def test_sound_without_picture_is_no_video(tmp_path) -> None:
    assert list_codes(make_sound(tmp_path / "a.mp4")) == ["no_video"]


def test_other_length_of_no_video_is_told_too(tmp_path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"<html>")

    codes = list_codes(path, Stated(bytes=1000, content_length=6))

    assert codes == ["no_video", "differs"]


# ------------------------------------------------------------------ other than stated

WRONG: dict[str, dict[str, Any]] = {
    "video.file_size": {"bytes": 1},
    "video.width": {"width": 127},
    "video.num_frames": {"frames": 40},
    "video.fps": {"fps": 12.2},
    "video.duration": {"duration": 3.3},
    "video.content_type": {"media_type": "video/x-msvideo"},
}


@pytest.mark.parametrize("field", WRONG)
def test_each_other_statement_is_a_warning(outputs, field) -> None:
    output = outputs["mp4"]

    (told,) = verify_video(output.path, replace(output.stated, **WRONG[field])).oddities

    assert (told.code, told.field) == ("differs", field)
    assert told.message == f"{field}: stated {told.stated}, found {told.found}"


def test_all_other_statements_are_told_at_once(outputs) -> None:
    wrong = {name: value for one in WRONG.values() for name, value in one.items()}
    stated = replace(outputs["mp4"].stated, **wrong)

    assert list_differences(outputs["mp4"].path, stated) == list(WRONG)


def test_gif_of_other_frames_and_other_length_is_told(outputs) -> None:
    stated = replace(outputs["gif"].stated, frames=30, duration=30 / 6)

    fields = list_differences(outputs["gif"].path, stated)

    assert fields == ["video.num_frames", "video.duration"]


def test_gif_may_keep_a_standing_picture_once_for_longer(outputs) -> None:
    stated = replace(outputs["gif"].stated, frames=72, fps=24.0)

    assert verify_video(outputs["gif"].path, stated).oddities == ()


@pytest.mark.parametrize("value", [None, 0, float("nan")])
def test_what_is_not_stated_is_not_compared(outputs, value) -> None:
    stated = Stated(value, value, None, value, value, value, value, value)

    assert verify_video(outputs["mp4"].path, stated).oddities == ()


# ------------------------------------------------------------------ tolerances

COUNTS = st.integers(1, 10_000_000)
LENGTHS = st.floats(0.01, 100_000)


@given(COUNTS, COUNTS)
def test_count_fits_within_the_amount_or_the_part(told, found) -> None:
    difference = abs(told - found)
    assert fits(told, found, 1, 0.01) == (difference <= 1 or difference <= 0.01 * told)
    assert fits(told, found, 0, 0) == (told == found)


@given(LENGTHS, st.floats(-0.99, 0.99))
def test_length_fits_within_the_amount_or_the_part(told, part) -> None:
    bound = max(0.25, 0.02 * told)

    assert fits(told, told + part * bound, 0.25, 0.02)
    assert not fits(told, told + 1.01 * bound, 0.25, 0.02)
    assert not fits(told, told - 1.01 * bound, 0.25, 0.02)


@pytest.mark.parametrize(
    ("field", "near", "far"),
    [
        ("video.num_frames", {"frames": 37}, {"frames": 38}),
        ("video.fps", {"fps": 12.1}, {"fps": 12.2}),
        ("video.duration", {"duration": 3.2}, {"duration": 3.3}),
    ],
)
def test_each_field_has_its_tolerance(outputs, field, near, far) -> None:
    output = outputs["mp4"]
    assert list_differences(output.path, replace(output.stated, **near)) == []
    assert list_differences(output.path, replace(output.stated, **far)) == [field]
