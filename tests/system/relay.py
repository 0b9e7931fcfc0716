"""Stands between the worker and the emulator, passes everything on, and stops it where told to."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
from typing_extensions import override

HOLD_SECONDS = 60
RESULTS = "/files/b/"


class Point(Enum):
    """Where a request can be held."""

    BEFORE_SUBMISSION = auto()
    """The worker has sent it, the emulator knows nothing of it."""
    BEFORE_REPLY = auto()
    """The emulator has taken the submission, the worker does not know yet."""
    MID_DOWNLOAD = auto()
    """Half of the video has been sent to the worker."""


@dataclass(frozen=True)
class Hold:
    """`reached` is set once a request waits; it waits until `released` is."""

    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def pause(self) -> None:
        self.reached.set()
        assert self.released.wait(HOLD_SECONDS)

    def wait_until_reached(self) -> None:
        assert self.reached.wait(HOLD_SECONDS), "no request came to the point"


@dataclass(frozen=True)
class Relay:
    url: str
    target: httpx.Client
    holds: dict[Point, Hold] = field(default_factory=dict)

    @contextmanager
    def holding(self, point: Point) -> Iterator[Hold]:
        """The next request that comes to this point waits; later ones pass."""
        hold = self.holds[point] = Hold()
        try:
            yield hold
        finally:
            self.holds.pop(point, None)
            hold.released.set()

    def pause_at(self, point: Point) -> None:
        hold = self.holds.pop(point, None)
        if hold is not None:
            hold.pause()


@contextmanager
def run_relay(target_url: str) -> Iterator[Relay]:
    class PassOn(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            relay.pause_at(Point.BEFORE_SUBMISSION)
            response = self.ask(self.rfile.read(int(self.headers["Content-Length"])))
            relay.pause_at(Point.BEFORE_REPLY)
            self.answer(response)

        def do_GET(self) -> None:
            self.answer(self.ask(None))

        def ask(self, body: bytes | None) -> httpx.Response:
            headers = {name: value for name, value in self.headers.items() if name != "Connection"}
            return client.request(self.command, self.path, content=body, headers=headers)

        def answer(self, response: httpx.Response) -> None:
            with suppress(OSError):  # who asked may have been killed
                self.send_response(response.status_code)
                for name in ("Content-Type", "Content-Length", "x-fal-request-id"):
                    if name in response.headers:
                        self.send_header(name, response.headers[name])
                self.end_headers()
                half = len(response.content) // 2
                self.wfile.write(response.content[:half])
                self.wfile.flush()
                if self.path.startswith(RESULTS):
                    relay.pause_at(Point.MID_DOWNLOAD)
                self.wfile.write(response.content[half:])

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Keep the test output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), PassOn)
    server.daemon_threads = True
    with httpx.Client(base_url=target_url, trust_env=False) as client:
        relay = Relay(f"http://127.0.0.1:{server.server_port}", client)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield relay
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
