"""Credentials that arrived where they have no business. What they were is not kept."""

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime

MOST_KEPT = 1000


@dataclass(frozen=True, slots=True)
class Leak:
    place: str
    """`signed_upload` or `cdn`."""
    credential: str
    """`key`, `cdn_token` or `other`."""
    method: str
    path: str
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def to_json(self) -> dict[str, object]:
        return {
            "at": self.at.isoformat(),
            "place": self.place,
            "credential": self.credential,
            "method": self.method,
            "path": self.path,
        }


class Leaks:
    """The newest `MOST_KEPT`, oldest first."""

    def __init__(self) -> None:
        self._leaks: deque[Leak] = deque(maxlen=MOST_KEPT)

    def note(self, leak: Leak) -> None:
        self._leaks.append(leak)

    def clear(self) -> None:
        self._leaks.clear()

    def to_json(self) -> list[dict[str, object]]:
        return [leak.to_json() for leak in self._leaks]
