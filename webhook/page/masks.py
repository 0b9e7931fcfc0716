"""What the page shows of texts and JSON: secrets masked, long encoded bytes folded.

A URL keeps its place and loses its query, for signatures stand there; so does a webhook's token.
"""

import re
from collections.abc import Iterable

from worker.ground.log import MASK, SHORTEST_SECRET

LONGEST_DATA_URI = 64
# Without its scheme: to look for one at each letter takes the square of a long text's time.
_URL = re.compile(r"(?P<place>://[^\s\"'<>?#]+)(?P<query>\?[^\s\"'<>#]*)?")
_USER = re.compile(r"(://)[^/@\s]*@")
_TOKEN = re.compile(r"(/webhooks/fal/)[^/\s\"'<>?]+")
_FAL_KEY = re.compile(r"\b[0-9a-f]{8}-[0-9a-f-]{27}:[0-9a-f]{16,}\b", re.IGNORECASE)
_AUTHORIZATION = re.compile(r"\b((?:key|bearer|basic)\s+)[A-Za-z0-9._~+/:=-]{16,}", re.IGNORECASE)
_DATA_URI = re.compile(r"data:[a-z0-9.+-]+/[a-z0-9.+-]+;base64,[A-Za-z0-9+/=]{64,}", re.IGNORECASE)


class Masker:
    """Knows our own secrets by their text, and others by their form."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = sorted(
            {one for one in secrets if len(one) >= SHORTEST_SECRET}, key=len, reverse=True
        )

    def mask(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        text = _DATA_URI.sub(_fold, text)
        text = _URL.sub(_cut_query, text)
        text = _TOKEN.sub(rf"\1{MASK}", text)
        text = _FAL_KEY.sub(MASK, text)
        return _AUTHORIZATION.sub(rf"\1{MASK}", text)

    def mask_output(self, value: object) -> object:
        """As a template prints it: what is markup already was masked when it was made."""
        return (
            self.mask(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
        )

    def mask_json(self, value: object) -> object:
        """The same for every text within it."""
        match value:
            case dict():
                return {self.mask(str(name)): self.mask_json(one) for name, one in value.items()}
            case list():
                return [self.mask_json(one) for one in value]
            case str():
                return self.mask(value)
            case _:
                return value


def _cut_query(found: re.Match[str]) -> str:
    place = _USER.sub(rf"\1{MASK}@", found["place"])
    return place + (f"?{MASK}" if found["query"] and len(found["query"]) > 1 else "")


def _fold(found: re.Match[str]) -> str:
    return f"{found[0][:LONGEST_DATA_URI]}… ({len(found[0])} characters)"
