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
from http import HTTPStatus
from math import ceil
from urllib.parse import urlsplit

import structlog
from flask import Flask, Response, current_app, redirect, render_template, request, session, url_for
from flask.sessions import SecureCookieSessionInterface
from flask.typing import ResponseReturnValue
from typing_extensions import override
from werkzeug.exceptions import Forbidden
from werkzeug.security import check_password_hash

from webhook.page import logins
from worker.ground.clock import read_clock
from worker.ground.db import Database
from worker.ground.settings import Settings

COOKIE = "extend_video_page"
PATH = "/jobs"
OPEN_ENDPOINTS = frozenset({"page.show_login", "page.log_in", "page.show_session"})
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
_OUR_PAGE = re.compile(r"/jobs(/[0-9A-Fa-f-]{36}|/limits)?(\?[^\s\\#]*)?", re.ASCII)

FREE_FAILURES = 3
# Of all addresses together: a caller that can choose its address gets no more than these.
FREE_FAILURES_OF_ALL = 20
LONGEST_PAUSE = 60.0
# After so long without a wrong guess counting begins anew.
FORGIVEN_AFTER = 15 * 60.0
MOST_ADDRESSES = 1000
# Anything longer is no password: hashing takes as long as its input.
LONGEST_SECRET = 1024

log = structlog.stdlib.get_logger(__name__)

# ------------------------------------------------------------------ secrets and sessions


class Credentials:
    """What opens the page: a token, a password by its hash, or either of both."""

    def __init__(self, settings: Settings) -> None:
        given = (settings.monitor_token, settings.monitor_password_hash)
        self._token, self._hash = (one.get_secret_value() if one else "" for one in given)

    @property
    def are_set(self) -> bool:
        return bool(self._token or self._hash)

    @property
    def key(self) -> bytes:
        """What cookies are signed with: another token or hash makes all of them void."""
        secret = f"{self._token}\n{self._hash}".encode()
        return hmac.digest(secret, b"extend-video page", "sha256")

    def accept(self, given: str) -> bool:
        """Takes the same time, however much of it is right."""
        if len(given) > LONGEST_SECRET:
            return False
        texts = (given.encode(errors="surrogatepass"), self._token.encode())
        is_token = hmac.compare_digest(*(hashlib.sha256(one).digest() for one in texts))
        is_password = bool(self._hash) and check_password_hash(self._hash, given)
        return (bool(self._token) and is_token) or is_password


class CookieSessions(SecureCookieSessionInterface):
    """Flask's signed cookie, `Secure` where the request came by HTTPS.

    Any process with the same secret reads it. It holds a name and the word that forms have to bring
    along; of sessions that were logged out the table knows the name's hash.
    """

    digest_method = staticmethod(hashlib.sha256)

    @override
    def get_cookie_secure(self, app: Flask) -> bool:
        return request.is_secure


def configure_sessions(app: Flask, settings: Settings) -> None:
    app.session_interface = CookieSessions()
    app.secret_key = Credentials(settings).key
    app.config.update(
        SESSION_COOKIE_NAME=COOKIE,
        SESSION_COOKIE_PATH=PATH,
        SESSION_COOKIE_SAMESITE="Strict",
        SESSION_REFRESH_EACH_REQUEST=False,
        PERMANENT_SESSION_LIFETIME=settings.monitor_session_seconds,
    )


# ------------------------------------------------------------------ wrong guesses


@dataclass
class _Failures:
    count: int = 0
    open_at: float = 0.0
    last_at: float = 0.0

    def add(self, free: int, now: float) -> None:
        if now - self.last_at > FORGIVEN_AFTER:
            self.count = 0
        self.count += 1
        self.last_at = now
        if self.count >= free:
            self.open_at = now + min(2.0 ** min(self.count - free, 10), LONGEST_PAUSE)


