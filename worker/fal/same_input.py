"""Whether a request of fal's listing was sent with a given input: the one answer to that."""

from collections.abc import Hashable

from pydantic import JsonValue


def is_same_input(listed: JsonValue, sent: dict[str, JsonValue]) -> bool:
    """Whether the listed input has every field as it was sent; fal may show more fields."""
    if not isinstance(listed, dict):
        return False
    return all(listed.get(name) == value for name, value in sent.items())


def sign_input(value: JsonValue) -> Hashable:
    """A cheap key that the same inputs share, to look only at those that may be the same."""
    if not isinstance(value, dict):
        return None, None
    return _freeze(value.get("seed")), _freeze(value.get("prompt"))


def _freeze(value: JsonValue) -> Hashable:
    """Equal numbers are equal, however they are spelled."""
    return str(type(value)) if isinstance(value, dict | list) else value
