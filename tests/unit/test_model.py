"""The model's 39 fields, what each of them allows, and what is read of a result."""

import base64
import contextlib
import json
import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.fal.model import (
    INLINE_BYTES,
    ExtendVideoInput,
    complete_input,
    parse_field,
    parse_output,
)
from worker.ground.errors import InvalidInputError, InvalidResultError, Violation
from worker.ground.validation import show_value

REQUIRED = {"prompt": "The boat sails on.", "video_url": "https://media.test/boat.mp4"}
NEGATIVE_PROMPT = (
    "news broadcast, 3d animation, computer graphics, pc game, console game, video game, cartoon, "
    "childish, watermark, logo, text, on screen text, subtitles, titles, signature, slowmo, static"
)
DEFAULTS: dict[str, object] = {
    "end_image_url": None,
    "num_frames": 121,
    "video_size": "auto",
    "generate_audio": True,
    "use_multiscale": True,
    "match_input_fps": True,
    "fps": 24.0,
    "num_inference_steps": 15,
    "video_cfg_scale": 3.0,
    "video_stg_scale": 1.0,
    "video_rescaling_scale": 0.85,
    "video_modality_scale": 3.0,
    "audio_cfg_scale": 7.0,
    "audio_stg_scale": 0.0,
    "audio_rescaling_scale": 0.7,
    "audio_modality_scale": 3.0,
    "gradient_estimation_gamma": 0.0,
    "use_restart_sampling": True,
    "scheduler": "beta",
    "acceleration": "none",
    "camera_lora": "none",
    "camera_lora_scale": 1.0,
    "negative_prompt": NEGATIVE_PROMPT,
    "seed": None,
    "enable_prompt_expansion": True,
    "enable_safety_checker": True,
    "video_output_type": "X264 (.mp4)",
    "video_quality": "high",
    "video_write_mode": "balanced",
    "sync_mode": False,
    "distill_lora_first_pass_scale": 0.2,
    "distill_lora_second_pass_scale": 0.5,
    "extend_direction": "forward",
    "num_context_frames": 25,
    "video_strength": 1.0,
    "audio_strength": 1.0,
    "end_image_strength": 1.0,
}
INTEGERS = {
    "num_frames": (9, 481),
    "num_inference_steps": (8, 50),
    "num_context_frames": (0, 121),
    "seed": (-(2**63), 2**63 - 1),
}
NUMBERS = {
    "fps": (1, 60),
    "video_cfg_scale": (1, 20),
    "video_stg_scale": (0, 20),
    "video_rescaling_scale": (0, 1),
    "video_modality_scale": (0, 10),
    "audio_cfg_scale": (1, 20),
    "audio_stg_scale": (0, 20),
    "audio_rescaling_scale": (0, 1),
    "audio_modality_scale": (0, 10),
    "gradient_estimation_gamma": (0, 10),
    "camera_lora_scale": (0, 1),
    "distill_lora_first_pass_scale": (0, 1),
    "distill_lora_second_pass_scale": (0, 1),
    "video_strength": (0, 1),
    "audio_strength": (0, 1),
    "end_image_strength": (0, 1),
}
FLAGS = [name for name, value in DEFAULTS.items() if isinstance(value, bool)]
TEXTS = {"prompt", "video_url", "end_image_url", "negative_prompt"}
ENUMS = {
    name: values.split()
    for name, values in {
        "video_size": (
            "auto square_hd square portrait_4_3 portrait_16_9 landscape_4_3 landscape_16_9"
        ),
        "scheduler": "ltx2 linear_quadratic beta",
        "acceleration": "none regular high full",
        "camera_lora": "dolly_in dolly_out dolly_left dolly_right jib_up jib_down static none",
        "video_quality": "low medium high maximum",
        "video_write_mode": "fast balanced small",
        "extend_direction": "forward backward",
    }.items()
} | {"video_output_type": ["X264 (.mp4)", "VP9 (.webm)", "PRORES4444 (.mov)", "GIF (.gif)"]}
VIDEO: dict[str, Any] = {"url": "https://v3b.fal.media/files/b/0a/clip.mp4"}
RESULT: dict[str, Any] = {"video": VIDEO, "seed": 7, "prompt": "A boat."}

