"""Following a request at fal to its end: by the event stream while it works, else by asking."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

import httpx

from worker.fal.client_errors import Handle, RequestPendingError, RequestUnclearError
from worker.fal.completion import make_storable
from worker.fal.events import EventParser
from worker.fal.requests import RequestClient
from worker.fal.status import MAX_LOGS, Completed, LogEntry, RequestStatus, parse_status

# fal's stream has a comment every 15 s where there is nothing to say.
STREAM_SILENCE = timedelta(seconds=45)
# How long asking goes on while nothing is learnt.
PATIENCE = timedelta(minutes=1)
# A stream that breaks, or says what nobody understands, is no reason to stop.
STREAM_ERRORS = (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, RecursionError)


@dataclass(frozen=True, slots=True)
class Follower:
    """Follows one request. `ask` gets its status; `deadline` is of `time.monotonic`."""

    requests: RequestClient
    handle: Handle
    ask: Callable[[], RequestStatus]
    with_logs: bool
    interval: timedelta
    deadline: float

    def watch(self) -> Iterator[RequestStatus]:
        """Each status that differs from the one before; ends with Completed.

        Raises RequestPendingError once the deadline has passed, RequestUnclearError once nothing
        was learnt for as long as PATIENCE, and what else `ask` raises.
        """
        told: RequestStatus | None = None
        for status in self._watch_all():
            if status != told:
                yield status
                told = status

    def _watch_all(self) -> Iterator[RequestStatus]:
        with suppress(*STREAM_ERRORS):
            for status in self._stream():
                yield status
                if isinstance(status, Completed):
                    return
        yield from self._poll()

    def _stream(self) -> Iterator[RequestStatus]:
        """What the event stream says; it may end early, or not begin."""
        logs: tuple[LogEntry, ...] = ()
        parser = EventParser()
        silence = timedelta(seconds=min(STREAM_SILENCE.total_seconds(), self._read_clock()))
        with self.requests.stream_status(
            self.handle, self.handle.fal_request_id, with_logs=self.with_logs, silence=silence
        ) as response:
            if not is_event_stream(response):
                return
            for chunk in response.iter_raw():
                for text in parser.feed(chunk):
                    status = parse_status(make_storable(json.loads(text)))
                    if status is not None:
                        logs = add_logs(logs, status.logs)
                        yield replace(status, logs=logs)
                if self._read_clock() <= 0:
                    return

    def _poll(self) -> Iterator[RequestStatus]:
        learnt = time.monotonic()
        while True:
            try:
                status = self.ask()
            except RequestUnclearError:
                if time.monotonic() - learnt > PATIENCE.total_seconds():
                    raise
            else:
                learnt = time.monotonic()
                yield status
                if isinstance(status, Completed):
                    return
            left = self._read_clock()
            if left <= 0:
                message = "the request has not ended in time"
                raise RequestPendingError(message, fal_request_id=self.handle.fal_request_id)
            time.sleep(min(self.interval.total_seconds(), left))

    def _read_clock(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()


def is_event_stream(response: httpx.Response) -> bool:
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return response.status_code == httpx.codes.OK and kind == "text/event-stream"


def add_logs(known: tuple[LogEntry, ...], told: tuple[LogEntry, ...]) -> tuple[LogEntry, ...]:
    """All entries so far, whether an event repeats them or has the new ones only."""
    whole = told if known and told[: len(known)] == known else (*known, *told)
    return whole[-MAX_LOGS:]
