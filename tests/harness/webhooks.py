"""Deliveries as fal signs them, with keys of the tests' own, and what fal publishes of these.

Written from fal's documentation and independent of `worker.fal.webhooks`, so that the two can be
held against each other.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.harness.jobs import REQUEST_ID, TOKEN, build_result

USER_ID = "user-of-the-tests"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
PREFIX = "X-Fal-Webhook-"


@dataclass(frozen=True, slots=True)
class SignedDelivery:
    """One webhook POST as it leaves fal."""

    token: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return f"/webhooks/fal/{self.token}"

    def with_header(self, name: str, value: str) -> Self:
        return replace(self, headers={**self.headers, PREFIX + name: value})

    def without_header(self, name: str) -> Self:
        kept = {key: value for key, value in self.headers.items() if key != PREFIX + name}
        return replace(self, headers=kept)


def build_body(**changes: Any) -> dict[str, Any]:
    """The JSON of a success; a change to `...` leaves a key out."""
    body: dict[str, Any] = {
        "request_id": REQUEST_ID,
        "gateway_request_id": REQUEST_ID,
        "status": "OK",
        "payload": build_result(),
    }
    return {name: value for name, value in (body | changes).items() if value is not ...}


def build_delivery(
    body: bytes | Mapping[str, Any] | None = None,
    *,
    token: str = TOKEN,
    request_id: str = REQUEST_ID,
    user_id: str = USER_ID,
    at: datetime | None = None,
    key: Ed25519PrivateKey = KEY,
) -> SignedDelivery:
    """A delivery signed as fal documents it; a mapping is encoded, bytes are sent as they are."""
    raw = body if isinstance(body, bytes) else json.dumps(body or build_body()).encode()
    timestamp = str(int((at or datetime.now(UTC)).timestamp()))
    digest = hashlib.sha256(raw).hexdigest()
    message = f"{request_id}\n{user_id}\n{timestamp}\n{digest}".encode()
    headers = {
        f"{PREFIX}Request-Id": request_id,
        f"{PREFIX}User-Id": user_id,
        f"{PREFIX}Timestamp": timestamp,
        f"{PREFIX}Signature": key.sign(message).hex(),
        "Content-Type": "application/json",
    }
    return SignedDelivery(token, headers, raw)


def write_jwks(*keys: Ed25519PrivateKey) -> dict[str, Any]:
    """What fal publishes of these keys."""
    raw = (key.public_key().public_bytes_raw() for key in keys)
    encoded = (base64.urlsafe_b64encode(one).decode().rstrip("=") for one in raw)
    return {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x} for x in encoded]}
