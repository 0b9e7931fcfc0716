"""fal's two error shapes, and everything that is neither."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from tests.harness.fal import UNPROCESSABLE_TYPES
from worker.fal.errors import (
    ERROR_TYPES,
    GENERIC_SENTENCE,
    MAX_DETAIL_PLACE,
    MAX_DETAIL_TEXT,
    MAX_DETAILS,
    MAX_ECHO,
    MAX_MESSAGE,
    UNNAMED_CODE,
    Charge,
    ErrorClass,
    FalFailure,
    Retryable,
    describe_platform_error,
    find_error_type,
    name_field,
    parse_failure,
    read_retry_header,
)

YES, NO, MAYBE = Retryable.YES, Retryable.NO, Retryable.MAYBE
FREE, PAID = Charge.NO, Charge.POSSIBLE
INPUT, MODEL, PLATFORM = ErrorClass.INPUT, ErrorClass.MODEL, ErrorClass.PLATFORM
CALLER, API = ErrorClass.CALLER, ErrorClass.API
# The rows of fal's pages, by hand: type, class, HTTP codes, retryable, charged.
ROWS: list[tuple[str, ErrorClass, tuple[int, ...], Retryable, Charge]] = [
    ("internal_server_error", MODEL, (500,), MAYBE, FREE),
    ("generation_timeout", MODEL, (504,), MAYBE, FREE),
    ("downstream_service_error", MODEL, (400, 500), MAYBE, PAID),
    ("downstream_service_unavailable", MODEL, (500,), MAYBE, FREE),
    *((name, INPUT, (422,), NO, PAID) for name in UNPROCESSABLE_TYPES),
    ("request_timeout", PLATFORM, (504,), YES, FREE),
    ("startup_timeout", PLATFORM, (504,), YES, FREE),
    ("runner_scheduling_failure", PLATFORM, (503,), YES, FREE),
    ("runner_connection_timeout", PLATFORM, (503,), YES, FREE),
    ("runner_disconnected", PLATFORM, (503,), YES, FREE),
    ("runner_connection_refused", PLATFORM, (503,), YES, FREE),
    ("runner_connection_error", PLATFORM, (503,), YES, FREE),
    ("runner_incomplete_response", PLATFORM, (502,), YES, FREE),
    ("runner_server_error", PLATFORM, (500,), YES, FREE),
    ("internal_error", PLATFORM, (500,), YES, FREE),
    ("client_disconnected", CALLER, (499,), NO, PAID),
    ("client_cancelled", CALLER, (499,), NO, PAID),
    ("bad_request", INPUT, (400,), NO, PAID),
    ("concurrent_requests_limit", PLATFORM, (429,), YES, PAID),
    ("validation_error", API, (400,), NO, FREE),
    ("authorization_error", API, (401, 403), NO, FREE),
    ("not_found", API, (404,), NO, FREE),
    ("rate_limited", API, (429,), YES, FREE),
    ("server_error", API, (500,), YES, FREE),
    ("not_implemented", API, (501,), NO, FREE),
]
UNKNOWN = "a_type_that_fal_has_not_thought_of_yet"


def test_error_types_are_as_fals_pages_have_them_and_no_others() -> None:
    known = [
        (one.name, one.error_class, one.http_statuses, one.retryable, one.charge)
        for one in ERROR_TYPES.values()
    ]
    assert sorted(known) == sorted(ROWS)
    assert list(ERROR_TYPES) == [row[0] for row in known]
    assert GENERIC_SENTENCE not in {one.sentence for one in ERROR_TYPES.values()}


def test_unknown_error_type_keeps_its_name_and_promises_nothing() -> None:
    unknown = find_error_type(UNKNOWN)
    assert (unknown.name, unknown.http_statuses) == (UNKNOWN, ())
    assert (unknown.retryable, unknown.charge) == (MAYBE, PAID)
    assert (unknown.error_class, unknown.sentence) == (PLATFORM, GENERIC_SENTENCE)


def test_unknown_error_type_about_fields_is_one_of_the_input() -> None:
    unknown = find_error_type(UNKNOWN, names_fields=True)
    assert (unknown.name, unknown.error_class, unknown.retryable) == (UNKNOWN, INPUT, NO)
    assert find_error_type("internal_error", names_fields=True).error_class is PLATFORM


def test_platforms_envelope_is_told_as_far_as_it_goes() -> None:
    bodies: list[tuple[Any, str]] = [
        ({"error": {"type": "rate_limited", "message": "slow"}}, "HTTP 429, rate_limited: slow"),
        ({"error": {"message": "x" * 9999}}, f"HTTP 429, {'x' * MAX_DETAIL_TEXT}"),
        *((body, "HTTP 429") for body in ({"error": {"type": 7}}, {"error": "slow"}, None)),
    ]
    for body, words in bodies:
        assert describe_platform_error(429, body) == words


def test_retry_header_of_either_name_is_read_and_the_newer_wins() -> None:
    newer, older = "X-Fal-Needs-Retry", "X-Fal-Retryable"
    for headers, said in [
        *(({name: text}, True) for name in (newer, older) for text in ("1", "true")),
        *(({name: text}, False) for name in (newer, older) for text in ("0", "False")),
        ({}, None),
        ({older: "maybe"}, None),
        ({newer: "0", older: "true"}, False),
        ({newer: "?", older: "true"}, True),
    ]:
        assert read_retry_header(httpx.Headers(headers)) is said, headers


@pytest.mark.parametrize("name", ["content_policy_violation", UNKNOWN, "x" * 5000])
def test_parse_error_of_either_shape_names_its_type(name) -> None:
    item = {"loc": ["body", "video_url"], "msg": "told", "type": name, "url": "u", "ctx": {"a": 1}}
    failure = parse_failure({"detail": [item]}, "x")
    assert failure is not None
    assert (failure.code, failure.message) == (name, "video_url: told")
    assert parse_failure({"detail": "told", "error_type": name}, "x") == FalFailure(name, "told")


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ({"detail": "told"}, FalFailure(UNNAMED_CODE, "told")),
        ({"detail": ""}, FalFailure(UNNAMED_CODE, "fallback")),
        ({"detail": "told", "error_type": 5}, FalFailure(UNNAMED_CODE, "told")),
        ({"detail": [{}]}, FalFailure(UNNAMED_CODE, "no message")),
        ({"detail": [{"msg": "m", "type": ""}]}, FalFailure(UNNAMED_CODE, "m")),
        ({"detail": [{"msg": "m", "loc": "body"}]}, FalFailure(UNNAMED_CODE, "m")),
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
    found = parse_failure(body, "fallback")
    assert found is not None
    assert FalFailure(found.code, found.message) == failure


def test_parse_body_of_other_shape_is_no_failure() -> None:
    bodies: list[Any] = [
        *(None, "detail", [{"detail": "told"}], {}, {"error_type": "bad_request"}),
        *({"detail": {}}, {"detail": []}, {"detail": ["told"]}),
        {"error": {"type": "not_found", "message": "told"}},
    ]
    assert [body for body in bodies if parse_failure(body, "fallback") is not None] == []


def test_parse_long_error_is_shortened() -> None:
    long = "x" * (MAX_MESSAGE + 1)
    bodies: list[JsonValue] = [{"detail": long}, {"detail": [{"msg": "x"}] * MAX_MESSAGE}]
    for body in bodies:
        failure = parse_failure(body, "fallback")
        assert failure is not None
        assert len(failure.message) == MAX_MESSAGE


def bound(*items: JsonValue) -> tuple[dict[str, JsonValue], ...]:
    failure = parse_failure({"detail": [{"msg": "first"}, *items]}, "fallback")
    assert failure is not None
    return failure.details[1:]


def test_details_of_many_fields_are_counted_out_and_other_shapes_left_out() -> None:
    assert bound("text", 7, None, ["list"]) == ()
    many: list[JsonValue] = [{"msg": "m"} for _ in range(50)]
    assert len(bound(*many)) == MAX_DETAILS - 1


def test_detail_is_cut_to_what_a_row_may_hold() -> None:
    [detail] = bound(
        {
            "loc": ["body", "x" * 999, 3, *"abcdefghijkl"],
            "msg": "m" * 999,
            "type": "t" * 999,
            "ctx": {"long": "c" * 1001},
            "input": "i" * 199,
            "more": "dropped",
        }
    )
    assert detail["loc"] == ["body", "x" * MAX_ECHO, 3, *"abcdefg"]
    assert len(detail["loc"]) == MAX_DETAIL_PLACE
    assert detail["msg"] == "m" * MAX_DETAIL_TEXT
    assert detail["type"] == "t" * MAX_DETAIL_TEXT
    assert set(detail) == {"loc", "msg", "type"}


def test_detail_echoes_input_of_200_characters_and_no_longer() -> None:
    """As JSON, so with its quotes."""
    kept, cut = bound({"msg": "m", "input": "i" * 198}, {"msg": "m", "input": "i" * 199})
    assert "input" in kept
    assert "input" not in cut


def test_detail_keeps_context_and_value_as_they_are() -> None:
    item: dict[str, JsonValue] = {
        "loc": ["body", "num_frames"],
        "msg": "too many",
        "type": "less_than_equal",
        "url": "https://docs.fal.ai/errors/#less_than_equal",
        "ctx": {"le": 481},
        "input": 500,
    }
    assert bound(item) == (item,)


def test_field_of_detail_is_its_place_within_the_body() -> None:
    assert name_field({"loc": ["body", "num_frames"]}) == "num_frames"
    assert name_field({"loc": ["body", "video_size", "width"]}) == "video_size.width"
    assert name_field({"loc": ["body"]}) == name_field({"loc": None}) == ""


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
        assert len(json.dumps(failure.details)) <= 100_000
