"""What is read from a webhook's body, and that nothing in it can get past the reader."""

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import JsonValue

from worker.fal.completion import Completion, make_storable, parse_webhook
from worker.ground.errors import InvalidDeliveryError

REPLACED = "\N{REPLACEMENT CHARACTER}"

odd_text = st.text("ab\0\ud800\udc00\U0001f600", max_size=8)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | odd_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(odd_text, inner, max_size=4),
    max_leaves=15,
)


def parse(**body: object) -> Completion:
    return parse_webhook(json.dumps(body).encode())


def test_parse_takes_fals_words_of_success_and_failure() -> None:
    payload: JsonValue = {"detail": [{"loc": ["body"], "msg": "m", "type": "t"}]}
    told = {"request_id": "r", "gateway_request_id": "g", "payload": payload, "news": [1]}
    assert parse(**told, status="OK") == Completion("r", "g", "OK", payload, None)
    failure = Completion("r", "g", "ERROR", payload, "Invalid status code: 422")
    assert parse(**told, status="ERROR", error="Invalid status code: 422") == failure


def test_parse_without_payload_keeps_its_reason_apart_from_the_error() -> None:
    completion = parse(request_id="r", status="ERROR", error="first", payload_error="second")
    assert completion == Completion("r", None, "ERROR", None, "first", "second")


def test_parse_takes_payload_of_any_shape() -> None:
    payloads: list[JsonValue] = [7, 1.5, True, "text", [1, {"a": None}], {}, {"a": [[]]}]
    for payload in payloads:
        assert parse(request_id="r", status="OK", payload=payload).payload == payload


def test_parse_reads_past_mark_and_space() -> None:
    for start in (b"\xef\xbb\xbf", b" \n\t"):
        assert parse_webhook(start + b'{"request_id": "r", "status": "OK"}').fal_request_id == "r"


@pytest.mark.parametrize(
    ("message", "bodies"),
    [
        ("the body is not JSON", [b"{", b"\xff", b"[" * 100_000]),
        ("body: ", [b"[]"]),
        ("request_id: ", [b"{}", b'{"request_id": 1, "status": "OK"}']),
        ("status: ", [b'{"request_id": "r"}', b'{"request_id": "r", "status": "COMPLETED"}']),
    ],
)
def test_parse_wrong_body_is_refused_with_what_is_wrong(message, bodies) -> None:
    for body in bodies:
        with pytest.raises(InvalidDeliveryError, match=f"^{message}"):
            parse_webhook(body)


def test_make_storable_replaces_what_no_column_holds() -> None:
    pairs: list[tuple[Any, Any]] = [
        ("a\0b", f"a{REPLACED}b"),
        ("\ud800", "?"),
        ("\U0001f600", "\U0001f600"),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        (1.5, 1.5),
        (2**70, 2**70),
        (True, True),
        (None, None),
        (["\0", [math.nan]], [REPLACED, [None]]),
        ({"\0": {"\ud800": math.nan}}, {REPLACED: {"?": None}}),
    ]
    for value, storable in pairs:
        assert make_storable(value) == storable


def list_leaves(value: object) -> list[object]:
    match value:
        case dict():
            return [leaf for pair in value.items() for part in pair for leaf in list_leaves(part)]
        case list():
            return [leaf for item in value for leaf in list_leaves(item)]
        case _:
            return [value]


def assert_storable(value: object) -> None:
    for leaf in list_leaves(value):
        assert not isinstance(leaf, float) or math.isfinite(leaf)
        assert not isinstance(leaf, str) or "\0" not in leaf
        str(leaf).encode()
    assert json.loads(json.dumps(value, allow_nan=False)) == value


@given(json_values)
def test_make_storable_of_anything_is_storable_and_stays_so(value) -> None:
    storable = make_storable(value)
    assert_storable(storable)
    assert make_storable(storable) == storable


bodies = st.fixed_dictionaries(
    {"request_id": odd_text, "status": st.sampled_from(["OK", "ERROR"])},
    optional={
        "payload": json_values,
        "error": st.none() | odd_text,
        "payload_error": st.none() | odd_text,
        "gateway_request_id": st.none() | odd_text,
    },
)


@given(bodies)
def test_parse_body_of_right_shape_gives_storable_completion(body) -> None:
    completion = parse_webhook(json.dumps(body).encode())
    assert completion.status == body["status"]
    words = [completion.fal_request_id, completion.gateway_request_id, completion.error]
    assert_storable([*words, completion.payload_error, completion.payload])


@given(st.binary(max_size=80) | json_values.map(lambda value: json.dumps(value).encode()))
@example(b'{"request_id": "r", "status": "OK", "payload": 1e999}')
@example(b'{"request_id": "r", "status": "OK", "payload": NaN}')
def test_parse_anything_raises_nothing_else(body) -> None:
    try:
        completion = parse_webhook(body)
    except InvalidDeliveryError as error:
        str(error).encode()
    else:
        assert_storable([completion.payload])


def test_parse_of_any_depth_raises_nothing_else() -> None:
    parsed = 0
    for depth in range(1, 1100, 7):
        nested = b"[" * depth + b"]" * depth
        try:
            parse_webhook(b'{"request_id": "r", "status": "OK", "payload": %b}' % nested)
        except InvalidDeliveryError:
            continue
        parsed += 1
    assert parsed > 10
