"""fal's queue from Python, without the job table.

    with FalClient(SecretStr(key)) as fal:
        handle = fal.submit("fal-ai/ltx-2.3-22b/extend-video", arguments)
        for status in fal.iter_events(handle, logs=True):
            print(status)
        print(fal.result(handle)["video"]["url"])

The paid POST is sent once, even if its outcome is unknown. Queries and cancellations may be
repeated. The calls are those of the stages, `submit.QueueClient` and `requests.RequestClient`; here
their outcomes become exceptions (`errors.py`).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from pydantic import JsonValue, SecretStr

from worker.fal import errors
from worker.fal.completion import Completion
from worker.fal.http import ACCOUNT_CODES
from worker.fal.options import RequestOptions
from worker.fal.requests import CancelAnswer, Progress, RequestClient, Unclear
from worker.fal.submit import Accepted, Ambiguous, QueueClient, RefusalClass

QUEUE_URL = "https://queue.fal.run"
# How long following goes on while no status can be read.
STATUS_TIMEOUT = timedelta(minutes=1)
POLL_INTERVAL = timedelta(milliseconds=500)


@dataclass(frozen=True, slots=True)
class Handle:
    """A request at fal. Endpoint and id are enough: the URLs are as fal returned them, if known."""

    endpoint: str
    fal_request_id: str
    status_url: str | None = None
    response_url: str | None = None
    cancel_url: str | None = None


class FalClient:
    """Submits, follows, fetches and cancels. The key goes to `queue_url` only."""

    def __init__(self, credentials: SecretStr, *, queue_url: str = QUEUE_URL) -> None:
        self._queue = QueueClient(queue_url, credentials)
        self._requests = RequestClient(queue_url, credentials)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._queue.close()
        self._requests.close()

    def submit(
        self,
        endpoint: str,
        arguments: Mapping[str, JsonValue],
        *,
        options: RequestOptions | None = None,
        webhook_url: str | None = None,
    ) -> Handle:
        """Buy one run: a single POST, never repeated.

        Raises SubmissionRefusedError, SubmissionPostponedError and AccountRefusedError, after which
        nothing is queued, and SubmissionUnknownError, after which it may be.
        """
        options = options or RequestOptions()
        reply = self._queue.submit(endpoint, arguments, webhook_url=webhook_url, options=options)
        if isinstance(reply, Accepted):
            urls = (reply.status_url, reply.response_url, reply.cancel_url)
            return Handle(endpoint, reply.fal_request_id, *urls)
        if isinstance(reply, Ambiguous):
            raise errors.SubmissionUnknownError(reply.message, http_status=reply.http_status)
        kinds: dict[RefusalClass, type[errors.FalError]] = {
            RefusalClass.INPUT: errors.SubmissionRefusedError,
            RefusalClass.ACCOUNT: errors.AccountRefusedError,
        }
        raise kinds.get(reply.why, errors.SubmissionPostponedError)(
            reply.message,
            http_status=reply.http_status,
            error_type=reply.code,
            details=reply.details,
            retry_after=reply.retry_after,
        )

    def status(self, handle: Handle, *, logs: bool = False) -> Progress:
        """Where the request is now.

        Raises RequestNotFoundError, RequestUnclearError and AccountRefusedError.
        """
        status = self._requests.find_status(handle, handle.fal_request_id, logs=logs)
        if isinstance(status, Progress):
            return status
        raise _explain(handle, status)

    def result(self, handle: Handle) -> dict[str, JsonValue]:
        """The model's output, once the request is completed; `iter_events` waits for that.

        Raises RequestPendingError before, what `status` raises, and for a request that failed a
        RequestFailedError: InputRefusedError, RunFailedError or RequestCancelledError.
        """
        status = self.status(handle)
        if not status.has_ended:
            raise _explain(handle, status)
        truth = self._requests.read_result(handle, handle.fal_request_id, status)
        if isinstance(truth, Completion) and truth.status == "ERROR":
            words = truth.error or "fal reports an error without a message"
            failure = errors.parse_failure(truth.payload, words)
            failure = failure or errors.FalFailure(errors.UNNAMED_CODE, words)
            known = errors.find_error_type(failure.code, names_fields=bool(failure.details))
            raise errors.FAILURES[known.error_class](
                failure.message,
                fal_request_id=handle.fal_request_id,
                error_type=failure.code,
                details=failure.details,
                retryable=truth.retryable,
            )
        if isinstance(truth, Completion) and isinstance(truth.payload, dict):
            return truth.payload
        raise _explain(handle, truth)

    def cancel(self, handle: Handle) -> CancelAnswer:
        """Have fal remove or stop the request; a running one may complete all the same.

        Raises RequestUnclearError where there was no answer.
        """
        answer = self._requests.cancel(handle, handle.fal_request_id)
        if answer is CancelAnswer.UNCLEAR:
            raise _explain(handle, Unclear("fal did not answer the cancellation"))
        return answer

    def iter_events(
        self,
        handle: Handle,
        *,
        logs: bool = False,
        interval: timedelta = POLL_INTERVAL,
        timeout: timedelta | None = None,
    ) -> Iterator[Progress]:
        """Each status that differs from the one before, the last one COMPLETED.

        By polling every `interval`. Logs are the newest so far. Raises RequestPendingError after
        `timeout`, and what `status` raises, though RequestUnclearError only after a minute without
        a usable answer.
        """
        began = read_at = time.monotonic()
        known: Progress | None = None
        while True:
            try:
                status = self.status(handle, logs=logs)
            except errors.RequestUnclearError:
                if time.monotonic() - read_at > STATUS_TIMEOUT.total_seconds():
                    raise
            else:
                if status != known:
                    known = status
                    yield status
                if status.has_ended:
                    return
                read_at = time.monotonic()
            pause = interval.total_seconds()
            if timeout is not None:
                pause = min(pause, began + timeout.total_seconds() - time.monotonic())
            if pause < 0:
                raise _explain(handle, known)
            time.sleep(pause)

    def subscribe(  # noqa: PLR0913 - one parameter for each choice, as httpx has it
        self,
        endpoint: str,
        arguments: Mapping[str, JsonValue],
        *,
        options: RequestOptions | None = None,
        on_queue_update: Callable[[Progress], object] | None = None,
        logs: bool = False,
        interval: timedelta = POLL_INTERVAL,
        timeout: timedelta | None = None,
    ) -> dict[str, JsonValue]:
        """Submit, follow to the end, and return the output.

        After `timeout` the request is cancelled and RequestPendingError names it. Else it raises as
        `submit`, `iter_events` and `result` do.
        """
        handle = self.submit(endpoint, arguments, options=options)
        try:
            for status in self.iter_events(handle, logs=logs, interval=interval, timeout=timeout):
                if on_queue_update is not None:
                    on_queue_update(status)
        except errors.RequestPendingError:
            with suppress(errors.RequestUnclearError):
                self.cancel(handle)
            raise
        return self.result(handle)


def _explain(handle: Handle, found: object) -> errors.FalError:
    """Why there is no status, or no result, to return."""
    kind: type[errors.FalError]
    http_status: int | None = None
    match found:
        case Progress() | None:
            kind, message = errors.RequestPendingError, "the request has not ended yet"
        case Unclear():
            message, http_status = found.message, found.http_status
            is_refused = http_status in ACCOUNT_CODES
            kind = errors.AccountRefusedError if is_refused else errors.RequestUnclearError
        case Completion():
            kind, message = errors.RequestUnclearError, "the result is no JSON object"
        case _:
            kind, message = errors.RequestNotFoundError, "fal does not have the request any more"
    return kind(message, fal_request_id=handle.fal_request_id, http_status=http_status)
