"""Logging as it was before, for tests of what sets it up."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog


@contextmanager
def preserved_logging() -> Iterator[None]:
    """Whatever the block does to the loggers is undone after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    chatty = {name: logging.getLogger(name).level for name in ("httpx", "httpcore")}
    try:
        yield
    finally:
        root.handlers, root.level = handlers, level
        for name, before in chatty.items():
            logging.getLogger(name).setLevel(before)
        structlog.reset_defaults()
