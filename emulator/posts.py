"""Every POST of a submission that came in, whatever became of it: each could have cost money."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiohttp import web

from emulator.records import FalRequest

TENANT = re.compile(r"\btenant=([\w.-]+)")


@dataclass(slots=True)
class Post:
    """`status_code` is the reply's; None while there is none, or where the connection was cut."""

    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    request: FalRequest | None = None
    """None if nothing that could be queued was sent."""
    is_accepted: bool = False
    status_code: int | None = None

    @property
    def tenant(self) -> str | None:
        """No business of fal's: a test names it in its prompt, or in the tags."""
        if self.request is None:
            return None
        said = f"{self.request.prompt} {self.request.headers.get('x-fal-tags', '')}"
        found = TENANT.search(said)
        return found.group(1) if found else None

    def to_json(self) -> dict[str, object]:
        request_id = self.request.request_id if self.request and self.is_accepted else None
        return {
            "at": self.at.isoformat(),
            "prompt": self.request.prompt if self.request else None,
            "tenant": self.tenant,
            "accepted": self.is_accepted,
            "status_code": self.status_code,
            "request_id": request_id,
        }


POSTS = web.AppKey("posts", list[Post])
