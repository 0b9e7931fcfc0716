"""fal's two error shapes, read into one value.

Model errors are `{"detail": [{"loc", "msg", "type", ...}]}`, platform errors are
`{"detail": "text", "error_type": "..."}`. fal asks to branch on the type, never on the message, so
the type becomes our searchable `error_code`.
"""

from dataclasses import dataclass

from pydantic import JsonValue

UNNAMED_CODE = "fal_error"
MAX_MESSAGE = 2000


@dataclass(frozen=True, slots=True)
class FalFailure:
    """What fal says went wrong: its type (or `fal_error`) and its words, shortened."""

    code: str
    message: str


def parse_failure(body: JsonValue, fallback: str) -> FalFailure | None:
    """The failure in an error body of fal's shape; None if the body has another shape."""
    if not isinstance(body, dict):
        return None
    match body.get("detail"):
        case str(text):
            return _build_failure(body.get("error_type"), text or fallback)
        case [dict(first), *_] as items:
            return _build_failure(first.get("type"), "; ".join(map(_describe_item, items)))
        case _:
            return None


def _build_failure(code: JsonValue, message: str) -> FalFailure:
    named = isinstance(code, str) and code != ""
    return FalFailure(str(code) if named else UNNAMED_CODE, message[:MAX_MESSAGE])


def _describe_item(item: JsonValue) -> str:
    if not isinstance(item, dict):
        return str(item)
    location = item.get("loc")
    field = ".".join(map(str, location[1:])) if isinstance(location, list) else ""
    message = str(item.get("msg", "no message"))
    return f"{field}: {message}" if field else message
