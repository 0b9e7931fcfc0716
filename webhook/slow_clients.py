"""Clients that send a request byte by byte: each would hold a thread for as long as it likes.

gunicorn's threads wait for the rest of a request without any limit, head and body alike, and it has
no hook before the head is read. So its method that serves a connection is wrapped: a request that
is not whole within the deadline is cut off there, as if its sender had ended it.
"""

import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import wraps
from typing import Any

import structlog
from flask import Flask, Response

GUNICORN = "gunicorn.workers.gthread"

log = structlog.stdlib.get_logger(__name__)


class ReadDeadlines:
    """Which thread reads a request from which of gunicorn's connections, and until when."""

    def __init__(self, within: timedelta) -> None:
        self._seconds = within.total_seconds()
        self._lock = threading.Lock()
        self._reading: dict[int, tuple[Any, float]] = {}
        self._watcher: threading.Thread | None = None

    def begin(self, connection: object) -> None:
        """The whole request has to come from now on until the deadline, or until `mark_read`."""
        with self._lock:
            self._reading[threading.get_ident()] = connection, time.monotonic() + self._seconds
            # After a fork the thread is gone, and another one is started here.
            if self._watcher is None or not self._watcher.is_alive():
                self._watcher = threading.Thread(target=self._watch, daemon=True)
                self._watcher.start()

    def mark_read(self) -> None:
        """The request of this thread is read: the answer may take as long as it takes."""
        with self._lock:
            self._reading.pop(threading.get_ident(), None)

    def _watch(self) -> None:
        while True:
            time.sleep(self._seconds / 10)
            now, cut = time.monotonic(), []
            with self._lock:
                for thread, (connection, ends_at) in [*self._reading.items()]:
                    if ends_at <= now:
                        del self._reading[thread]
                        cut.append(connection.client)
                        # Within the lock: after it the descriptor may be another connection's.
                        with suppress(OSError):
                            connection.sock.shutdown(socket.SHUT_RD)
            for client in cut:
                address = client[0] if isinstance(client, tuple) else ""
                log.warning("slow_request_cut", address=address, seconds=self._seconds)


def bound_reading(app: Flask, within: timedelta) -> None:
    """Cut slow requests off, where gunicorn serves the application by threads.

    Its worker of one thread needs none of it: it is ended by gunicorn's own `--timeout`.
    """
    gthread = sys.modules.get(GUNICORN)
    if gthread is None:
        return
    deadlines = ReadDeadlines(within)
    serve: Callable[[object, object], object] = gthread.ThreadWorker.handle

    @wraps(serve)
    def serve_in_time(worker: object, connection: object) -> object:
        deadlines.begin(connection)
        try:
            return serve(worker, connection)
        finally:
            deadlines.mark_read()

    gthread.ThreadWorker.handle = serve_in_time

    @app.after_request
    def note_read(response: Response) -> Response:
        deadlines.mark_read()
        return response
