"""One request in fal's queue, which may be queried repeatedly: status, result, cancellation.

COMPLETED covers success, failure and cancellation alike; `error`, `error_type` and the code of the
result tell them apart (fal-api, section 3). A status call that fails proves nothing. Stages use
`RequestClient` directly, users by way of `client.FalClient`; both read the same `Progress`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Protocol, TypeAlias
from urllib.parse import quote

import httpx
from pydantic import JsonValue, SecretStr

from worker.fal.billing import read_units
from worker.fal.completion import Completion, names_video, read_text
from worker.fal.errors import parse_failure, read_retry_header
from worker.fal.http import (
    MAX_REPLY_BYTES,
    Reply,
    accept_url,
    build_client,
    query,
)
from worker.ground.clock import RETENTION

# A result that travels as a data URI is as large as its video, and takes its time.
MAX_RESULT_BYTES = 256 * 1024 * 1024
RESULT_TIME = timedelta(minutes=3)
# For its header alone, which other sources can stand in for.
UNITS_TIME = timedelta(seconds=10)
# With all log entries.
MAX_STATUS_BYTES = 32 * 1024 * 1024
# These path heads keep one segment more than owner and app in their follow-up URLs.
NAMESPACES = frozenset({"workflows", "comfy"})
NOT_FOUND = frozenset({404, 410})

# What a row can hold of a status: its newest log entries, and numbers within reason.
MAX_ENTRIES = 200
MAX_LOG_BYTES = 32 * 1024
MAX_MESSAGE = 2_000
MAX_WORD = 64
HIGHEST = 10**9
LONGEST_RUN = timedelta(days=365).total_seconds()

# A result of 10 KB or more is kept for this long; with stored payloads longer, except in sync mode.
LARGE_RETENTION = timedelta(minutes=6)
# A result repeats the prompt, and has about 1 KB besides.
LARGE_PROMPT = 8 * 1024

LogEntry: TypeAlias = dict[str, str]


class RequestRef(Protocol):
    """A request's endpoint, and its URLs as far as fal has returned them."""

    @property
    def endpoint(self) -> str: ...
    @property
    def status_url(self) -> str | None: ...
    @property
    def response_url(self) -> str | None: ...
    @property
    def cancel_url(self) -> str | None: ...


# ------------------------------------------------------------------ what a reply means; pure


@dataclass(frozen=True, slots=True)
class Progress:
    """A status reply; None is what it does not state. The newest log entries come last.

    `status` is IN_QUEUE, IN_PROGRESS (which may go back to IN_QUEUE, if a runner dies) or
    COMPLETED, then with `error` if the request failed or was cancelled. `queue_position` is the
    number of requests ahead. A log entry has `message`, and `timestamp` and `level` if stated.
    """

    status: str
    queue_position: int | None = None
    inference_seconds: float | None = None
    logs: tuple[LogEntry, ...] | None = None
    error: str | None = None
    error_type: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.status == "COMPLETED"


@dataclass(frozen=True, slots=True)
class Pending:
    """Queued or running."""

    status: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """fal does not know the request, or no longer: 404."""


@dataclass(frozen=True, slots=True)
class ResultGone:
    """The request is completed, without error, and its result can no longer be read: 404."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """The reply, or its absence, proves nothing."""

    message: str
    http_status: int | None = field(default=None, compare=False)


Known = Completion | Pending | ResultGone
Truth = Known | Forgotten | Unclear


class CancelAnswer(StrEnum):
    """fal's answer to a cancellation; UNCLEAR if there was none."""

    OK = "OK"
    REQUESTED = "CANCELLATION_REQUESTED"
    ALREADY_COMPLETED = "ALREADY_COMPLETED"
    NOT_FOUND = "NOT_FOUND"
    UNCLEAR = "UNCLEAR"


def read_progress(given: Mapping[str, JsonValue]) -> Progress | None:
    """Read a status object, bounded to what a row can hold; None if it names no known status."""
    status = given.get("status")
    if not isinstance(status, str) or status not in {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}:
        return None
    logs = bound_logs(found) if isinstance(found := given.get("logs"), list) else None
    if status != "COMPLETED":
        place = _bound(given.get("queue_position"), HIGHEST) if status == "IN_QUEUE" else None
        return Progress(status, None if place is None else int(place), logs=logs)
    metrics = given.get("metrics")
    took = _bound(metrics.get("inference_time"), LONGEST_RUN) if isinstance(metrics, dict) else None
    # Text is promised; an error of another type is still an error.
    error, error_type = (read_text(given.get(name) or None) for name in ("error", "error_type"))
    return Progress(status, None, took, logs, error or error_type, error_type)


