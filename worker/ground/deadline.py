"""Bound a call as a whole. Socket timeouts bound single reads, and name look-ups have none."""

from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from threading import Thread
from typing import TypeVar

V = TypeVar("V")


def call_within(limit: timedelta, function: Callable[[], V]) -> V:
    """The function's result, or its exception; TimeoutError once `limit` has passed.

    The call goes on in its thread after that, so it needs bounds of its own to end some time.
    """
    outcome: Future[V] = Future()
    Thread(target=_settle, args=(outcome, function), name="call_within", daemon=True).start()
    return outcome.result(limit.total_seconds())


def _settle(outcome: Future[V], function: Callable[[], V]) -> None:
    try:
        outcome.set_result(function())
    except BaseException as error:  # noqa: BLE001 - the waiting thread gets it, whatever it is
        outcome.set_exception(error)
