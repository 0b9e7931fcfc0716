"""Checking a webhook as a receiver would, from fal's description and the published key alone."""

import base64
import hashlib

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.emulator.processes import Emulator
from tests.emulator.receiver import Received


def verify(emulator: Emulator, received: Received) -> None:
    """Raises InvalidSignature: it is none of the emulator's."""
    [key] = httpx.get(
        f"{emulator.url}/.well-known/jwks.json", trust_env=False, verify=False
    ).json()["keys"]
    assert (key["kty"], key["crv"]) == ("OKP", "Ed25519")
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
    names = ("request-id", "user-id", "timestamp")
    signed = [received.headers[f"x-fal-webhook-{name}"] for name in names]
    signed.append(hashlib.sha256(received.body).hexdigest())
    signature = bytes.fromhex(received.headers["x-fal-webhook-signature"])
    public.verify(signature, "\n".join(signed).encode())