storable = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(storable, max_size=30)
urls = st.from_regex(
    r"\Ahttps?://[a-z]{1,8}(\.[a-z]{2,4})?(:[1-9][0-9]{0,3})?/[a-z0-9/?=&%.]{0,20}\Z"
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
sizes = st.fixed_dictionaries({side: st.integers(1, 14142) for side in ("width", "height")})
FIELDS: dict[str, st.SearchStrategy[Any]] = (
    {name: st.integers(*bounds) for name, bounds in INTEGERS.items()}
    | {name: st.floats(*bounds) for name, bounds in NUMBERS.items()}
    | {name: st.booleans() for name in FLAGS}
    | {name: st.sampled_from(values) for name, values in ENUMS.items()}
    | {
        "prompt": texts.filter(lambda text: text.strip() != ""),
        "negative_prompt": texts,
        "video_url": urls,
        "end_image_url": urls | st.none(),
        "video_size": st.sampled_from(ENUMS["video_size"]) | sizes,
    }
)
inputs = st.fixed_dictionaries(
    {name: FIELDS[name] for name in REQUIRED},
    optional={name: FIELDS[name] for name in DEFAULTS},
)


def complete(**fields: object) -> ExtendVideoInput:
    return complete_input(REQUIRED | fields)


def refuse(fields: Mapping[str, object]) -> tuple[Violation, ...]:
    with pytest.raises(InvalidInputError) as refused:
        complete_input(fields)
    assert "pydantic" not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    return refused.value.violations


def refuse_one(name: str, value: object) -> Violation:
    [violation] = refuse(REQUIRED | {name: value})
    return violation


# ------------------------------------------------------------------ the fields


def test_complete_input_without_choices_sends_all_defaults_in_order_and_type():
    sent = complete(seed=5).to_json()
    expected = REQUIRED | DEFAULTS | {"seed": 5}
    assert json.dumps(sent) == json.dumps(expected)
    assert len(sent) == 39


def test_fields_all_carry_a_description():
    described = [field.description for field in ExtendVideoInput.model_fields.values()]
    assert all(text and text.endswith(".") for text in described)


def test_each_field_has_the_bounds_and_values_of_the_models_page():
    for name, (low, high) in {**INTEGERS, **NUMBERS}.items():
        for kept in (low, high):
            assert complete(**{name: kept}).to_json()[name] == kept
        assert "greater than or equal" in refuse_one(name, low - 1).allowed
        assert "less than or equal" in refuse_one(name, high + 1).allowed
    for name, values in ENUMS.items():
        assert re.findall("'(.*?)'", refuse_one(name, "of no list").allowed) == values
    for name in FLAGS:
        assert refuse_one(name, 1).allowed == "a valid boolean"
    known = INTEGERS.keys() | NUMBERS.keys() | ENUMS.keys() | set(FLAGS) | TEXTS
    assert known == ExtendVideoInput.model_fields.keys() == FIELDS.keys()


# One field for each kind of type and bound: value that is kept, value that is refused.
@pytest.mark.parametrize(
    ("name", "kept", "refused"),
    [
        ("num_frames", [9, 481], [8, 482, "121", True, 12.5, math.nan, math.inf, [], None]),
        ("seed", [-(2**63), 2**63 - 1, 0], [-(2**63) - 1, 2**63, "7", False]),
        (
            "fps",
            [1, 60],
            [math.nextafter(1, 0), math.nextafter(60, 61), "1", True, None, math.nan, 10**400],
        ),
        ("video_strength", [0, 1], [-5e-324, math.nextafter(1, 2), -math.inf, []]),
        ("sync_mode", [True, False], ["true", 1, 0, 1.0, None, []]),
        ("scheduler", ENUMS["scheduler"], ["euler", "", 1, None, ["beta"], True]),
        ("video_size", ENUMS["video_size"], ["sideways", "", 1, None, ["auto"]]),
        ("negative_prompt", ["", "ä" * 65_536], ["ä" * 65_537, 1, None, ["a"], b"a", "a\0b"]),
        ("prompt", ["x"], ["", " \t\n", "\u2003", "\ud800", None]),
        ("end_image_url", [None, "https://a.test/b.png"], ["\0", "https://a.test/\ud800", b"x"]),
        ("video_url", ["https://media.test/".ljust(8_192, "a")], [None, ["a"], "x" * 9000]),
    ],
)
def test_complete_input_keeps_what_a_kind_of_field_allows_and_refuses_the_rest(name, kept, refused):
    for value in kept:
        assert complete(**{name: value}).to_json()[name] == value
    for value in refused:
        violation = refuse_one(name, value)
        assert (violation.field, violation.value) == (name, show_value(value))


def test_complete_input_with_integral_numbers_sends_the_fields_own_type():
    sent = complete(num_frames=121.0, video_size={"width": 640.0}, fps=25).to_json()
    assert json.dumps([sent["num_frames"], sent["fps"]]) == "[121, 25.0]"
    assert json.dumps(sent["video_size"]) == '{"width": 640, "height": 512}'


@pytest.mark.parametrize("side", ["width", "height"])
def test_complete_input_with_exact_size_bounds_each_side(side):
    for pixels in (1, 14142):
        other = {"width": 512, "height": 512} | {side: pixels}
        assert complete(video_size={side: pixels}).to_json()["video_size"] == other
    for wrong in (0, 14143, "640", True, None):
        [violation] = refuse(REQUIRED | {"video_size": {side: wrong}})
        assert (violation.field, violation.value) == (f"video_size.{side}", json.dumps(wrong))


@pytest.mark.parametrize(
    ("size", "field"),
    [
        ({"width": 640, "hight": 480}, "video_size.hight"),
        ({1: 2}, "video_size"),
        ({"\ud800": 2}, "video_size"),
    ],
)
def test_complete_input_with_unknown_side_is_refused(size, field):
    violation = refuse_one("video_size", size)
    assert violation.field.startswith(field)
    assert ("did you mean height?" in violation.allowed) == (field == "video_size.hight")


def test_complete_input_with_absolute_url_keeps_it_verbatim():
    for url in (
        "http://media.test",
        "https://media.test:8443/a.mp4?token=a%20b#t=1",
        "HTTPS://MEDIA.test/a@b.mp4",
        "http://[::1]:9000/a.mp4",
        "https://medien.test/größe.mp4",
    ):
        assert complete(video_url=url).to_json()["video_url"] == url


@pytest.mark.parametrize(
    "urls",
    [
        ["", "/srv/boat.mp4", "file:///srv/boat.mp4", "data:video/mp4,AAAA"],
        ["//a.test/b", "https:///b", "https://:443/b", "https:a.test/b", "https://[::1/b"],
        ["https://user:secret@a.test/b", "https://@a.test/b", "https://a.test\\@b.test/b"],
        [" https://a.test/b", "https://a.test/b\t", "https://a.test/b\x7f"],
        ["https://a.test:port/b", "https://a.test:0/b", "https://a.test:65536/b"],
    ],
    ids=["no URL", "no host", "user", "characters", "port"],
)
def test_complete_input_with_other_url_is_refused(urls):
    for url in urls:
        violation = refuse_one("video_url", url)
        assert violation.value == json.dumps(url, ensure_ascii=False)
        assert violation.allowed.startswith("an absolute http or https URL with a host")
        assert "or a data URI in base64" in violation.allowed
        assert "a file of this machine only as pathlib.Path" in violation.allowed


@pytest.mark.parametrize(
    ("name", "uri", "wrong"),
    [
        ("video_url", "data:video/mp4;base64,AAAA", "data:image/png;base64,AAAA"),
        ("end_image_url", "data:image/png;base64,AAA=", "data:video/mp4;base64,AAA="),
    ],
)
def test_complete_input_with_data_uri_keeps_it_if_its_kind_fits(name, uri, wrong):
    assert complete(**{name: uri}).to_json()[name] == uri
    assert "or a data URI in base64" in refuse_one(name, wrong).allowed


def test_complete_input_bounds_what_a_data_uri_holds():
    head = "data:video/mp4;base64,"
    largest = head + base64.b64encode(bytes(INLINE_BYTES)).decode()
    assert complete(video_url=largest).to_json()["video_url"] == largest
    assert len(refuse_one("video_url", largest + "AAAA").value) == 80


# ------------------------------------------------------------------ the whole


def test_complete_input_with_many_errors_lists_all_at_once():
    violations = refuse(
        {
            "prompt": " ",
            "num_frames": 500,
            "sync_mode": "true",
            "scheduler": "euler",
            "video_size": {"width": 0, "height": 14143},
            "num_frame": 9,
        }
    )
    assert [violation.field for violation in violations] == [
        *("prompt", "video_url", "num_frames", "video_size.width", "video_size.height"),
        *("scheduler", "sync_mode", "num_frame"),
    ]
    assert violations[1].value == "nothing"
    assert violations[1].allowed.startswith("required: an absolute http or https URL")


def test_complete_input_with_unknown_field_names_it_and_the_known():
    for name, shown, meant in [
        ("num_frame", "num_frame", "; did you mean num_frames?"),
        ("image_size", "image_size", "; did you mean video_size?"),
        ("a b", '"a b"', ""),
        ("", '""', ""),
        ("x" * 500, '"' + "x" * 78 + "…", ""),
    ]:
        assert refuse_one(name, None) == Violation(shown, "null", f"no such field{meant}")
    assert refuse({**REQUIRED, 7: None}) == (Violation("7", "7", "no such field"),)  # type: ignore[dict-item]  # JSON has none, Python has


def test_complete_input_draws_a_seed_only_if_none_is_given():
    assert complete(seed=0).seed == 0
    drawn = [complete(**fields).seed for fields in [{}, {"seed": None}] * 50]
    assert all(seed is not None and 0 <= seed < 2**31 for seed in drawn)
    assert len(set(drawn)) > 90


def test_input_once_built_cannot_be_changed():
    built = complete_input(MappingProxyType(REQUIRED | {"video_size": {"width": 640}}))
    for model, name in ((built, "seed"), (built.video_size, "width")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, name, 1)


@given(inputs)
def test_to_json_read_again_gives_the_same_input(fields):
    built = complete_input(fields)
    sent = built.to_json()
    assert complete_input(sent) == built
    assert json.loads(json.dumps(sent, allow_nan=False)) == sent
    given = {name: value for name, value in fields.items() if name not in {"seed", "video_size"}}
    assert {name: sent[name] for name in given} == given


@given(json_values | st.dictionaries(st.sampled_from(sorted(FIELDS)), json_values))
def test_complete_input_of_any_json_refuses_with_violations(fields):
    with pytest.raises(InvalidInputError) as refused:
        complete_input(fields)
    assert refused.value.violations
    for violation in refused.value.violations:
        assert len(violation.value) <= 80
        assert re.search(r"[\0-\x1f\ud800-\udfff]", str(violation)) is None


# ------------------------------------------------------------------ text of a shell


@given(st.data())
def test_parse_field_of_written_value_gives_it_back(data):
    name = data.draw(st.sampled_from(sorted(FIELDS)))
    value = data.draw(FIELDS[name])
    parsed = parse_field(name, value if isinstance(value, str) else json.dumps(value))
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.sampled_from(sorted(FIELDS)), st.text(st.characters()))
@example("video_size", '{"a":' * 100_000)
@example("video_size", "{" + '"width": ' + "1" * 5000 + "}")
@example("video_size", "1" * 5000 + "x1")
@example("num_frames", "1" * 5000)
def test_parse_field_of_any_text_yields_json(name, text):
    json.dumps(parse_field(name, text))