def _bound(value: JsonValue, most: float) -> float | None:
    """A number from zero to `most`; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= most else None


def bound_logs(entries: Iterable[JsonValue]) -> tuple[LogEntry, ...]:
    """The newest entries, as many as may be stored. Models log any JSON: it becomes text."""
    kept: list[LogEntry] = []
    left = MAX_LOG_BYTES
    for entry in reversed(list(entries)[-MAX_ENTRIES:]):
        given = entry if isinstance(entry, dict) else {"message": entry}
        words = {name: given.get(name) for name in ("timestamp", "level")}
        known = {name: word[:MAX_WORD] for name, word in words.items() if isinstance(word, str)}
        message = given.get("message")
        text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
        known["message"] = text[:MAX_MESSAGE]
        left -= len(json.dumps(known, ensure_ascii=False).encode())
        if left < 0:
            break
        kept.append(known)
    return tuple(reversed(kept))


def list_new(logs: list[LogEntry], before: list[LogEntry]) -> list[LogEntry]:
    """Entries after the last one seen before; all of them if that one is no longer there."""
    places = [place for place, entry in enumerate(logs) if before and entry == before[-1]]
    return logs[places[-1] + 1 :] if places else logs


def read_status(reply: Reply) -> Progress | Forgotten | Unclear:
    """Read a status reply. It is 202 while pending and 200 when COMPLETED, but the body decides."""
    if reply.http_status in NOT_FOUND:
        return Forgotten()
    body = reply.parse_json()
    if not httpx.codes.is_success(reply.http_status) or not isinstance(body, dict):
        return Unclear(f"the status call answered {reply.http_status}", reply.http_status)
    return read_progress(body) or Unclear("the status call named no known status")


def sort_result(reply: Reply, ended: Progress, fal_request_id: str) -> Truth:
    """Read the result of a completed request.

    A failed run answers with the model's own code and words. A 5xx of a run that did not fail is
    transient (section 3.3), and a 404 that is not in a model's words means that the result is gone.
    """
    body = reply.parse_json()
    retryable = read_retry_header(reply.headers)
    is_success = httpx.codes.is_success(reply.http_status)
    if ended.error is not None and not (is_success and names_video(body)):
        return describe_end(ended, fal_request_id, body, retryable=retryable)
    if is_success:
        if body is None:
            return Unclear("the result is not JSON")
        units = read_units(reply.headers)
        return Completion(fal_request_id, None, "OK", body, None, billable_units=units)
    is_models_own = isinstance(body, dict) and isinstance(body.get("detail"), list)
    if httpx.codes.is_client_error(reply.http_status) and is_models_own:
        error = f"HTTP {reply.http_status}"
        return Completion(fal_request_id, None, "ERROR", body, error, retryable=retryable)
    if reply.http_status in NOT_FOUND:
        return ResultGone()
    return Unclear(f"the result call answered {reply.http_status}", reply.http_status)


def describe_end(
    ended: Progress, fal_request_id: str, body: JsonValue, *, retryable: bool | None = None
) -> Completion:
    """The failure as a webhook would report it: in the model's own words, or the platform's."""
    platform: JsonValue = {"detail": ended.error, "error_type": ended.error_type}
    payload = body if parse_failure(body, "") is not None else platform
    return Completion(fal_request_id, None, "ERROR", payload, ended.error, retryable=retryable)


def read_cancel_answer(reply: Reply) -> CancelAnswer:
    """Read the answer to a cancellation. Sources disagree on its codes, so the words count too."""
    try:
        return CancelAnswer(str(reply.parse_object().get("status")))
    except ValueError:
        if httpx.codes.is_success(reply.http_status):
            return CancelAnswer.REQUESTED
        return CancelAnswer.NOT_FOUND if reply.http_status in NOT_FOUND else CancelAnswer.UNCLEAR


def find_retention(given: Mapping[str, JsonValue]) -> timedelta:
    """How long fal surely keeps the result of this input (fal-api, section 3.3)."""
    prompt = given.get("prompt")
    is_long = isinstance(prompt, str) and len(prompt.encode()) >= LARGE_PROMPT
    return LARGE_RETENTION if is_long or given.get("sync_mode") is True else RETENTION


# ------------------------------------------------------------------ calls


@dataclass(frozen=True, slots=True)
class Look:
    """What fal says of a request; `progress` is None if no status reply could be read."""

    truth: Truth
    progress: Progress | None = None


class RequestClient:
    """Queries and cancels requests. The key goes to `base_url` and nowhere else.

    No call raises: what proves nothing is `Unclear`.
    """

    def __init__(self, base_url: str, credentials: SecretStr) -> None:
        self._base_url = base_url
        self._http = build_client(credentials)

    def close(self) -> None:
        self._http.close()

    def look(self, ref: RequestRef, fal_request_id: str) -> Look:
        """Status, and once completed the result, in fal's own words."""
        match self.find_status(ref, fal_request_id):
            case Progress(has_ended=False) as status:
                return Look(Pending(status.status), status)
            case Progress() as status:
                return Look(self.read_result(ref, fal_request_id, status), status)
            case Forgotten() as status:
                # The status may be gone or unavailable while the result can still be read.
                truth = self.read_result(ref, fal_request_id, Progress("COMPLETED"))
                return Look(truth if isinstance(truth, Completion) else status)
            case unclear:
                return Look(unclear)

    def find_truth(self, ref: RequestRef, fal_request_id: str) -> Truth:
        """As `look`, without the progress."""
        return self.look(ref, fal_request_id).truth

    def find_progress(
        self, ref: RequestRef, fal_request_id: str, limit: timedelta
    ) -> Progress | None:
        """The request's progress, if fal answers in time."""
        status = self.find_status(ref, fal_request_id, limit=limit)
        return status if isinstance(status, Progress) else None

    def find_status(
        self,
        ref: RequestRef,
        fal_request_id: str,
        *,
        logs: bool = True,
        limit: timedelta | None = None,
    ) -> Progress | Forgotten | Unclear:
        """Where the request is now."""
        url = self._choose_url(ref.status_url, ref, fal_request_id, "/status")
        if logs:
            url += "&logs=1" if "?" in url else "?logs=1"
        reply = self._call("GET", url, max_bytes=MAX_STATUS_BYTES, limit=limit)
        return read_status(reply) if isinstance(reply, Reply) else reply

    def read_result(self, ref: RequestRef, fal_request_id: str, ended: Progress) -> Truth:
        """What a request with this last status has come to."""
        url = self._choose_url(ref.response_url, ref, fal_request_id, "")
        reply = self._call("GET", url, max_bytes=MAX_RESULT_BYTES, limit=RESULT_TIME)
        if isinstance(reply, Unclear) and ended.error is not None:
            # Without its result the reason is unknown: a kept connection may just have closed.
            reply = self._call("GET", url, max_bytes=MAX_RESULT_BYTES, limit=RESULT_TIME)
        if isinstance(reply, Reply):
            return sort_result(reply, ended, fal_request_id)
        return reply if ended.error is None else describe_end(ended, fal_request_id, None)

    def read_billable_units(self, ref: RequestRef, fal_request_id: str) -> Decimal | Unclear:
        """How many units fal bills for a request that has a result, by a header of that result.

        A result that is too large because it holds its video is not read for it.
        """
        url = self._choose_url(ref.response_url, ref, fal_request_id, "")
        reply = self._call("GET", url, limit=UNITS_TIME)
        if isinstance(reply, Unclear):
            return reply
        if not httpx.codes.is_success(reply.http_status):
            return Unclear(f"the result call answered {reply.http_status}", reply.http_status)
        units = read_units(reply.headers)
        return Unclear("the result states no units") if units is None else units

    def cancel(self, ref: RequestRef, fal_request_id: str) -> CancelAnswer:
        """Have fal remove the request from its queue, or stop it."""
        url = self._choose_url(ref.cancel_url, ref, fal_request_id, "/cancel")
        reply = self._call("PUT", url)
        return read_cancel_answer(reply) if isinstance(reply, Reply) else CancelAnswer.UNCLEAR

    def _call(
        self,
        method: str,
        url: str,
        *,
        max_bytes: int = MAX_REPLY_BYTES,
        limit: timedelta | None = None,
    ) -> Reply | Unclear:
        reply = query(self._http, method, url, max_bytes=max_bytes, limit=limit)
        return reply if isinstance(reply, Reply) else Unclear(reply)

    def _choose_url(
        self, returned: str | None, ref: RequestRef, fal_request_id: str, suffix: str
    ) -> str:
        """As returned, if the key may go there; else built from owner and app (section 2.2)."""
        known = accept_url(returned, self._base_url)
        if known is not None:
            return known
        parts = ref.endpoint.split("/")
        app = "/".join(parts[: 3 if parts[0] in NAMESPACES else 2])
        return f"{self._base_url}/{app}/requests/{quote(fal_request_id, safe='')}{suffix}"
