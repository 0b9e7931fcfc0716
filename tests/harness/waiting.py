"""Waiting on a condition instead of on time."""

import threading
import time
from collections.abc import Callable

PAUSE = threading.Event()


def wait_until(holds: Callable[[], object], seconds: float = 20) -> None:
    """Look again and again, up to `seconds`; fails with the last look's story in the traceback."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"it did not come to hold within {seconds:g} s"
        PAUSE.wait(0.02)
