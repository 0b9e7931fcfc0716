"""fal's error shapes, read into one value.

Model errors are `{"detail": [{"loc", "msg", "type", ...}]}`, platform errors are
`{"detail": "text", "error_type": "..."}`. fal asks to branch on the type, never on the message, so
the type becomes our searchable `error_code`. What each type means is in `error_types.py`. The
platform APIs wrap theirs as `{"error": {"type", "message"}}`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

UNNAMED_CODE = "fal_error"
MAX_MESSAGE = 2000
# A failed input is told in a few words; these keep the job's row small whatever comes.
MAX_DETAILS = 20
MAX_DETAIL_TEXT = 500
MAX_DETAIL_PLACE = 10
MAX_ECHO = 200
MAX_CONTEXT = 1000
YES, NO = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no"})

Detail = dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class FalFailure:
    """What fal says went wrong: its type (or `fal_error`) and its words, shortened.

    `details` has an item for each wrong field, in fal's form, if the model named any.
    """

    code: str
    message: str
    details: tuple[Detail, ...] = ()


def parse_failure(body: JsonValue, fallback: str, error_type: str = "") -> FalFailure | None:
    """The failure in an error body of fal's shape; None if the body has another shape.

    `error_type` is the header X-Fal-Error-Type, which counts where the body names no type.
    """
    if not isinstance(body, dict):
        return None
    match body.get("detail"):
        case str(text):
            return _build_failure(body.get("error_type") or error_type, text or fallback)
        case [dict(first), *_] as items:
            message = "; ".join(map(_describe_item, items))
            return _build_failure(first.get("type") or error_type, message, bound_details(items))
        case _:
            return None


def describe_platform_error(status: int, body: JsonValue) -> str:
    """What a platform API said instead of an answer, in a few words."""
    error = body.get("error") if isinstance(body, dict) else None
    given = error if isinstance(error, dict) else {}
    words = (given.get(name) for name in ("type", "message"))
    told = ": ".join(one for one in words if isinstance(one, str) and one)
    return f"HTTP {status}, {told[:MAX_DETAIL_TEXT]}" if told else f"HTTP {status}"


def read_retry_header(headers: Mapping[str, str]) -> bool | None:
    """Whether fal itself says that trying again can help; None if it says nothing.

    Of the two names the first is the newer one.
    """
    for name in ("x-fal-needs-retry", "x-fal-retryable"):
        said = headers.get(name, "").strip().lower()
        if said in YES | NO:
            return said in YES
    return None


def bound_details(items: list[JsonValue]) -> tuple[Detail, ...]:
    """The first items of a model's detail list, each small, without long echoes of the input."""
    return tuple(_bound_detail(item) for item in items[:MAX_DETAILS] if isinstance(item, dict))


def name_field(detail: Mapping[str, JsonValue]) -> str:
    """The input field that a detail is about; empty if it is about the whole."""
    place = detail.get("loc")
    return ".".join(map(str, place[1:])) if isinstance(place, list) else ""


def _build_failure(code: JsonValue, message: str, details: tuple[Detail, ...] = ()) -> FalFailure:
    named = isinstance(code, str) and code != ""
    return FalFailure(str(code) if named else UNNAMED_CODE, message[:MAX_MESSAGE], details)


def _describe_item(item: JsonValue) -> str:
    if not isinstance(item, dict):
        return str(item)
    field = name_field(item)
    message = str(item.get("msg", "no message"))
    return f"{field}: {message}" if field else message


def _bound_detail(item: dict[str, JsonValue]) -> Detail:
    place = item.get("loc")
    known: Detail = {"loc": _bound_place(place) if isinstance(place, list) else []}
    for name in ("msg", "type", "url"):
        if isinstance(text := item.get(name), str):
            known[name] = text[:MAX_DETAIL_TEXT]
    for name, most in (("ctx", MAX_CONTEXT), ("input", MAX_ECHO)):
        if name in item and _is_short(item[name], most):
            known[name] = item[name]
    return known


def _is_short(value: JsonValue, most: int) -> bool:
    try:
        return len(json.dumps(value, ensure_ascii=False)) <= most
    except RecursionError:
        return False


def _bound_place(place: list[JsonValue]) -> list[JsonValue]:
    kept = place[:MAX_DETAIL_PLACE]
    return [one if isinstance(one, int) else str(one)[:MAX_ECHO] for one in kept]
