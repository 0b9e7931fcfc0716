"""Beneath the path. The token of an attempt's webhook URL; only its hash is stored.

With TOKEN_SECRET it is `job.number.epoch.MAC`: should the attempt's row be lost by a restore or a
failover, the token itself still says which attempt it was, and that we made it.
"""

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import Connection

from worker.jobs import attempts, restores

MAC_BYTES = 16
# Nothing else that is ever signed with these secrets can be taken for a token.
PURPOSE = b"extend-video webhook token\0"
_FORM = re.compile(
    r"(?P<signed>(?P<job>[A-Za-z0-9_-]{22})\.(?P<number>[1-9][0-9]{0,8})"
    r"\.(?P<epoch>[A-Za-z0-9_-]{1,32}))\.(?P<mac>[A-Za-z0-9_-]{22})"
)


@dataclass(frozen=True, slots=True)
class TokenName:
    """The attempt that a signed token was made for."""

    job_id: UUID
    number: int
    epoch: str


def make_token(
    connection: Connection,
    job_id: UUID,
    token_secrets: Sequence[SecretStr],
    number: int | None = None,
) -> str:
    """A token for the job's next attempt; `number` is that one's, if it is known before."""
    if not token_secrets:
        return secrets.token_urlsafe(32)
    number = number or attempts.find_next_number(connection, job_id)
    name = TokenName(job_id, number, restores.read_epoch(connection))
    return sign_token(name, token_secrets[0])


def sign_token(name: TokenName, secret: SecretStr) -> str:
    signed = f"{_encode(name.job_id.bytes)}.{name.number}.{name.epoch}"
    return f"{signed}.{_make_mac(signed, secret)}"


def read_token(token: str, token_secrets: Sequence[SecretStr]) -> TokenName | None:
    """What the token was made for; None if none of the secrets has signed it."""
    found = _FORM.fullmatch(token)
    if found is None:
        return None
    macs = [_make_mac(found["signed"], secret) for secret in token_secrets]
    # All are compared, so that the time taken does not show which one fits.
    if sum(hmac.compare_digest(found["mac"], mac) for mac in macs) == 0:
        return None
    job_id = UUID(bytes=urlsafe_b64decode(found["job"] + "=="))
    return TokenName(job_id, int(found["number"]), found["epoch"])


def _make_mac(signed: str, secret: SecretStr) -> str:
    key = secret.get_secret_value().encode()
    digest = hmac.new(key, PURPOSE + signed.encode(), hashlib.sha256).digest()
    return _encode(digest[:MAC_BYTES])


def _encode(value: bytes) -> str:
    return urlsafe_b64encode(value).decode().rstrip("=")
