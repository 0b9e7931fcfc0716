"""Whose key it is: each account sees its own requests, and no other knows that they exist."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Accounts:
    """User ids by key. The first account is the emulator's own."""

    by_key: dict[str, str]
    admin_key: str
    """Of the emulator's own account: it may read the bill, too."""

    @classmethod
    def from_keys(
        cls, key: str, user_id: str, others: Sequence[str] = (), admin_key: str = "emulator-admin"
    ) -> Self:
        """Each other key is an account of its own: `…-2`, `…-3` and so on."""
        ids = {other: f"{user_id}-{number}" for number, other in enumerate(others, 2)}
        return cls({key: user_id, **ids, admin_key: user_id}, admin_key)

    @property
    def own(self) -> str:
        return next(iter(self.by_key.values()))

    def find(self, request: web.BaseRequest) -> str | None:
        """The account whose key the request carries; None without one that is known."""
        given = request.headers.get("Authorization", "").encode()
        for key, user_id in self.by_key.items():
            if hmac.compare_digest(given, f"Key {key}".encode()):
                return user_id
        return None

    def is_admin(self, request: web.BaseRequest) -> bool:
        given = request.headers.get("Authorization", "").encode()
        return hmac.compare_digest(given, f"Key {self.admin_key}".encode())

    def has_key_in(self, text: str) -> bool:
        return any(key in text for key in self.by_key)


ACCOUNTS = web.AppKey("accounts", Accounts)
