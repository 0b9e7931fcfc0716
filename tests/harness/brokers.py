"""Brokers that do not do what a broker should, and a look into one that does."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis


@dataclass
class BlackHole:
    """Takes connections and never says a word; `on_connect` is called for each."""

    port: int
    on_connect: Callable[[], None] = lambda: None
    connections: list[socket.socket] = field(default_factory=list)

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def amqp_url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"


@contextmanager
def open_black_hole() -> Iterator[BlackHole]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hole = BlackHole(listener.getsockname()[1])
        thread = threading.Thread(target=_swallow, args=(listener, hole))
        thread.start()
        try:
            yield hole
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in hole.connections:
                connection.close()


def _swallow(listener: socket.socket, hole: BlackHole) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        hole.connections.append(connection)
        hole.on_connect()


def find_closed_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def connect_redis(redis_url: str) -> redis.Redis:
    """A client, closed by its context."""
    return redis.Redis(unix_socket_path=redis_url.removeprefix("redis+socket://"))


def take_messages(redis_url: str, queue: str) -> list[dict[str, Any]]:
    """The raw messages of a queue, the oldest first; the queue is empty after it."""
    with connect_redis(redis_url) as client, client.pipeline() as pipeline:
        pipeline.lrange(queue, 0, -1)
        pipeline.delete(queue)
        raw, _ = pipeline.execute()
    return [json.loads(message) for message in reversed(raw)]
