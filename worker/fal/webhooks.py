"""Verification of fal's signed webhooks; what their bodies say is read in `completion.py`.

fal signs each webhook with Ed25519 (docs: Webhooks). The signed message joins by newlines the
request id, the user id and the timestamp as they stand in the headers, and the hex SHA-256 of the
raw body. The URL is not signed. No key id comes along: any key of fal's published set may fit.
"""

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock
from typing import TypeAlias

import httpx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from worker.fal.http import exchange
from worker.ground.errors import InvalidSignatureError, KeysUnavailableError

WINDOW = timedelta(seconds=300)
KEYS_MAX_AGE = timedelta(hours=24)
REFETCH_PAUSE = timedelta(minutes=1)
COLD_RETRY_PAUSE = timedelta(seconds=5)
FETCH_TIMEOUT = timedelta(seconds=5)
MAX_JWKS_BYTES = 64 * 1024

Keys: TypeAlias = tuple[Ed25519PublicKey, ...]

_IDENTIFIER = re.compile(r"[!-~]{1,256}")  # visible ASCII: no newline can shift the signed parts
_HEADERS = {
    "X-Fal-Webhook-Request-Id": _IDENTIFIER,
    "X-Fal-Webhook-User-Id": _IDENTIFIER,
    "X-Fal-Webhook-Timestamp": re.compile(r"[0-9]{1,12}"),
    "X-Fal-Webhook-Signature": re.compile(r"[0-9a-fA-F]{128}"),
}
_RAW_KEY = re.compile(r"[A-Za-z0-9_-]{43}=?")  # 32 bytes in base64url


class StaleSignatureError(InvalidSignatureError):
    """The signature is valid, but its time is outside the window: a late or replayed delivery.

    Nothing: fal is polled for it. If all are stale: set this host's clock.
    """

    code = "stale_signature"


@dataclass(frozen=True, slots=True)
class SignedHeaders:
    """The four headers verbatim, as `read_headers` has checked their form."""

    request_id: str
    user_id: str
    timestamp: str
    signature: str


def read_headers(headers: Mapping[str, str]) -> SignedHeaders:
    """Pick the four headers, in any case. Raises InvalidSignatureError for one of another form."""
    lowered = {name.lower(): value for name, value in headers.items()}
    picked = []
    for name, form in _HEADERS.items():
        value = lowered.get(name.lower(), "")
        if not form.fullmatch(value):
            what = "malformed" if value else "missing"
            raise InvalidSignatureError(f"the header {name} is {what}")
        picked.append(value)
    return SignedHeaders(*picked)


def signed_message(headers: SignedHeaders, body: bytes) -> bytes:
    digest = hashlib.sha256(body).hexdigest()
    return f"{headers.request_id}\n{headers.user_id}\n{headers.timestamp}\n{digest}".encode()


def verify_signature(headers: SignedHeaders, body: bytes, keys: Sequence[Ed25519PublicKey]) -> None:
    """Raises InvalidSignatureError if none of the keys fits."""
    signature, message = bytes.fromhex(headers.signature), signed_message(headers, body)
    for key in keys:
        with suppress(InvalidSignature):
            key.verify(signature, message)
            return
    raise InvalidSignatureError("no key of fal fits the signature")


def parse_jwks(document: object) -> Keys:
    """Read the Ed25519 keys of a JWKS; entries of other kinds are skipped.

    Raises KeysUnavailableError if none is left.
    """
    entries = document.get("keys") if isinstance(document, Mapping) else None
    keys = []
    for entry in entries if isinstance(entries, list) else ():
        raw = entry.get("x") if isinstance(entry, Mapping) else None
        if not isinstance(raw, str) or not _RAW_KEY.fullmatch(raw):
            continue
        if (entry.get("kty", "OKP"), entry.get("crv", "Ed25519")) == ("OKP", "Ed25519"):
            content = base64.urlsafe_b64decode(raw[:43] + "=")
            keys.append(Ed25519PublicKey.from_public_bytes(content))
    if not keys:
        raise KeysUnavailableError("the key document holds no Ed25519 key")
    return tuple(keys)


