"""Structured logging: JSON for programs, colour for a terminal; one line per fact, no secrets."""

import logging
import sys
from collections.abc import Iterable
from typing import Literal

import structlog
from structlog.typing import EventDict

from worker.ground.masking import make_masker

LogFormat = Literal["auto", "json", "text"]

QUIETER = (
    # They log each URL, and a webhook URL holds its token.
    "httpx",
    "httpcore",
    # Three lines for every sweep that found nothing.
    "celery.beat",
    "celery.worker.strategy",
    # The body of each message, at level debug.
    "celery.pool",
)
QUIETEST = (
    # Of a refused message it would add a traceback to our own line.
    "celery.app.trace",
    # A line for each try to reach a broker that is away; `broker_unavailable` says it once.
    "celery.worker.consumer.consumer",
)


def configure_logging(level: str, log_format: LogFormat, secrets: Iterable[str] = ()) -> None:
    """Send both structlog and the standard library's loggers to stderr in one format.

    `secrets` are masked wherever they stand, besides what is masked anyway.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # Masked after the traceback has become text, and before anything is written.
                structlog.processors.format_exc_info,
                make_masker(secrets),
                *_choose_renderers(log_format),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in QUIETER:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in QUIETEST:
        logging.getLogger(name).setLevel(logging.ERROR)


def join_host_logging() -> None:
    """In another service's process, log as it does, instead of printing to its stdout."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, structlog.stdlib.render_to_log_kwargs],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def escape_unprintable(text: str, kept: str = "") -> str:
    """The text without line breaks and a terminal's control sequences, written as in Python."""
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in kept else one.encode("unicode_escape").decode()
        for one in text
    )


def _escape_values(_logger: object, _method: str, fact: EventDict) -> EventDict:
    """So that a text of others is one line and stays text; JSON escapes by itself."""
    return {
        name: escape_unprintable(value, kept="\n" if name == "exception" else "")
        if isinstance(value, str)
        else value
        for name, value in fact.items()
    }


def _choose_renderers(log_format: LogFormat) -> list[structlog.typing.Processor]:
    if log_format == "text" or (log_format == "auto" and sys.stderr.isatty()):
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # Not rich's: it prints local variables, and these hold keys and tokens.
            exception_formatter=structlog.dev.plain_traceback,
        )
        return [_escape_values, renderer]
    return [structlog.processors.JSONRenderer()]