@dataclass
class Throttle:
    """Doubles the pause after each wrong guess, up to a minute; for one process.

    Guesses are counted by address, and all together: many addresses guess no faster than a few. An
    address from which somebody has logged in is not held up by the guesses of others.
    """

    read_seconds: Callable[[], float] = time.monotonic
    _known: OrderedDict[str, _Failures] = field(default_factory=OrderedDict)
    _all: _Failures = field(default_factory=_Failures)
    _trusted: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def admit(self, address: str) -> float:
        """Seconds until the next try is allowed. Counts as a failure until `forget`."""
        with self._lock:
            now = self.read_seconds()
            counted = [(self._known.setdefault(address, _Failures()), FREE_FAILURES)]
            self._known.move_to_end(address)
            if len(self._known) > MOST_ADDRESSES:
                self._known.popitem(last=False)
            if address not in self._trusted:
                counted.append((self._all, FREE_FAILURES_OF_ALL))
            pause = max(failures.open_at - now for failures, _ in counted)
            if pause > 0:
                return pause
            for failures, free in counted:
                failures.add(free, now)
            return 0.0

    def forget(self, address: str) -> None:
        """The guess was right."""
        with self._lock:
            self._known.pop(address, None)
            self._all.count -= address not in self._trusted
            self._trusted.add(address)


# ------------------------------------------------------------------ requests


@dataclass(frozen=True, slots=True)
class Doorkeeper:
    """Admits requests with a session, and gives a session to a caller that knows the secret."""

    credentials: Credentials
    throttle: Throttle
    db: Database

    def check_request(self) -> ResponseReturnValue | None:
        """Before each request: nothing is shown, and nothing done, without a session."""
        is_order = request.method == "POST"
        if is_order:
            check_origin()
        if request.endpoint == "page.static":
            # The same for all: it needs no session, and no database.
            return None
        if "name" in session and logins.has_ended(session["name"], db=self.db):
            session.clear()
        if request.endpoint in OPEN_ENDPOINTS:
            return None
        if "name" not in session:
            wanted = request.full_path.rstrip("?")
            following = wanted if not is_order and _OUR_PAGE.fullmatch(wanted) else None
            return redirect(url_for("page.show_login", next=following), 303)
        given = request.form.get("csrf_token", "")
        if is_order and not hmac.compare_digest(session["csrf_token"].encode(), given.encode()):
            raise Forbidden("This form is from another login. Load the page again, then send it.")
        return None

    def show_login(self) -> ResponseReturnValue:
        if "name" in session:
            return redirect(read_next(), 303)
        return render_template("login.html", next=read_next())

    def show_session(self) -> ResponseReturnValue:
        """Whether there is one: a strict cookie is missing on the way from another site."""
        return "", 204 if "name" in session else 401

    def log_in(self) -> ResponseReturnValue:
        address = request.remote_addr or ""
        if pause := ceil(self.throttle.admit(address)):
            wrong = f"Too many wrong tries. Wait {pause} s, then try again."
            page = render_template("login.html", next=read_next(), wrong=wrong)
            return page, 429, {"Retry-After": str(pause)}
        if not self.credentials.accept(request.form.get("secret", "")):
            log.warning("page_login_refused", address=address)
            return render_template("login.html", next=read_next(), wrong="That is not it."), 401
        self.throttle.forget(address)
        log.info("page_login", address=address)
        session.permanent = True
        session.update(name=secrets.token_urlsafe(16), csrf_token=secrets.token_hex(32))
        return redirect(read_next(), 303)

    def log_out(self) -> ResponseReturnValue:
        """No copy of the session's cookie is good any more, in any process."""
        now, lifetime = read_clock(), current_app.permanent_session_lifetime
        logins.end_session(session["name"], now + lifetime, db=self.db, now=now)
        session.clear()
        return redirect(url_for("page.show_login"), 303)


def check_origin() -> None:
    """Raise Forbidden for a form of another site, even with the right token."""
    origin = request.headers.get("Origin")
    is_foreign = origin is not None and urlsplit(origin).netloc != request.host
    site = request.headers.get("Sec-Fetch-Site", "same-origin")
    if is_foreign or site not in {"same-origin", "none"}:
        raise Forbidden("This form was sent by another site.")


def read_next() -> str:
    """Where to go after the login: a page of ours, and nowhere else."""
    wanted = request.values.get("next", "")
    return wanted if _OUR_PAGE.fullmatch(wanted) else PATH


def add_headers(response: Response) -> Response:
    """On every answer of the page; a browser may keep a file, and revalidates it."""
    response.headers.update(HEADERS)
    is_file = request.endpoint in {"page.static", "page.show_file"}
    is_kept = is_file and response.status_code < HTTPStatus.BAD_REQUEST
    response.headers["Cache-Control"] = "private, no-cache" if is_kept else "no-store"
    return response
