import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from emulator.model import place_order
from emulator.problems import ModelError
from emulator.render import Clip, StoppedError, render
from emulator.schema import SIZES, read_input
from emulator.target import COMMENT
from tests.emulator.clips import (
    Probe,
    make_clip,
    make_image,
    make_sound,
    probe,
    read_picture,
    turn_clip,
)

Extend = Callable[..., tuple[Clip, Probe]]

FEW = {"num_frames": 17, "num_context_frames": 5, "seed": 1}
"""Twelve new frames to the sample's 24 (two seconds of 128x96)."""


@pytest.fixture
def extend(tmp_path, sample) -> Extend:
    """Renders the sample, or another video, as the endpoint's fields say."""

    def extend(
        video: Path = sample, image: Path | None = None, **fields: object
    ) -> tuple[Clip, Probe]:
        clip = render_fields(tmp_path, video, image, fields)
        return clip, probe(clip.path)

    return extend


def render_fields(directory: Path, video: Path, image: Path | None, fields: dict[str, Any]) -> Clip:
    named = {"prompt": "p", "video_url": "v", "end_image_url": str(image) if image else None}
    order = place_order(read_input({**named, **FEW, **fields}), directory)
    shutil.copy(video, order.video)
    if image is not None and order.end_image is not None:
        shutil.copy(image, order.end_image)
    return render(order, lambda: False)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("num_frames", "context", "expected"),
    [(9, 8, 25), (9, 121, 24)],
)
def test_render_has_source_frames_plus_new_ones(extend, direction, num_frames, context, expected):
    fields = {"num_frames": num_frames, "num_context_frames": context}
    clip, seen = extend(extend_direction=direction, **fields)
    assert clip.frames == seen.frames == expected


@pytest.mark.parametrize(
    ("direction", "kept"), [("forward", slice(0, 24)), ("backward", slice(12, 36))]
)
def test_render_keeps_the_source_part(extend, sample, direction, kept):
    _, seen = extend(extend_direction=direction, video_quality="maximum")
    source = probe(sample)
    assert seen.luma[kept] == pytest.approx(source.luma, abs=0.5)


@pytest.mark.parametrize(
    ("video_size", "expected"),
    [
        ("auto", (128, 96)),
        ("square", SIZES["square"]),
        ({"width": 131, "height": 67}, (130, 66)),
        ({"width": 1, "height": 17}, (16, 16)),
    ],
)
def test_render_has_the_wanted_size(extend, video_size, expected):
    clip, seen = extend(video_size=video_size, num_frames=9, video_write_mode="fast")
    assert clip.size == seen.size == expected


def test_render_of_enormous_size_is_not_supported(extend):
    with pytest.raises(ModelError) as caught:
        extend(video_size={"width": 14142, "height": 14142})
    assert caught.value.problems[0].type == "feature_not_supported"


def test_render_matches_source_rate_exactly(extend, tmp_path):
    rate = Fraction(24000, 1001)
    clip, seen = extend(make_clip(tmp_path / "film.mp4", rate=rate), fps=60)
    assert clip.rate == seen.rate == rate
    assert seen.frames == 36


@pytest.mark.parametrize(("fps", "expected"), [(24, 48 + 12), (5, 10 + 12)])
def test_render_at_own_rate_keeps_the_speed(extend, fps, expected):
    clip, seen = extend(match_input_fps=False, fps=fps)
    assert clip.frames == seen.frames == expected
    assert clip.rate == seen.rate == fps
    assert seen.sound_seconds == pytest.approx(expected / fps, abs=0.05)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_render_with_audio_continues_it_quieter(extend, direction):
    _, seen = extend(extend_direction=direction)
    new, source = (4, 1) if direction == "forward" else (0, 3)
    assert seen.sound_seconds == pytest.approx(3, abs=0.05)
    assert 0 < seen.loudness[new] < 0.6 * seen.loudness[source]


def test_render_of_silent_source_adds_a_soft_tone(extend, tmp_path):
    _, seen = extend(make_clip(tmp_path / "silent.mp4", has_audio=False))
    assert seen.sound_seconds == pytest.approx(3, abs=0.05)
    assert 500 < seen.loudness[4] < 3000
    assert seen.loudness[1] < 10


def test_render_without_audio_has_no_such_stream(extend):
    _, seen = extend(generate_audio=False)
    assert seen.sound_seconds is None
    assert seen.frames == 36


