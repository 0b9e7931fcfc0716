"""A real HTTP server on loopback that answers as a test says, and remembers what it was asked."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import TypeAlias
from urllib.parse import parse_qs, urlsplit

from typing_extensions import override

Answer: TypeAlias = Callable[["ScriptedHandler"], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it arrived."""

    method: str
    target: str
    headers: Message
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)


class ScriptedHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "ScriptedServer"
    asked: Asked

    def do_POST(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def send_head(self, status: int, /, **headers: object) -> None:
        """Send status and headers; `Content_Length` stands for Content-Length."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        # Said, so that no client sends its next request into a connection about to close.
        self.send_header("Connection", "close")
        self.end_headers()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        self.asked = Asked(self.command, self.path, self.headers, body)
        self.server.asked.append(self.asked)
        self.close_connection = True
        try:
            self.server.answer(self)
        except ConnectionError:
            self.server.hung_up.set()
        except AssertionError as error:
            self.server.failures.append(error)

    @override
    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


class ScriptedServer(ThreadingHTTPServer):
    """`answer` serves every request until a test sets another one."""

    daemon_threads = False

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.answer = answer
        self.asked: list[Asked] = []
        self.failures: list[AssertionError] = []
        self.closing = Event()
        self.hung_up = Event()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.place}"


@contextmanager
def run_server(answer: Answer) -> Iterator[ScriptedServer]:
    """Serve until the block ends; an assertion that failed inside an answer is raised then."""
    server = ScriptedServer(answer)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
    for failure in server.failures:
        raise failure


def send_body(body: bytes, status: int = 200, /, **headers: object) -> Answer:
    return lambda handler: _send(handler, body, status, **headers)


def send_json(value: object, status: int = 200, /, **headers: object) -> Answer:
    return send_body(json.dumps(value).encode(), status, **headers)


def break_off(body: bytes = b"", announced: int = 1000) -> Answer:
    """Announce more than is sent, then close; without a body, close before the status line."""

    def answer(handler: ScriptedHandler) -> None:
        if body:
            handler.send_head(200, Content_Length=announced)
            handler.wfile.write(body)

    return answer


def hang(handler: ScriptedHandler) -> None:
    """Say nothing until the test is over."""
    handler.server.closing.wait(timeout=60)


def _send(handler: ScriptedHandler, body: bytes, status: int, /, **headers: object) -> None:
    handler.send_head(status, Content_Length=len(body), **headers)
    handler.wfile.write(body)
