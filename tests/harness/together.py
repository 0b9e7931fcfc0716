"""Calls that run at the same time, each in a thread of its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

V = TypeVar("V")


def call_together(*calls: Callable[[], V]) -> list[V]:
    """Start all calls at one moment; their results in order, or the first one's exception."""
    barrier = Barrier(len(calls))

    def start(call: Callable[[], V]) -> V:
        barrier.wait(timeout=10)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(start, calls))