def test_parse_field_follows_the_fields_type():
    for name, text, value in [
        ("video_size", "1280x720", {"width": 1280, "height": 720}),
        ("video_size", '{"width": 640}', {"width": 640}),
        ("video_size", "square_hd", "square_hd"),
        ("seed", "null", None),
        ("seed", "-3", -3),
        ("end_image_url", "null", None),
        ("prompt", "null", "null"),
        ("sync_mode", "false", False),
        ("fps", ".5", 0.5),
        ("fps", "25", 25.0),
        ("fps", "2.5e1", 25.0),
    ]:
        assert parse_field(name, text) == value, (name, text)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("sync_mode", ["yes", "True"]),
        ("num_frames", ["121.0", "", "null", "1" * 5000]),
        ("fps", ["nan", "."]),
        ("video_size", ["{width: 3}", "1" * 5000 + "x1"]),
        ("num_frame", ["9"]),
    ],
)
def test_text_that_is_no_value_of_the_field_is_refused_with_the_others(name, texts):
    for text in texts:
        assert refuse_one(name, parse_field(name, text)).field == name


def test_show_value_writes_short_json_of_anything():
    endless: list[Any] = []
    endless.append(endless)
    for value, shown in [
        ("ü\n", '"ü\\n"'),
        ({"a": [1, None, True]}, '{"a": [1, null, true]}'),
        (b"a", "\"b'a'\""),
        ({(1, 2): 3}, "{}"),
        ("x" * 78, '"' + "x" * 78 + '"'),
        ("x" * 79, '"' + "x" * 78 + "…"),
        (10**5000, "<int>"),
        (endless, "<list>"),
    ]:
        assert show_value(value) == shown


