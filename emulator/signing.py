"""Webhook signatures as fal makes them, and the public key to check them with (docs: Webhooks)."""

import base64
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Signer:
    key: Ed25519PrivateKey
    user_id: str

    @classmethod
    def from_file(cls, path: Path, user_id: str) -> Self:
        """The key kept in `path`, made on first use: a restart does not change it."""
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(Ed25519PrivateKey.generate().private_bytes_raw())
        return cls(Ed25519PrivateKey.from_private_bytes(path.read_bytes()), user_id)

    def sign(self, request_id: str, body: bytes, *, age: float = 0) -> dict[str, str]:
        """The four headers of a webhook with this body, timestamped `age` seconds ago."""
        timestamp = str(int(time.time() - age))
        digest = hashlib.sha256(body).hexdigest()
        message = f"{request_id}\n{self.user_id}\n{timestamp}\n{digest}".encode()
        return {
            "X-Fal-Webhook-Request-Id": request_id,
            "X-Fal-Webhook-User-Id": self.user_id,
            "X-Fal-Webhook-Timestamp": timestamp,
            "X-Fal-Webhook-Signature": self.key.sign(message).hex(),
        }

    def publish_keys(self) -> dict[str, object]:
        """The JSON Web Key Set served at `/.well-known/jwks.json`."""
        public = self.key.public_key().public_bytes_raw()
        x = base64.urlsafe_b64encode(public).rstrip(b"=").decode()
        kid = hashlib.sha256(public).hexdigest()[:16]
        key = {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid, "x": x}
        return {"keys": [key]}


class KeyRing:
    """The key in use, which can be changed for a new one while the emulator runs."""

    def __init__(self, path: Path, user_id: str) -> None:
        self._path = path
        self._signer = Signer.from_file(path, user_id)

    @property
    def signer(self) -> Signer:
        return self._signer

    def rotate(self) -> None:
        """From now on a new key signs, and it alone is published."""
        self._path.unlink()
        self._signer = Signer.from_file(self._path, self._signer.user_id)
