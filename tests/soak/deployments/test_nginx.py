"""deploy/nginx.conf: nginx takes it, and the world gets past it to the webhooks alone."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import httpx
import pytest

from tests.deployment.compose import ROOT, Translation
from tests.harness.brokers import find_closed_port
from tests.harness.ddl import create_by_migrations
from tests.harness.processes import Yard, run_yard
from tests.harness.tls import make_certificate
from tests.harness.waiting import wait_until
from tests.receiver.test_process import run_gunicorn

FILE = ROOT / "deploy" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
TOKEN = "a-token-of-the-monitors"
INSIDE = "allow 127.0.0.1;"
WEBHOOK = f"/webhooks/fal/{'t' * 43}"
LOGINS = 16
DELIVERIES = 195

pytestmark = pytest.mark.skipif(NGINX is None, reason="NOT RUN: no nginx")


def write_server(directory: Path, receiver: str, port: int, changes: dict[str, str]) -> Path:
    """The example inside a whole configuration, with what is this machine's alone replaced."""
    made = make_certificate(directory, "127.0.0.1")
    words = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "listen [::]:443 ssl;": "",
        "/etc/ssl/extend-video/fullchain.pem": str(made.certificate),
        "/etc/ssl/extend-video/privkey.pem": str(made.key),
        "/var/log/nginx/": f"{directory}/",
        "127.0.0.1:8000": receiver,
    }
    site = Translation({**words, **changes}).apply(FILE.read_text())
    temporary = "".join(
        f"{one}_temp_path {directory}/{one};\n"
        for one in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = f"events {{}}\npid {directory}/nginx.pid;\nhttp {{\n{temporary}{site}}}\n"
    path = directory / "nginx.conf"
    path.write_text(whole)
    return path


@contextmanager
def run_nginx(tmp_path: Path, changes: dict[str, str]) -> Iterator[httpx.Client]:
    """In front of a receiver with a page; a caller that speaks to it by TLS."""
    settings = {
        "DATABASE_URL": f"sqlite:///{tmp_path / 'jobs.db'}",
        "MONITOR_TOKEN": TOKEN,
        "TRUSTED_PROXIES": "1",
    }
    create_by_migrations(settings["DATABASE_URL"])
    with run_yard(tmp_path) as yard, run_gunicorn(yard, settings, "--threads 4") as inner:
        receiver = str(inner.base_url).removeprefix("http://").rstrip("/")
        port = find_closed_port()
        start_nginx(yard, write_server(tmp_path, receiver, port, changes))
        url, context = f"https://127.0.0.1:{port}", httpx.create_ssl_context(verify=False)
        with httpx.Client(base_url=url, verify=context, trust_env=False) as outer:
            wait_until(lambda: answers(outer))
            yield outer


def start_nginx(yard: Yard, path: Path) -> None:
    command = [str(NGINX), "-p", str(path.parent), "-c", str(path), "-g", "daemon off;"]
    yard.start("nginx", command, {})


def answers(client: httpx.Client) -> bool:
    try:
        return bool(client.get("/none").status_code)
    except httpx.TransportError:
        return False


def test_world_reaches_the_webhooks_and_nothing_else(tmp_path) -> None:
    with run_nginx(tmp_path, {INSIDE: ""}) as world:
        refused = {
            path: world.get(path).status_code
            for path in ("/metrics", "/healthz", "/readyz", "/jobs", "/jobs/login", WEBHOOK)
        }
        delivered = world.post(WEBHOOK, content=b"{}")
    assert set(refused.values()) == {HTTPStatus.FORBIDDEN}
    # The receiver's own word.
    assert delivered.status_code == HTTPStatus.UNAUTHORIZED
    assert delivered.json()["error"] == "invalid_signature"
    assert WEBHOOK not in (tmp_path / "extend-video.log").read_text()


def test_one_of_two_receivers_is_dead_and_no_delivery_fails(tmp_path) -> None:
    second = f"127.0.0.1:{find_closed_port()}"
    with run_nginx(tmp_path, {INSIDE: "", "# server 10.0.0.12:8000": f"server {second}"}) as world:
        answers = [world.post(WEBHOOK, content=b"{}").status_code for _ in range(DELIVERIES)]
    assert f"server {second} max_fails=3" in (tmp_path / "nginx.conf").read_text()
    assert answers == [HTTPStatus.UNAUTHORIZED] * DELIVERIES, "the receiver's own answer, each time"


def test_page_from_inside_has_a_secure_cookie_and_slow_guesses(tmp_path) -> None:
    with run_nginx(tmp_path, {}) as inside:
        assert inside.get("/metrics").status_code == HTTPStatus.OK
        shown = inside.get("/jobs/login")
        opened = inside.post("/jobs/login", data={"secret": TOKEN})
        lies = {"X-Forwarded-Proto": "http", "X-Forwarded-For": "192.0.2.1"}
        lied = inside.post("/jobs/login", data={"secret": TOKEN}, headers=lies)
        guesses = [
            inside.post(
                "/jobs/login", data={"secret": "wrong"}, headers={"X-Forwarded-For": str(n)}
            )
            for n in range(LOGINS)
        ]
        looks = {inside.get("/jobs/login").status_code for _ in range(LOGINS)}
    assert shown.status_code == HTTPStatus.OK
    assert "Strict-Transport-Security" in shown.headers
    for answer in (opened, lied):
        assert answer.status_code == HTTPStatus.SEE_OTHER
        assert "Secure" in answer.headers["Set-Cookie"]
    statuses = [answer.status_code for answer in guesses]
    assert statuses.count(HTTPStatus.TOO_MANY_REQUESTS) >= LOGINS // 2
    assert looks <= {HTTPStatus.OK, HTTPStatus.SEE_OTHER}