# ------------------------------------------------------------------ results


def test_parse_output_of_full_result_reads_all_and_keeps_the_unknown():
    video = VIDEO | {
        "content_type": "video/mp4",
        "file_name": "clip.mp4",
        "file_size": 1_234_567,
        "width": 1248,
        "height": 704,
        "fps": 25,
        "duration": 6.44,
        "num_frames": 161,
        "codec": "h264",
    }
    payload = RESULT | {"timings": {"inference": [1.5]}, "video": video}
    output = parse_output(payload)
    assert output.video.model_dump() == video
    assert (output.seed, output.prompt) == (7, "A boat.")
    assert output.model_dump(mode="json", exclude_unset=True) == payload


@pytest.mark.parametrize(
    "video",
    [
        VIDEO,
        VIDEO | {"width": None, "fps": None, "file_name": None},
        {"url": "data:video/mp4;base64,AAAA"},
        {"url": "http://127.0.0.1:9/a.mp4"},
    ],
)
def test_parse_output_with_a_url_is_enough(video):
    output = parse_output(RESULT | {"video": video})
    assert (output.video.width, output.video.fps, output.video.file_name) == (None, None, None)
    assert output.model_dump(mode="json", exclude_unset=True)["video"] == video


def test_parse_output_with_odd_values_mends_them():
    video = VIDEO | {"width": 1248.0, "num_frames": 161.0, "duration": math.nan}
    output = parse_output({"prompt": "a\0b\ud800", "video": video, "seed": 7.0})
    numbers = [output.video.width, output.video.num_frames, output.seed]
    assert json.dumps(numbers) == "[1248, 161, 7]"
    assert str(output.prompt).startswith("a\ufffdb")
    assert str(output.prompt).isprintable()
    assert output.video.duration is None


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (None, "payload=null: an object"),
        ({}, "video=nothing: required"),
        (RESULT | {"video": "https://a.test/b"}, 'video="https://a.test/b": an object'),
        (RESULT | {"video": {}}, "video.url=nothing: required: an absolute http or https URL"),
        (RESULT | {"video": {"url": "ftp://a.test/b"}}, 'video.url="ftp://a.test/b": an absolute'),
    ],
)
def test_parse_output_of_other_shape_says_why(payload, reason):
    with pytest.raises(InvalidResultError, match=reason):
        parse_output(payload)


@pytest.mark.parametrize("depth", [300, 5000])
def test_parse_output_leaves_out_what_is_nested_too_deeply(depth):
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    output = parse_output(RESULT | {"extra": nested})
    assert output.video.url == RESULT["video"]["url"]
    assert len(json.dumps(output.model_dump(mode="json", exclude_unset=True)["extra"])) < 450


@given(json_values, json_values, json_values, json_values)
def test_parse_output_of_any_json_refuses_or_dumps(whole, url, extra, seed):
    nearly = {"video": {"url": url, "fps": extra}, "seed": seed, "prompt": "p", "extra": extra}
    for payload in (whole, nearly, RESULT | {"extra": extra}):
        with contextlib.suppress(InvalidResultError):
            json.dumps(parse_output(payload).model_dump(), allow_nan=False)
