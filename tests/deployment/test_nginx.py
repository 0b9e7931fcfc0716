"""deploy/nginx.conf as text: its blocks close, and each location is open to whom it should be.

That nginx takes it, and what it answers then, is a part of `make soak`.
"""

import re

from tests.deployment.compose import ROOT

FILE = ROOT / "deploy" / "nginx.conf"
INSIDE = ["allow 127.0.0.1", "allow 10.0.0.0/8", "deny all"]


def read_locations() -> dict[str, list[str]]:
    """The directives of each location by its path, without those of locations inside it."""
    text = re.sub(r"#.*|'[^']*'|\"[^\"]*\"", "", FILE.read_text())
    open_blocks: list[str] = []
    locations: dict[str, list[str]] = {}
    for rest, mark in re.findall(r"([^{};]*)([{};])", text):
        words = " ".join(rest.split())
        if mark == "{":
            open_blocks.append(words)
        elif mark == "}":
            assert not words, f"{words} is not ended"
            open_blocks.pop()
        elif open_blocks and open_blocks[-1].startswith("location "):
            locations.setdefault(open_blocks[-1].split()[-1], []).append(words)
    assert open_blocks == []
    return locations


def test_world_is_let_in_to_the_webhooks_alone() -> None:
    locations = read_locations()
    assert list(locations) == ["/webhooks/fal/", "/jobs", "/jobs/login", "/"]
    closed = [path for path, directives in locations.items() if directives[:3] == INSIDE]
    assert closed == ["/jobs", "/"], "and /jobs/login is inside /jobs"


def test_guesses_are_slowed_down_and_webhooks_are_answered_by_what_fal_repeats() -> None:
    locations = read_locations()
    assert "limit_req zone=logins burst=5 nodelay" in locations["/jobs/login"]
    assert "limit_req_status 503" in locations["/webhooks/fal/"]
    assert "limit_conn_status 503" in locations["/webhooks/fal/"]


def test_slow_senders_are_kept_from_the_receivers_threads() -> None:
    text = FILE.read_text()
    for line in (
        "client_header_timeout 10s;",
        "client_body_timeout 10s;",
        "proxy_request_buffering on;",
    ):
        assert text.count(f"    {line}\n") == 1, line


def test_next_receiver_is_asked_where_one_cannot_be_reached() -> None:
    text = FILE.read_text()
    assert "proxy_next_upstream error timeout;" in text
    assert "non_idempotent;" not in text, "a webhook that was sent is fal's to send again"
    servers = re.findall(r"server \d\S+ (.*);", text)
    assert servers == ["max_fails=3 fail_timeout=5s"] * 2


def test_path_with_its_token_is_in_no_log() -> None:
    (logged,) = re.findall(r"log_format without_path '([^']*)'", FILE.read_text())
    assert "request_uri" not in logged
    assert "$request " not in f"{logged} "
    assert re.findall(r"access_log \S+ (\w+);", FILE.read_text()) == ["without_path"]
