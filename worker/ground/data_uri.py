"""Base64 data URIs: `data:video/mp4;base64,AAAA`. fal takes one wherever it takes a URL.

Strict where the RFC is lenient: one media type, no other parameters, canonical base64 with its
padding. Whatever is looser would be read in one way here and perhaps in another at fal.
"""

import base64
import binascii
import re
from dataclasses import dataclass

SCHEME = "data:"
FORM = "data:TYPE/SUBTYPE;base64,DATA"
_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_HEAD = re.compile(rf"data:(?P<type>{_NAME}/{_NAME});base64", re.IGNORECASE)
_LONGEST_HEAD = 300


@dataclass(frozen=True, slots=True)
class DataUri:
    """What it says it is, in lower case, and what it holds."""

    content_type: str
    content: bytes


def is_data_uri(text: str) -> bool:
    return text[: len(SCHEME)].lower() == SCHEME


def count_characters(content_bytes: int) -> int:
    """How many characters of base64 so many bytes take."""
    return (content_bytes + 2) // 3 * 4


def parse_data_uri(text: str, *, kind: str, max_bytes: int) -> DataUri:
    """Read a data URI of a `kind` such as `video`. Raises ValueError with the reason.

    Its size is judged before anything is decoded, so a large one costs no second copy.
    """
    comma = text.find(",", 0, _LONGEST_HEAD)
    head = _HEAD.fullmatch(text[:comma]) if comma > 0 else None
    if head is None:
        raise ValueError(f"a data URI has the form {FORM}, without other parameters")
    content_type = head["type"].lower()
    if not content_type.startswith(f"{kind}/"):
        raise ValueError(f"a data URI of {kind}/..., not of {content_type}")
    digits = len(text) - comma - 1
    if digits == 0:
        raise ValueError("a data URI that holds something: it is empty")
    if digits > count_characters(max_bytes):
        raise ValueError(f"a data URI of at most {max_bytes} bytes")
    return DataUri(content_type, _decode(text[comma + 1 :]))


def _decode(digits: str) -> bytes:
    try:
        content = base64.b64decode(digits, validate=True)
    except (binascii.Error, ValueError):
        content = b""
    # Too much padding is let pass by the decoder.
    if count_characters(len(content)) != len(digits):
        raise ValueError(
            "a data URI whose data is base64: letters, digits, + and /, padded with = to fours"
        )
    # Bits that no byte needs would make two texts of one content.
    tail = content[-(len(content) % 3 or 3) :]
    if base64.b64encode(tail).decode() != digits[-4:]:
        raise ValueError("a data URI whose base64 is canonical: its last bits must be zero")
    return content
