"""Texts that prove who gave them out and until when: CDN tokens, and the tails of signed URLs."""

import hmac
import math
import re
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta


@dataclass(frozen=True, slots=True)
class Seal:
    """Nothing given out before a restart is valid after it."""

    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def stamp(self, subject: str, life: timedelta) -> str:
        """A text that is good for this subject and no other, for so long."""
        expires = math.ceil(time.time() + life.total_seconds())
        return f"{expires}.{self._sign(f'{subject}/{expires}')}"

    def proves(self, subject: str, text: str) -> bool:
        expires, _, signature = text.partition(".")
        if not re.fullmatch(r"[0-9]{1,12}", expires) or int(expires) <= time.time():
            return False
        wanted = self._sign(f"{subject}/{expires}")
        return hmac.compare_digest(signature.encode(), wanted.encode())

    def _sign(self, text: str) -> str:
        return hmac.digest(self.secret, text.encode(), "sha256").hex()


def find_end(life: timedelta) -> datetime:
    return datetime.now(UTC) + life