class KeyCache:
    """fal's public keys, fetched when first needed and once a day; safe between threads.

    However many deliveries arrive, genuine or not, there is at most one fetch a minute, or every
    five seconds as long as no fetch has ever succeeded: until then nothing can be verified, and a
    minute would be long. Keys that cannot be renewed stay in use, as an outage at fal is likelier
    than a stolen key. `clock` counts seconds and never goes back.
    """

    def __init__(
        self,
        url: str,
        client: httpx.Client,
        *,
        clock: Callable[[], float] = time.monotonic,
        timeout: timedelta = FETCH_TIMEOUT,
    ) -> None:
        self._url = url
        self._client = client
        self._clock = clock
        self._timeout = timeout
        self._fetching = Lock()
        self._keys: Keys = ()
        self._expire_at = self._next_fetch_at = clock()
        self._failure = "not yet fetched"

    def keys(self) -> Keys:
        """The keys at hand, fetched before if there are none or they are old.

        While one thread renews old keys, the others go on with them. Raises KeysUnavailableError.
        """
        if self._clock() >= self._expire_at:
            self._fetch_if_due(wait=not self._keys)
        if not self._keys:
            raise KeysUnavailableError(f"fal's keys at {self._url}: {self._failure}")
        return self._keys

    def refetch(self, tried: Keys) -> bool:
        """Fetch if that is due; say whether there are other keys now than those `tried`."""
        self._fetch_if_due(wait=True)
        return self._keys != tried

    def _fetch_if_due(self, *, wait: bool) -> None:
        """While a fetch runs, others wait for it or go on; none of them fetches once more."""
        if self._clock() < self._next_fetch_at or not self._fetching.acquire(blocking=wait):
            return
        try:
            if self._clock() < self._next_fetch_at:
                return
            try:
                self._keys = self._fetch()
                self._expire_at = self._clock() + KEYS_MAX_AGE.total_seconds()
            except (httpx.HTTPError, TimeoutError, ValueError, RecursionError) as error:
                self._failure = f"{type(error).__name__}: {error}"
            except KeysUnavailableError as error:
                self._failure = str(error)
            pause = REFETCH_PAUSE if self._keys else COLD_RETRY_PAUSE
            self._next_fetch_at = self._clock() + pause.total_seconds()
        finally:
            self._fetching.release()

    def _fetch(self) -> Keys:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        request = self._client.build_request("GET", self._url, headers=headers)
        # The keys are public: no credential that the client may carry is sent.
        for name in ("Authorization", "Cookie"):
            request.headers.pop(name, None)
        reply = exchange(self._client, request, max_bytes=MAX_JWKS_BYTES, limit=self._timeout)
        if reply.http_status != httpx.codes.OK:
            raise KeysUnavailableError(f"HTTP {reply.http_status}")
        return parse_jwks(json.loads(reply.body))


class WebhookVerifier:
    """Verifies deliveries with fal's keys; with `user_id`, of that fal account only."""

    def __init__(
        self, keys: KeyCache, *, user_id: str | None = None, window: timedelta = WINDOW
    ) -> None:
        self._keys = keys
        self._user_id = user_id
        self._window = window

    def verify(self, headers: Mapping[str, str], body: bytes, now: datetime) -> SignedHeaders:
        """Return the headers, by now proven; `body` is the raw body.

        The order is: form of the headers, account, signature with the keys at hand, and only for a
        fresh delivery that no key fits, once more with refetched keys; then the age. What needs no
        key comes first, so that garbage costs no network. StaleSignatureError means an old but
        genuine delivery; one exactly as old as the window is fresh. `now` is aware.

        Raises InvalidSignatureError, StaleSignatureError and KeysUnavailableError.
        """
        signed = read_headers(headers)
        expected = signed.user_id if self._user_id is None else self._user_id
        if not hmac.compare_digest(expected.encode(), signed.user_id.encode()):
            raise InvalidSignatureError("the delivery belongs to another fal account")
        age = now.timestamp() - int(signed.timestamp)
        is_fresh = abs(age) <= self._window.total_seconds()
        tried = self._keys.keys()
        try:
            verify_signature(signed, body, tried)
        except InvalidSignatureError:
            if not is_fresh or not self._keys.refetch(tried):
                raise
            verify_signature(signed, body, self._keys.keys())
        if not is_fresh:
            raise StaleSignatureError(
                f"the signature is {age:.0f} s old, at most {self._window} is allowed"
            )
        return signed
