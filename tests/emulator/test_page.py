"""The page for people."""

from html.parser import HTMLParser

import httpx
from typing_extensions import override

from tests.emulator.uploading import find_path, initiate, put, upload

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """What tags there are, whether they close, and what a person reads."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    @override
    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    @override
    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)


def read_page(emulator) -> Reader:
    response = httpx.get(f"{emulator.url}/", trust_env=False)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    reader = Reader()
    reader.feed(response.text)
    assert reader.open == []
    return reader


def test_page_shows_requests_faults_hooks_uploads_and_leaks(faulty):
    request_id = faulty.submit({"prompt": "shown on the page"})
    faulty.wait_for_status(request_id, "COMPLETED")
    faulty.order({"point": "jwks", "kind": "status", "code": 503, "rate": 0.5})
    faulty.arm({"point": "cancel_received", "times": 3})
    url = upload(faulty, b"content")
    given = initiate(faulty)["upload_url"]
    put(given, b"a", Authorization="Key emulator-key")
    words = read_page(faulty).text
    assert {request_id, "shown on the page", "jwks/status", "cancel_received"} <= set(words)
    assert {"3 times more", find_path(url).removeprefix("/files/"), find_path(given)} <= set(words)
    assert {"submissions", "charges", "waiting", "running", "leaks"} <= set(words)


def test_page_shows_inputs_that_were_paid_twice(quick):
    quick.submit({"prompt": "paid once"})
    for _ in range(2):
        quick.submit({"prompt": "paid twice"})
    words = read_page(quick).text
    assert words.count("paid once") == 1
    assert words.count("paid twice") == 3


def test_page_shows_what_runs_and_who_waits_for_how_long(busy):
    busy.submit({"prompt": "waits without limit"})
    busy.post({"prompt": "waits an hour"}, headers={"X-Fal-Request-Start-Timeout": "3600"})
    words = read_page(busy).text
    assert {"At fal now (1 running, 2 waiting)", "1 of 1", "running"} <= set(words)
    assert words[words.index("waiting, 0 ahead") + 1] == "waits without limit"
    place = words.index("waiting, 1 ahead")
    assert words[place + 1] == "waits an hour"
    assert 3500 < float(words[place + 3].removesuffix(" s")) <= 3600


def test_page_escapes_what_strangers_wrote_and_needs_nothing_from_elsewhere(quick):
    prompt = "<script>alert(1)</script>&"
    request_id = quick.submit({"prompt": prompt})
    quick.wait_for_status(request_id, "COMPLETED")
    reader = read_page(quick)
    attributes = [attrs for _, attrs in reader.seen]
    assert prompt in "".join(reader.text)
    assert "emulator-key" not in "".join(reader.text)
    assert "script" not in [tag for tag, _ in reader.seen]
    assert [attrs for attrs in attributes if {"src", "href"} & set(attrs)] == []
    assert {"http-equiv": "refresh", "content": "2"} in attributes
