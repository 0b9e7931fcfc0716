"""Login and logout of the page, and what each request to it has to bring along."""

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http import HTTPStatus
from math import ceil
from typing import TypeVar
from urllib.parse import urlsplit

import structlog
from flask import Response, g, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from itsdangerous import BadSignature, TimestampSigner
from werkzeug.exceptions import Forbidden
from werkzeug.security import check_password_hash

from webhook.page import logins
from worker.ground.clock import read_clock
from worker.ground.db import Database
from worker.ground.settings import Settings

# ------------------------------------------------------------------ access


V = TypeVar("V")

FREE_FAILURES = 3
# Of all addresses together: a caller that can choose its address gets no more than these.
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
        """Seconds until the next try is allowed. Counts as a failure until `forget`."""
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


COOKIE = "extend_video_page"
PATH = "/jobs"
OPEN_ENDPOINTS = frozenset({"page.static", "page.show_login", "page.log_in", "page.show_session"})
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; media-src 'self'; "
    "style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not `no-referrer`: with it browsers hide the origin of our own forms, too.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "X-Robots-Tag": "noindex, nofollow",
}
_OUR_PAGE = re.compile(r"/jobs(/[0-9A-Fa-f-]{36})?(\?[^\s\\#]*)?", re.ASCII)

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Doorkeeper:
    """Admits requests with a session, and gives a session to a caller that knows the secret."""

    credentials: Credentials
    sessions: Sessions
    throttle: Throttle
    db: Database

    def check_request(self) -> ResponseReturnValue | None:
        """Before each request: nothing is shown, and nothing done, without a session."""
        if request.method == "POST":
            check_origin()
        g.session = None
        if request.endpoint == "page.static":
            # The same for all: it needs no session, and no database.
            return None
        session = self.sessions.read(request.cookies.get(COOKIE))
        if session is not None and self.sessions.has_ended(session, self.db):
            session = None
        g.session = session
        if request.endpoint in OPEN_ENDPOINTS:
            return None
        if session is None:
            return self._send_to_login()
        if request.method == "POST" and not session.matches(request.form.get("csrf_token", "")):
            raise Forbidden("This form is from another login. Load the page again, then send it.")
        return None

    def show_login(self) -> ResponseReturnValue:
        if g.session is not None:
            return redirect(read_next(), 303)
        return render_template("login.html", next=read_next())

    def show_session(self) -> ResponseReturnValue:
        """Whether there is one: a strict cookie is missing on the way from another site."""
        return "", 204 if g.session is not None else 401

    def log_in(self) -> ResponseReturnValue:
        address = request.remote_addr or ""
        pause = self.throttle.admit(address)
        if pause > 0:
            return self._slow_down(ceil(pause))
        if not self.credentials.accept(request.form.get("secret", "")):
            log.warning("page_login_refused", address=address)
            return render_template("login.html", next=read_next(), wrong="That is not it."), 401
        self.throttle.forget(address)
        log.info("page_login", address=address)
        response = make_response(redirect(read_next(), 303))
        self._set_cookie(response, self.sessions.begin())
        return response

    def log_out(self) -> ResponseReturnValue:
        self.sessions.end(current_session(), self.db, read_clock())
        response = make_response(redirect(url_for("page.show_login"), 303))
        response.delete_cookie(
            COOKIE, path=PATH, secure=request.is_secure, httponly=True, samesite="Strict"
        )
        return response

    def _set_cookie(self, response: Response, value: str) -> None:
        response.set_cookie(
            COOKIE,
            value,
            max_age=self.sessions.lifetime,
            path=PATH,
            secure=request.is_secure,
            httponly=True,
            samesite="Strict",
        )

    def _slow_down(self, seconds: int) -> ResponseReturnValue:
        wrong = f"Too many wrong tries. Wait {seconds} s, then try again."
        page = render_template("login.html", next=read_next(), wrong=wrong)
        return page, 429, {"Retry-After": str(seconds)}

    def _send_to_login(self) -> ResponseReturnValue:
        if request.method == "POST":
            return redirect(url_for("page.show_login"), 303)
        wanted = request.full_path.rstrip("?")
        following = wanted if _OUR_PAGE.fullmatch(wanted) else None
        return redirect(url_for("page.show_login", next=following), 303)


def check_origin() -> None:
    """Raise Forbidden for a form of another site, whatever else it brings along."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise Forbidden("This form was sent by another site.")
    if request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
        raise Forbidden("This form was sent by another site.")


def read_next() -> str:
    """Where to go after the login: a page of ours, and nowhere else."""
    wanted = request.values.get("next", "")
    return wanted if _OUR_PAGE.fullmatch(wanted) else PATH


def current_session() -> Session:
    session = g.session
    assert isinstance(session, Session)  # noqa: S101 - checked before each request
    return session


def add_headers(response: Response) -> Response:
    """On whatever the page answers; files may be asked for again with what is known of them."""
    response.headers.update(HEADERS)
    is_file = request.endpoint in {"page.static", "page.show_file"}
    is_kept = is_file and response.status_code < HTTPStatus.BAD_REQUEST
    response.headers["Cache-Control"] = "private, no-cache" if is_kept else "no-store"
    return response
