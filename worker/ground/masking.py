"""What may stand in a log line: secrets are masked by type, by name, by form, and by value."""

import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from pydantic import SecretBytes, SecretStr

MASK = "****"
# Shorter ones would mask parts of usual words.
SHORTEST_SECRET = 6
DEEPEST = 6
_NAMES = re.compile(
    r"(?i)(^|_)(token|secret|password|passwd|authorization|cookie|credentials?|api_key|fal_key)(_|$)"
    r"|^key$"
)
_FORMS: Sequence[tuple[re.Pattern[str], str]] = (
    # A webhook's URL is as good as its token.
    (re.compile(r"(/webhooks/fal/)[^/?#\s\"'\\]+"), rf"\1{MASK}"),
    (
        # Possessive, or the spaces of a long text would be tried in every division.
        re.compile(
            r"(?i)\b(authorization['\"]?\s*+[:=]\s*+(?:b?['\"])?+(?:(?:key|bearer|basic)\b)?+\s*+)"
            r"[^\s'\",}]+"
        ),
        rf"\1{MASK}",
    ),
    # fal's keys: an id, a colon, and the secret half.
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}:[0-9A-Za-z]{16,}"), MASK),
    (re.compile(r"(://[^:/@\s]*:)[^@/\s]+(?=@)"), rf"\1{MASK}"),
    (re.compile(r"(?i)(\bpassword=)[^&\s'\"]+"), rf"\1{MASK}"),
)  # fmt: skip - one pattern a line

Processor = Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]


def make_masker(secrets: Iterable[str] = ()) -> Processor:
    """A processor for structlog that masks whatever is, is called, or looks like a secret."""
    known = sorted({one for one in secrets if len(one) >= SHORTEST_SECRET}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, known))) if known else None

    def mask(_logger: object, _method: str, fact: MutableMapping[str, Any]) -> dict[str, Any]:
        return {
            name: MASK if _NAMES.search(name) and value else mask_value(value, pattern)
            for name, value in fact.items()
        }

    return mask


def mask_value(value: object, pattern: re.Pattern[str] | None = None, depth: int = 0) -> object:
    """The value without secrets, however deep; what is neither text nor holds any stays itself."""
    match value:
        case bool() | int() | float() | None:
            return value
        case _ if depth > DEEPEST or isinstance(value, SecretStr | SecretBytes):
            return MASK
        case str():
            return mask_text(value, pattern)
        case Mapping():
            return {
                name: MASK if _NAMES.search(str(name)) else mask_value(inner, pattern, depth + 1)
                for name, inner in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [mask_value(inner, pattern, depth + 1) for inner in value]
        case _:
            return mask_text(repr(value), pattern)


def mask_text(text: str, pattern: re.Pattern[str] | None = None) -> str:
    for form, shown in _FORMS:
        text = form.sub(shown, text)
    return text if pattern is None else pattern.sub(MASK, text)
