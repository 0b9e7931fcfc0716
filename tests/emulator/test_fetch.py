import base64
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typing_extensions import override

from emulator import fetch
from emulator.fetch import fetch_input
from emulator.problems import ModelError


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    class Serve(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            codes = {"/moved": 302, "/missing": 404}
            self.send_response(codes.get(self.path, 200))
            self.send_header("Location", "/file")
            self.send_header("Content-Length", "7" if self.path == "/short" else "4")
            self.end_headers()
            self.wfile.write(b"here")

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Keep the test output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Serve) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def find_problem(url: str, path: Path, max_time: timedelta = fetch.MAX_TIME) -> str:
    with pytest.raises(ModelError) as caught:
        fetch_input("video_url", url, path, max_time=max_time)
    [problem] = caught.value.problems
    assert problem.loc == ("video_url",)
    return problem.type


@pytest.mark.parametrize("name", ["/file", "/moved"])
def test_fetch_of_url_writes_the_file(server, tmp_path, name):
    fetch_input("video_url", f"{server}{name}", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"here"


@pytest.mark.parametrize("name", ["/missing", "/short"])
def test_fetch_that_fails_is_a_download_error(server, tmp_path, name):
    assert find_problem(f"{server}{name}", tmp_path / "file") == "file_download_error"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "http://[::1",
        "http://\x00",
        "data:nothing",
        "data:video/mp4;base64,%%%",
    ],
)
def test_fetch_of_unusable_url_is_a_download_error(tmp_path, url):
    assert find_problem(url, tmp_path / "file") == "file_download_error"


def test_fetch_that_takes_too_long_is_a_download_error(server, tmp_path):
    limit = timedelta(seconds=-1)
    found = find_problem(f"{server}/file", tmp_path / "file", max_time=limit)
    assert found == "file_download_error"


def test_fetch_of_too_large_file_names_the_limit(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_BYTES", 3)
    assert find_problem(f"{server}/file", tmp_path / "file") == "file_too_large"


@pytest.mark.parametrize(
    ("uri", "content"),
    [
        ("data:text/plain,a%20b", b"a b"),
        (
            f"data:video/mp4;base64,{base64.b64encode(bytes(range(256))).decode()}",
            bytes(range(256)),
        ),
        ("data:;base64,YQ%3D%3D", b"a"),
    ],
)
def test_fetch_of_data_uri_decodes_it(tmp_path, uri, content):
    fetch_input("video_url", uri, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content
