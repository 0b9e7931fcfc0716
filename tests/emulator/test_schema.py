"""What the emulated model accepts: a case for each kind of type and of bound."""

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


def find_problems(**fields: object) -> list[tuple[str, str, Any]]:
    with pytest.raises(ModelError) as caught:
        read_input({**REQUIRED, **fields})
    return [(".".join(map(str, one.loc)), one.type, one.ctx) for one in caught.value.problems]


def test_read_fills_in_defaults_that_are_accepted_themselves():
    given = read_input(REQUIRED)
    assert set(given) == set(FIELDS)
    assert len(FIELDS) == 39
    assert (given["num_frames"], given["num_context_frames"], given["fps"]) == (121, 25, 24.0)
    assert (given["seed"], given["end_image_url"], given["video_size"]) == (None, None, "auto")
    assert read_input(given) == given


def test_read_at_bounds_accepts():
    for name, bounds in BOUNDS.items():
        assert [read_input({**REQUIRED, name: value})[name] for value in bounds] == list(bounds)


@pytest.mark.parametrize(("name", "step"), [("num_frames", 1), ("fps", 0.001)])
def test_read_beyond_bounds_names_the_bound(name, step):
    low, high = BOUNDS[name]
    assert find_problems(**{name: low - step}) == [(name, "greater_than_equal", {"ge": low})]
    assert find_problems(**{name: high + step}) == [(name, "less_than_equal", {"le": high})]


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("num_frames", "9", "int_type"),
        ("num_frames", True, "int_type"),
        ("num_frames", 25.5, "int_type"),
        ("fps", "9", "float_type"),
        ("prompt", 7, "string_type"),
        ("end_image_url", 7, "string_type"),
        ("sync_mode", "true", "bool_type"),
        ("sync_mode", 1, "bool_type"),
    ],
)
def test_read_of_another_type_names_the_type(name, value, kind):
    assert find_problems(**{name: value}) == [(name, kind, None)]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("num_frames", 25.0, 25),
        ("seed", 2**63, 2**63),
        ("seed", None, None),
        ("end_image_url", None, None),
        ("scheduler", "linear_quadratic", "linear_quadratic"),
        ("video_size", "landscape_16_9", "landscape_16_9"),
        ("video_size", {"width": 1280, "depth": 3}, {"width": 1280, "height": 512}),
    ],
)
def test_read_of_what_is_allowed_gives_it(name, value, expected):
    found = read_input({**REQUIRED, name: value})[name]
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize("value", ["other", 1])
def test_read_of_other_value_names_the_expected(value):
    [(where, kind, context)] = find_problems(scheduler=value)
    assert (where, kind) == ("scheduler", "one_of")
    assert "linear_quadratic" in context["expected"]


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
