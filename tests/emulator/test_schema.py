from typing import Any

import pytest

from emulator.problems import ModelError
from emulator.schema import FIELDS, read_input

REQUIRED = {"prompt": "p", "video_url": "http://x/v.mp4"}
BOUNDS = {
    "num_frames": (9, 481),
    "fps": (1, 60),
    "num_inference_steps": (8, 50),
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
    "num_context_frames": (0, 121),
    "video_strength": (0, 1),
    "audio_strength": (0, 1),
    "end_image_strength": (0, 1),
}
WHOLE = ("num_frames", "num_inference_steps", "num_context_frames")
STRINGS = ("prompt", "video_url", "end_image_url", "negative_prompt")
FLAGS = (
    "generate_audio",
    "use_multiscale",
    "match_input_fps",
    "use_restart_sampling",
    "enable_prompt_expansion",
    "enable_safety_checker",
    "sync_mode",
)
ENUMS = {
    "video_size": "landscape_16_9",
    "scheduler": "linear_quadratic",
    "acceleration": "full",
    "camera_lora": "jib_down",
    "video_output_type": "VP9 (.webm)",
    "video_quality": "maximum",
    "video_write_mode": "small",
    "extend_direction": "backward",
}


def find_problems(**fields: object) -> list[tuple[str, str, Any]]:
    with pytest.raises(ModelError) as caught:
        read_input({**REQUIRED, **fields})
    return [(".".join(map(str, one.loc)), one.type, one.ctx) for one in caught.value.problems]


def test_table_lists_every_field():
    assert set(FIELDS) == {*BOUNDS, *STRINGS, *FLAGS, *ENUMS, "seed"}
    assert len(FIELDS) == 39


def test_read_fills_in_defaults():
    given = read_input(REQUIRED)
    assert set(given) == set(FIELDS)
    assert (given["num_frames"], given["num_context_frames"], given["fps"]) == (121, 25, 24.0)
    assert (given["seed"], given["end_image_url"], given["video_size"]) == (None, None, "auto")


def test_read_of_defaults_accepts_them():
    assert read_input(read_input(REQUIRED)) == read_input(REQUIRED)


@pytest.mark.parametrize(("name", "bounds"), BOUNDS.items())
def test_read_at_bounds_accepts(name, bounds):
    assert [read_input({**REQUIRED, name: value})[name] for value in bounds] == list(bounds)


@pytest.mark.parametrize(("name", "bounds"), BOUNDS.items())
def test_read_beyond_bounds_names_the_bound(name, bounds):
    low, high = bounds
    step = 1 if name in WHOLE else 0.001
    assert find_problems(**{name: low - step}) == [(name, "greater_than_equal", {"ge": low})]
    assert find_problems(**{name: high + step}) == [(name, "less_than_equal", {"le": high})]


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("value", ["9", True, None, [], {}])
def test_read_of_no_number_names_the_type(name, value):
    kind = "int_type" if name in WHOLE else "float_type"
    assert find_problems(**{name: value}) == [(name, kind, None)]


@pytest.mark.parametrize("name", WHOLE)
def test_read_of_fraction_for_integer_is_refused(name):
    assert find_problems(**{name: 25.5}) == [(name, "int_type", None)]


def test_read_of_integral_float_gives_integer():
    value = read_input({**REQUIRED, "num_frames": 25.0})["num_frames"]
    assert (value, type(value)) == (25, int)


@pytest.mark.parametrize("name", STRINGS)
def test_read_of_no_string_names_the_type(name):
    assert find_problems(**{name: 7}) == [(name, "string_type", None)]


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["true", 1, 0, None])
def test_read_of_no_boolean_names_the_type(name, value):
    assert find_problems(**{name: value}) == [(name, "bool_type", None)]


@pytest.mark.parametrize(("name", "value"), ENUMS.items())
def test_read_of_enum_accepts_its_values(name, value):
    assert read_input({**REQUIRED, name: value})[name] == value


@pytest.mark.parametrize("name", ENUMS)
@pytest.mark.parametrize("value", ["other", "", 1, None])
def test_read_of_other_value_names_the_expected(name, value):
    [(where, kind, context)] = find_problems(**{name: value})
    assert (where, kind) == (name, "one_of")
    assert ENUMS[name] in context["expected"]


@pytest.mark.parametrize("name", ["seed", "end_image_url"])
def test_read_of_null_where_allowed_is_null(name):
    assert read_input({**REQUIRED, name: None})[name] is None


@pytest.mark.parametrize("seed", [0, -1, 2**63])
def test_read_of_any_integer_seed_accepts(seed):
    assert read_input({**REQUIRED, "seed": seed})["seed"] == seed


def test_read_of_size_object_defaults_missing_sides():
    given = read_input({**REQUIRED, "video_size": {"width": 1280, "depth": 3}})
    assert given["video_size"] == {"width": 1280, "height": 512}


def test_read_of_size_object_checks_both_sides():
    assert find_problems(video_size={"width": 0, "height": 14143}) == [
        ("video_size.width", "greater_than_equal", {"ge": 1}),
        ("video_size.height", "less_than_equal", {"le": 14142}),
    ]


def test_read_without_required_fields_names_each():
    with pytest.raises(ModelError) as caught:
        read_input({"fps": 0})
    found = [(one.loc, one.type) for one in caught.value.problems]
    assert found == [
        (("prompt",), "missing"),
        (("video_url",), "missing"),
        (("fps",), "greater_than_equal"),
    ]


def test_read_ignores_unknown_keys():
    assert "webhookUrl" not in read_input({**REQUIRED, "webhookUrl": "http://x"})


def test_problem_has_the_shape_of_an_error_item():
    with pytest.raises(ModelError) as caught:
        read_input({**REQUIRED, "fps": 0})
    assert caught.value.to_json() == {
        "detail": [
            {
                "loc": ["body", "fps"],
                "msg": "Input should be greater than or equal to 1",
                "type": "greater_than_equal",
                "url": "https://docs.fal.ai/errors/#greater_than_equal",
                "ctx": {"ge": 1},
                "input": 0,
            }
        ]
    }
