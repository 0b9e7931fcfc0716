"""Who may see the page: secrets, sessions, and how wrong guesses are slowed down. No Flask here."""

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from itsdangerous import BadSignature, TimestampSigner
from werkzeug.security import check_password_hash

from worker.ground.db import Database
from worker.ground.settings import Settings
from worker.stages import logins

V = TypeVar("V")

FREE_FAILURES = 3
# Of all addresses together: whoever can choose his address has no more than these.
FREE_FAILURES_OF_ALL = 20
LONGEST_PAUSE = 60.0
# After so long without a wrong guess counting begins anew.
FORGIVEN_AFTER = 15 * 60.0
MOST_ADDRESSES = 1000
# Whatever is longer is no password: hashing takes as long as its input.
LONGEST_SECRET = 1024


class Credentials:
    """What opens the page: a token, a password by its hash, or either of both."""

    def __init__(self, settings: Settings) -> None:
        self._token = _reveal(settings.monitor_token)
        self._password_hash = _reveal(settings.monitor_password_hash)

    @property
    def are_set(self) -> bool:
        return bool(self._token or self._password_hash)

    @property
    def key(self) -> bytes:
        """What cookies are signed with: another token or hash makes all of them void."""
        secret = f"{self._token}\n{self._password_hash}".encode()
        return hmac.digest(secret, b"extend-video page", "sha256")

    def accept(self, given: str) -> bool:
        """In the same time, whatever of it is right."""
        if len(given) > LONGEST_SECRET:
            return False
        is_token = hmac.compare_digest(_digest(given), _digest(self._token))
        is_password = bool(self._password_hash) and check_password_hash(self._password_hash, given)
        return (bool(self._token) and is_token) or is_password


@dataclass(frozen=True, slots=True)
class Session:
    """One login, and the word that its forms have to bring along."""

    name: str
    csrf_token: str

    def matches(self, csrf_token: str) -> bool:
        return hmac.compare_digest(self.csrf_token.encode(), csrf_token.encode())


class Sessions:
    """Sessions live in cookies; any process with the same secret reads them.

    Of those that were logged out the table knows a hash, until their cookie would be too old.
    """

    def __init__(self, key: bytes, lifetime: timedelta) -> None:
        self.lifetime = lifetime
        self._key = key
        self._signer = TimestampSigner(
            key, salt="session", key_derivation="hmac", digest_method=hashlib.sha256
        )

    def begin(self) -> str:
        """A new cookie's value."""
        return self._signer.sign(secrets.token_urlsafe(16)).decode()

    def read(self, cookie: str | None) -> Session | None:
        """The session; None if the cookie is missing, forged or too old."""
        seconds = int(self.lifetime.total_seconds())
        try:
            name = self._signer.unsign(cookie or "", max_age=seconds).decode()
        except BadSignature:
            return None
        return Session(name, hmac.new(self._key, f"csrf {name}".encode(), "sha256").hexdigest())

    def has_ended(self, session: Session, db: Database) -> bool:
        """Whether it was logged out."""
        return logins.has_ended(session.name, db=db)

    def end(self, session: Session, db: Database, now: datetime) -> None:
        """No copy of its cookie is good any more, in any process."""
        logins.end_session(session.name, now + self.lifetime, db=db, now=now)


@dataclass
class _Failures:
    count: int = 0
    open_at: float = 0.0
    last_at: float = 0.0


@dataclass
class Throttle:
    """Doubles the pause after each wrong guess, up to a minute; for one process.

    Guesses are counted by address, and all together: many addresses guess no faster than a few. An
    address from which somebody has logged in is not held up by the guesses of others.
    """

    read_seconds: Callable[[], float] = time.monotonic
    _known: OrderedDict[str, _Failures] = field(default_factory=OrderedDict)
    _all: _Failures = field(default_factory=_Failures)
    _trusted: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, address: str) -> float:
        """Zero for whoever may guess now, and it counts as wrong until `forget`; else the pause."""
        with self._lock:
            now = self.read_seconds()
            counted = [(self._keep(self._known, address, _Failures()), FREE_FAILURES)]
            if address not in self._trusted:
                counted.append((self._all, FREE_FAILURES_OF_ALL))
            pause = max(failures.open_at - now for failures, _ in counted)
            if pause > 0:
                return pause
            for failures, free in counted:
                _count_failure(failures, free, now)
            return 0.0

    def forget(self, address: str) -> None:
        """The guess was right."""
        with self._lock:
            self._known.pop(address, None)
            if address not in self._trusted:
                self._all.count -= 1
            self._keep(self._trusted, address, None)

    def _keep(self, known: OrderedDict[str, V], address: str, new: V) -> V:
        """What is known of the address, which is now the newest; the oldest ones are dropped."""
        found = known.setdefault(address, new)
        known.move_to_end(address)
        while len(known) > MOST_ADDRESSES:
            known.popitem(last=False)
        return found


def _count_failure(failures: _Failures, free: int, now: float) -> None:
    if now - failures.last_at > FORGIVEN_AFTER:
        failures.count = 0
    failures.count += 1
    failures.last_at = now
    if failures.count >= free:
        failures.open_at = now + min(2.0 ** min(failures.count - free, 10), LONGEST_PAUSE)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def _reveal(secret: object) -> str:
    reveal = getattr(secret, "get_secret_value", None)
    return str(reveal()) if reveal else ""
