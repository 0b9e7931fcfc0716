"""Structured logging: JSON for programs, colour for a terminal; one line per fact, no secrets."""

import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, Literal, TypeAlias

import structlog
from pydantic import SecretBytes, SecretStr
from structlog.typing import EventDict

LogFormat = Literal["auto", "json", "text"]

LEAST_LEVELS = {
    # They log each URL, and a webhook URL holds its token.
    "httpx": logging.WARNING,
    "httpcore": logging.WARNING,
    # Three lines for every sweep that found nothing.
    "celery.beat": logging.WARNING,
    "celery.worker.strategy": logging.WARNING,
    # The body of each message, at level debug.
    "celery.pool": logging.WARNING,
    # A traceback beside our own line on a refused message.
    "celery.app.trace": logging.ERROR,
    # A line for each reconnection; `broker_unavailable` is logged once.
    "celery.worker.consumer.consumer": logging.ERROR,
}


def configure_logging(level: str, log_format: LogFormat, secrets: Iterable[str] = ()) -> None:
    """Send both structlog and the standard library's loggers to stderr in one format.

    `secrets` are masked wherever they occur, besides what is masked anyway.
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
    has_terminal = sys.stderr.isatty()
    renderers: list[structlog.typing.Processor] = [structlog.processors.JSONRenderer()]
    if log_format == "text" or (log_format == "auto" and has_terminal):
        # Not rich's tracebacks: they print local variables, and these hold keys and tokens.
        plain = structlog.dev.plain_traceback
        console = structlog.dev.ConsoleRenderer(colors=has_terminal, exception_formatter=plain)
        renderers = [_escape_values, console]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # Masked after the traceback has become text, and before anything is written.
                structlog.processors.format_exc_info,
                make_masker(secrets),
                *renderers,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name, least in LEAST_LEVELS.items():
        logging.getLogger(name).setLevel(least)


def join_host_logging() -> None:
    """In another service's process, log as it does, instead of printing to its stdout."""
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, structlog.stdlib.render_to_log_kwargs],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _escape_values(_logger: object, _method: str, fact: EventDict) -> EventDict:
    """Keep foreign text on one line, as text, a terminal's control sequences too; JSON does so."""
    for name, value in fact.items():
        if isinstance(value, str) and not value.isprintable():
            kept = "\n" if name == "exception" else ""
            fact[name] = "".join(
                one if one.isprintable() or one in kept else one.encode("unicode_escape").decode()
                for one in value
            )
    return fact


# ------------------------------------------------------------------ masking: by type, name, form

MASK = "****"
# Shorter ones would mask parts of usual words.
SHORTEST_SECRET = 6
DEEPEST = 6
_NAMES = re.compile(
    r"(?i)(^|_)(token|secret|password|passwd|authorization|cookie|credentials?|api_key|fal_key)(_|$)"
    r"|^key$"
)
Form: TypeAlias = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]
"""What a secret looks like, and what is shown instead."""
FORMS: tuple[Form, ...] = (
    # A webhook's URL is as good as its token.
    (re.compile(r"(/webhooks/fal/)[^/?#\s\"'\\]+"), rf"\1{MASK}"),
    (
        # Possessive, or the spaces of a long text would be tried in every division.
        re.compile(
            r"(?i)\b(authorization['\"]?\s*+[:=]\s*+(?:b?['\"])?+(?:(?:key|bearer|basic)\b)?+\s*+)"
            r"[^\s'\",}]+"
        ),
        rf"\1{MASK}",
    ),
    # fal's keys: an id, a colon, and the secret half.
    (re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}:[0-9A-Za-z]{16,}"), MASK),
    (re.compile(r"(://[^:/@\s]*:)[^@/\s]+(?=@)"), rf"\1{MASK}"),
    (re.compile(r"(?i)(\bpassword=)[^&\s'\"]+"), rf"\1{MASK}"),
)  # fmt: skip - one pattern a line

Processor = Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]


def compile_secrets(secrets: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern of our own secrets, the longest first; None if there are none."""
    known = sorted({one for one in secrets if len(one) >= SHORTEST_SECRET}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, known))) if known else None


def make_masker(secrets: Iterable[str] = ()) -> Processor:
    """A processor for structlog that masks what is, is called, or looks like a secret."""
    pattern = compile_secrets(secrets)

    def mask(_logger: object, _method: str, fact: MutableMapping[str, Any]) -> dict[str, Any]:
        return {
            name: MASK if _NAMES.search(name) and value else mask_value(value, pattern)
            for name, value in fact.items()
        }

    return mask


def mask_value(value: object, pattern: re.Pattern[str] | None = None, depth: int = 0) -> object:
    """The value without secrets, however deep; what holds none is returned as it is."""
    match value:
        case bool() | int() | float() | None:
            return value
        case _ if depth > DEEPEST or isinstance(value, SecretStr | SecretBytes):
            return MASK
        case str():
            return mask_text(value, pattern)
        case Mapping():
            return {
                name: MASK if _NAMES.search(str(name)) else mask_value(inner, pattern, depth + 1)
                for name, inner in value.items()
            }
        case list() | tuple() | set() | frozenset():
            return [mask_value(inner, pattern, depth + 1) for inner in value]
        case _:
            return mask_text(repr(value), pattern)


def mask_text(
    text: str, pattern: re.Pattern[str] | None = None, forms: Iterable[Form] = FORMS
) -> str:
    """The text without what matches `pattern` (see `compile_secrets`) or one of the forms."""
    for form, shown in forms:
        text = form.sub(shown, text)
    return text if pattern is None else pattern.sub(MASK, text)


def mask_url(url: str) -> str:
    """A setting's URL, however malformed: all that could be a password is masked."""
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    user, at, place = rest.rpartition("@")
    if ":" in user:
        rest = f"{user.partition(':')[0]}:{MASK}{at}{place}"
    return re.sub(r"(?i)(password=)[^&]*", rf"\1{MASK}", f"{scheme}{mark}{rest}")
