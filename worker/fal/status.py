"""What fal says of a request that it has not forgotten: waiting, running or completed.

COMPLETED covers success, failure and cancellation alike; `error` tells them apart. Logs are there
if they were asked for, and bounded: the newest entries, each shortened.
"""

import json
import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from pydantic import JsonValue

MAX_LOGS = 1000
MAX_LOG_MESSAGE = 2000
MAX_LOG_WORD = 64


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A line that the model wrote; when, as fal says it, and with fal's word for its level."""

    message: str
    timestamp: str | None = None
    level: str | None = None


@dataclass(frozen=True, slots=True)
class Queued:
    """Waiting; `position` is how many requests go before it."""

    position: int | None = None
    logs: tuple[LogEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class InProgress:
    """Running. It may go back to waiting, if its runner dies."""

    logs: tuple[LogEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Completed:
    """Ended; with `error` if it failed or was cancelled."""

    logs: tuple[LogEntry, ...] = ()
    inference_time: timedelta | None = None
    error: str | None = None
    error_type: str | None = None


RequestStatus: TypeAlias = Queued | InProgress | Completed


def parse_status(body: JsonValue) -> RequestStatus | None:
    """Read a status object; None if it names no status that we know."""
    if not isinstance(body, dict):
        return None
    logs = parse_logs(body.get("logs"))
    match body.get("status"):
        case "IN_QUEUE":
            position = body.get("queue_position")
            return Queued(position if type(position) is int and position >= 0 else None, logs)
        case "IN_PROGRESS":
            return InProgress(logs)
        case "COMPLETED":
            error, error_type = _as_text(body.get("error")), _as_text(body.get("error_type"))
            inference_time = _read_inference_time(body.get("metrics"))
            return Completed(logs, inference_time, error or error_type, error_type)
        case _:
            return None


def parse_logs(items: JsonValue) -> tuple[LogEntry, ...]:
    """The newest entries; empty if there are none, or in a form of their own."""
    if not isinstance(items, list):
        return ()
    entries = (_read_entry(item) for item in items[-MAX_LOGS:])
    return tuple(entry for entry in entries if entry is not None)


def _read_entry(item: JsonValue) -> LogEntry | None:
    if not isinstance(item, dict) or not isinstance(item.get("message"), str):
        return None
    return LogEntry(
        str(item["message"])[:MAX_LOG_MESSAGE],
        _as_word(item.get("timestamp")),
        _as_word(item.get("level")),
    )


def _as_word(value: JsonValue) -> str | None:
    return value[:MAX_LOG_WORD] if isinstance(value, str) else None


def _read_inference_time(metrics: JsonValue) -> timedelta | None:
    seconds = metrics.get("inference_time") if isinstance(metrics, dict) else None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    # Longer than fal lets anything run, it is no time.
    within = math.isfinite(seconds) and 0 <= seconds <= timedelta(days=365).total_seconds()
    return timedelta(seconds=seconds) if within else None


def _as_text(value: JsonValue) -> str | None:
    """Text is promised; an error of another shape is still an error."""
    if isinstance(value, str):
        return value or None
    return json.dumps(value, ensure_ascii=False) if value else None
