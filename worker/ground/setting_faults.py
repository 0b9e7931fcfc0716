"""What is wrong with a setting, in words that show no secret."""

import re
from collections.abc import Collection, Mapping

from pydantic_core import ErrorDetails

from worker.ground.errors import Violation


def mask_url(url: str) -> str:
    """`url` as it may be shown: whatever could be a password is masked."""
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    user, at, place = rest.rpartition("@")
    if ":" in user:
        rest = f"{user.partition(':')[0]}:****{at}{place}"
    return re.sub(r"(?i)(password=)[^&]*", r"\1****", f"{scheme}{mark}{rest}")


def describe_violation(detail: ErrorDetails, secret_fields: Collection[str]) -> Violation:
    """What is wrong with one variable, for people: secrets are not shown."""
    name = str(detail["loc"][0]) if detail["loc"] else "settings"
    return Violation(
        name.upper(),
        _mask_value(name, str(detail["input"]), secret_fields),
        _describe_allowed(detail),
    )


def _mask_value(name: str, value: str, secret_fields: Collection[str]) -> str:
    """`value` as it may be shown: secrets not at all, URLs without their password."""
    if name in secret_fields:
        return "****"
    return mask_url(value)


def _describe_allowed(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    known = {
        "value_error": "must be {error}",
        "greater_than_equal": "must be at least {ge}",
        "less_than_equal": "must be at most {le}",
        "literal_error": "must be {expected}",
        "enum": "must be {expected}",
        "int_parsing": "must be a whole number",
        "bool_parsing": "must be true or false",
    }
    return known.get(detail["type"], detail["msg"]).format_map(context)


def describe_missing(name: str, halves: Mapping[str, bool]) -> Violation:
    """What is to be set; `halves` says of each half of the key whether it is missing."""
    if name == "fal_credentials" and sum(halves.values()) == 1:
        [half] = (half for half, is_missing in halves.items() if is_missing)
        return Violation(half, "(not set)", "must be set, as its other half is; or FAL_KEY instead")
    return Violation(*_MISSING.get(name, (name.upper(), "(not set)", "must be set")))


_MISSING = {
    "webhook_base_url": (
        "WEBHOOK_BASE_URL",
        "(not set)",
        "must be the public URL of the receiver, such as https://hooks.example.com",
    ),
    "fal_credentials": (
        "FAL_KEY",
        "(not set)",
        "must be set, or FAL_KEY_ID and FAL_KEY_SECRET together",
    ),
}
