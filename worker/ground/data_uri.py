"""Base64 data URIs: `data:video/mp4;base64,AAAA`. fal takes one wherever it takes a URL.

`parse_data_uri` reads ours, and is strict where the RFC is lenient: one media type, no other
parameters, canonical base64 with its padding; anything looser could be read in one way here and in
another at fal. `decode_data_uri` reads fal's results, which are paid for, and takes what can be
read, chunk by chunk.
"""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass

SCHEME = "data:"
FORM = "data:TYPE/SUBTYPE;base64,DATA"
CHUNK_CHARACTERS = 64 * 1024
MAX_HEADER = 300
DEFAULT_TYPE = "text/plain"
_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_HEAD = re.compile(rf"data:(?P<type>{_NAME}/{_NAME});base64", re.IGNORECASE)
_SPACES = str.maketrans("", "", " \t\r\n")


class DataUriError(ValueError):
    """The text is no data URI that can be read; the message says why."""


@dataclass(frozen=True, slots=True)
class DataUri:
    """The content type that it names, in lower case, and its content."""

    content_type: str
    content: bytes


def is_data_uri(text: str) -> bool:
    return text[: len(SCHEME)].lower() == SCHEME


def count_characters(content_bytes: int) -> int:
    """How many characters of base64 so many bytes take."""
    return (content_bytes + 2) // 3 * 4


def parse_data_uri(text: str, *, kind: str, max_bytes: int) -> DataUri:
    """Read a data URI of a `kind` such as `video`. Raises ValueError with the reason.

    Its size is checked before anything is decoded, so a large one costs no second copy.
    """
    comma = text.find(",", 0, MAX_HEADER)
    head = _HEAD.fullmatch(text[:comma]) if comma > 0 else None
    if head is None:
        raise ValueError(f"a data URI has the form {FORM}, without other parameters")
    content_type = head["type"].lower()
    if not content_type.startswith(f"{kind}/"):
        raise ValueError(f"a data URI of {kind}/..., not of {content_type}")
    if len(text) - comma - 1 > count_characters(max_bytes):
        raise ValueError(f"a data URI of at most {max_bytes} bytes")
    digits = text[comma + 1 :]
    try:
        content = base64.b64decode(digits, validate=True)
    except ValueError:
        content = b""
    if not content:
        raise ValueError("a data URI whose data is base64, with its padding, and not empty")
    # Unused bits that are not zero would make two texts of one content.
    if base64.b64encode(content).decode() != digits:
        raise ValueError("a data URI whose base64 is canonical, with its padding and no more")
    return DataUri(content_type, content)


def read_content_type(text: str) -> str:
    """The content type of a result's data URI, in lower case. Raises DataUriError."""
    return _split(text)[0]


def decode_data_uri(text: str) -> Iterator[bytes]:
    """The content of a result's data URI in chunks. Raises DataUriError with the reason.

    Spaces and line ends are skipped and missing padding is added, as some encoders write it so.
    """
    _, start = _split(text)
    padding = text.find("=", start)
    if padding >= 0 and text[padding:].translate(_SPACES).strip("="):
        raise DataUriError("is spoiled: it goes on after its end")
    rest = ""
    for place in range(start, len(text), CHUNK_CHARACTERS):
        digits = rest + text[place : place + CHUNK_CHARACTERS].translate(_SPACES)
        whole = len(digits) - len(digits) % 4
        rest = digits[whole:]
        yield _decode(digits[:whole])
    yield _decode(rest + "=" * (-len(rest) % 4))


def _split(text: str) -> tuple[str, int]:
    """The content type, and where the content begins."""
    comma = text.find(",", 0, MAX_HEADER)
    if comma < 0 or not is_data_uri(text):
        raise DataUriError("is no data URI")
    content_type, *parameters = (
        part.strip().lower() for part in text[len(SCHEME) : comma].split(";")
    )
    if "base64" not in parameters:
        raise DataUriError("is not encoded as base64")
    return content_type or DEFAULT_TYPE, comma + 1


def _decode(digits: str) -> bytes:
    try:
        return base64.b64decode(digits, validate=True)
    except ValueError as error:
        raise DataUriError(f"is spoiled: {error}") from None