@pytest.mark.parametrize(("direction", "outermost"), [("forward", -1), ("backward", 0)])
def test_render_with_end_image_fades_to_it(extend, tmp_path, direction, outermost):
    image = make_image(tmp_path / "white")
    _, none = extend(image=image, extend_direction=direction, end_image_strength=0)
    _, faded = extend(image=image, extend_direction=direction)
    _, half = extend(image=image, extend_direction=direction, end_image_strength=0.5)
    halfway = (none.luma[outermost] + 235) / 2
    assert faded.luma[outermost] == pytest.approx(235, abs=3)
    assert half.luma[outermost] == pytest.approx(halfway, abs=6)
    assert none.luma[outermost] < 200


@pytest.mark.parametrize("kind", ["X264 (.mp4)", "VP9 (.webm)", "PRORES4444 (.mov)"])
def test_render_of_same_seed_gives_same_bytes_that_own_up_to_no_model(extend, kind):
    first, seen = extend(video_output_type=kind)
    before = first.path.read_bytes()
    again, _ = extend(video_output_type=kind)
    assert again.path.read_bytes() == before
    assert seen.frames == 36
    assert seen.comment == COMMENT
    assert "no model" in COMMENT


def test_render_of_other_seed_gives_other_pixels(extend):
    _, one = extend(seed=1, camera_lora="dolly_in")
    _, two = extend(seed=2, camera_lora="dolly_in")
    assert one.prints[:10] == two.prints[:10]
    assert one.prints[24:] != two.prints[24:]


def test_render_follows_each_camera_move(extend):
    moves = ["dolly_in", "dolly_out", "dolly_left", "dolly_right", "jib_up", "jib_down"]
    prints = {extend(camera_lora=move)[1].prints[-1] for move in [*moves, "static", "none"]}
    assert len(prints) == 8


def test_render_of_gif_says_in_comment_block_that_no_model_was_used(extend):
    clip, seen = extend(video_output_type="GIF (.gif)")
    assert COMMENT.encode() in clip.path.read_bytes()
    assert seen.frames == 36
    assert seen.sound_seconds is None


def test_render_of_better_quality_is_larger(extend):
    sizes = [
        extend(video_quality=quality)[0].path.stat().st_size
        for quality in ("low", "medium", "high", "maximum")
    ]
    assert sizes == sorted(set(sizes))


def test_render_of_mp4_puts_index_first(extend):
    content = extend()[0].path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no video",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"GIF89a\x10\0\x10\0\0\0\0;",  # without a frame
    ],
)
def test_render_of_no_video_is_an_unsupported_format(extend, tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ModelError) as caught:
        extend(tmp_path / "file")
    [problem] = caught.value.problems
    assert (problem.type, problem.loc) == ("unsupported_video_format", ("video_url",))
    assert problem.ctx is not None
    assert "mp4" in str(problem.ctx["supported_formats"])


def test_render_of_sound_alone_is_an_unsupported_format(extend, tmp_path):
    with pytest.raises(ModelError) as caught:
        extend(make_sound(tmp_path / "sound.mp4"))
    assert caught.value.problems[0].type == "unsupported_video_format"


@pytest.mark.parametrize("degrees", [90])
def test_render_of_turned_video_is_upright(extend, tmp_path, sample, degrees):
    clip, _ = extend(turn_clip(sample, tmp_path / "turned.mp4", degrees), video_quality="maximum")
    expected = read_picture(sample)
    for _ in range(degrees // 90):
        expected = [list(row) for row in zip(*expected[::-1], strict=True)]
    seen = read_picture(clip.path)
    differences = [
        abs(one - two)
        for row, other in zip(seen, expected, strict=True)
        for one, two in zip(row, other, strict=True)
    ]
    assert sum(differences) / len(differences) < 5


def test_render_with_no_image_is_an_unsupported_format(extend, sample):
    with pytest.raises(ModelError) as caught:
        extend(image=Path(__file__))
    [problem] = caught.value.problems
    assert (problem.type, problem.loc) == ("unsupported_image_format", ("end_image_url",))


def test_render_stops_when_told(tmp_path, sample):
    order = place_order(read_input({"prompt": "p", "video_url": "v"}), tmp_path)
    with pytest.raises(StoppedError):
        render(replace(order, video=sample), lambda: True)
