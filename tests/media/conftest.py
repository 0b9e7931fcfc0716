from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest
from typing_extensions import override

from worker.media.hosts import MediaHosts, parse_media_hosts

Answer = Callable[["MediaHandler"], None]


class MediaHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "MediaServer"

    def do_GET(self) -> None:
        self.server.received.append(self.headers)
        self.close_connection = True
        try:
            self.server.answers[self.path](self)
            self.wfile.flush()
        except ConnectionError:
            self.server.hung_up.set()

    def answer(self, status: int = 200, /, **headers: str) -> None:
        """Send status and headers; `Content_Length` stands for Content-Length."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    @override
    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


class MediaServer(ThreadingHTTPServer):
    """A CDN on loopback that answers each path as the test says."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MediaHandler)
        self.answers: dict[str, Answer] = {}
        self.received: list[Message] = []
        self.closing = Event()
        self.hung_up = Event()

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def hosts(self) -> MediaHosts:
        return parse_media_hosts(self.place)

    def serve(self, path: str, answer: Answer) -> str:
        """Answer this path so; give back its URL."""
        self.answers[path] = answer
        return f"http://{self.place}{path}"

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


@pytest.fixture
def start_server() -> Iterator[Callable[[], MediaServer]]:
    running: list[tuple[MediaServer, Thread]] = []

    def start() -> MediaServer:
        server = MediaServer()
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        running.append((server, thread))
        thread.start()
        return server

    yield start
    for server, thread in running:
        server.stop()
        thread.join()


@pytest.fixture
def server(start_server: Callable[[], MediaServer]) -> MediaServer:
    return start_server()
