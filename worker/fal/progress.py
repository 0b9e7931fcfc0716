"""How far a request is, as fal's status reply tells it: pure, and bounded before it is stored."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import JsonValue

from worker.fal.status import Completed, Queued, parse_status

MAX_ENTRIES = 200
MAX_LOG_BYTES = 32 * 1024
MAX_MESSAGE = 2_000
MAX_WORD = 64
HIGHEST = 10**9

LogLine: TypeAlias = dict[str, str]


@dataclass(frozen=True, slots=True)
class Progress:
    """A status reply's content; None is what it does not tell. The newest log entries come last."""

    status: str
    queue_position: int | None = None
    inference_seconds: float | None = None
    logs: tuple[LogLine, ...] | None = None


def read_progress(body: JsonValue) -> Progress | None:
    """What a status reply tells; None if it names no status that we know."""
    status = parse_status(body)
    if status is None or not isinstance(body, dict):
        return None
    position = status.position if isinstance(status, Queued) else None
    took = status.inference_time if isinstance(status, Completed) else None
    logs = body.get("logs")
    return Progress(
        str(body["status"]),
        position if position is not None and position < HIGHEST else None,
        None if took is None else took.total_seconds(),
        bound_logs(logs) if isinstance(logs, list) else None,
    )


def bound_logs(entries: Iterable[JsonValue]) -> tuple[LogLine, ...]:
    """The newest entries, as many as may be stored; each with `message`, most with more."""
    kept: list[LogLine] = []
    left = MAX_LOG_BYTES
    for entry in reversed(list(entries)[-MAX_ENTRIES:]):
        known = _read_line(entry)
        left -= len(json.dumps(known, ensure_ascii=False).encode())
        if left < 0:
            break
        kept.append(known)
    return tuple(reversed(kept))


def list_new(logs: list[LogLine], before: list[LogLine]) -> list[LogLine]:
    """Entries after the last one that was seen before; all of them if it is not there any more."""
    places = [place for place, entry in enumerate(logs) if before and entry == before[-1]]
    return logs[places[-1] + 1 :] if places else logs


def _read_line(entry: JsonValue) -> LogLine:
    """Models log what they like: whatever is no text is shown as JSON."""
    given = entry if isinstance(entry, dict) else {"message": entry}
    words = {name: given.get(name) for name in ("timestamp", "level")}
    known = {name: word[:MAX_WORD] for name, word in words.items() if isinstance(word, str)}
    message = given.get("message")
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    return {**known, "message": text[:MAX_MESSAGE]}
