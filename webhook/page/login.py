"""Login and logout of the page, and what each request to it has to bring along."""

import re
from dataclasses import dataclass
from http import HTTPStatus
from math import ceil
from urllib.parse import urlsplit

import structlog
from flask import Response, g, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import Forbidden

from webhook.page.access import Credentials, Session, Sessions, Throttle
from worker.ground.clock import read_clock
from worker.ground.db import Database

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
    """Lets in whoever has a session, and gives one to whoever knows the secret."""

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
