"""fal's two error shapes, and everything that is neither."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from worker.fal.errors import MAX_MESSAGE, UNNAMED_CODE, FalFailure, parse_failure

MODEL_TYPES = [
    "internal_server_error",
    "generation_timeout",
    "downstream_service_error",
    "content_policy_violation",
    "no_media_generated",
    "image_load_error",
    "file_download_error",
    "file_too_large",
    "video_duration_too_long",
    "unsupported_video_format",
    "a_type_that_fal_has_not_thought_of_yet",
]
PLATFORM_TYPES = [
    "request_timeout",
    "startup_timeout",
    "runner_scheduling_failure",
    "runner_incomplete_response",
    "internal_error",
    "client_disconnected",
    "client_cancelled",
    "bad_request",
]


@pytest.mark.parametrize("name", MODEL_TYPES)
def test_parse_model_error_names_its_type(name) -> None:
    item = {"loc": ["body", "video_url"], "msg": "told", "type": name, "url": "u", "ctx": {"a": 1}}
    assert parse_failure({"detail": [item]}, "x") == FalFailure(name, "video_url: told")


@pytest.mark.parametrize("name", PLATFORM_TYPES)
def test_parse_platform_error_names_its_type(name) -> None:
    body = {"detail": "told", "error_type": name}
    assert parse_failure(body, "x") == FalFailure(name, "told")


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ({"detail": "told"}, FalFailure(UNNAMED_CODE, "told")),
        ({"detail": ""}, FalFailure(UNNAMED_CODE, "fallback")),
        ({"detail": "told", "error_type": None}, FalFailure(UNNAMED_CODE, "told")),
        ({"detail": "told", "error_type": 5}, FalFailure(UNNAMED_CODE, "told")),
        ({"detail": [{}]}, FalFailure(UNNAMED_CODE, "no message")),
        ({"detail": [{"msg": "m", "type": ""}]}, FalFailure(UNNAMED_CODE, "m")),
        ({"detail": [{"msg": "m", "loc": "body"}]}, FalFailure(UNNAMED_CODE, "m")),
        ({"detail": [{"msg": "m", "loc": []}]}, FalFailure(UNNAMED_CODE, "m")),
        (
            {"detail": [{"msg": "m", "loc": ["body", "video_size", 0]}]},
            FalFailure(UNNAMED_CODE, "video_size.0: m"),
        ),
        (
            {"detail": [{"msg": "a", "type": "first"}, {"msg": "b", "type": "second"}, "c"]},
            FalFailure("first", "a; b; c"),
        ),
    ],
)
def test_parse_error_of_either_shape_says_what_is_known(body, failure) -> None:
    assert parse_failure(body, "fallback") == failure


@pytest.mark.parametrize(
    "body",
    [
        None,
        "detail",
        7,
        [],
        [{"detail": "told"}],
        {},
        {"detail": None},
        {"detail": {}},
        {"detail": []},
        {"detail": ["told"]},
        {"detail": 7},
        {"error": {"type": "not_found", "message": "told"}},
        {"error_type": "bad_request"},
    ],
)
def test_parse_body_of_other_shape_is_no_failure(body) -> None:
    assert parse_failure(body, "fallback") is None


def test_parse_long_error_is_shortened() -> None:
    long = "x" * (MAX_MESSAGE + 1)
    bodies: list[JsonValue] = [{"detail": long}, {"detail": [{"msg": "x"}] * MAX_MESSAGE}]
    for body in bodies:
        failure = parse_failure(body, "fallback")
        assert failure is not None
        assert len(failure.message) == MAX_MESSAGE


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["detail", "type", "msg", "loc"]), inner, max_size=4)
    ),
    max_leaves=15,
)


@given(json_values | st.fixed_dictionaries({"detail": json_values, "error_type": json_values}))
def test_parse_anything_gives_bounded_failure_or_none(body) -> None:
    failure = parse_failure(body, "fallback")
    if failure is not None:
        assert failure.code
        assert len(failure.message) <= MAX_MESSAGE
        json.dumps([failure.code, failure.message]).encode()


@given(st.text(min_size=1))
def test_parse_long_type_still_fits_a_code(name) -> None:
    failure = parse_failure({"detail": "told", "error_type": name}, "x")
    assert failure == FalFailure(name, "told")
