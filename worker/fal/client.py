"""fal's queue from Python, without the job table.

    with FalClient(SecretStr(key)) as fal:
        handle = fal.submit("fal-ai/ltx-2.3-22b/extend-video", arguments)
        for status in fal.iter_events(handle, logs=True):
            print(status)
        print(fal.result(handle)["video"]["url"])

The paid POST is sent once, whatever happens to it. Queries and cancellations may be repeated. The
calls are those of the stages, `submit.QueueClient` and `requests.RequestClient`; here their
outcomes become exceptions (`errors.py`).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

from pydantic import JsonValue, SecretStr

from worker.fal.completion import Completion
from worker.fal.errors import (
    FAILURES,
    UNNAMED_CODE,
    AccountRefusedError,
    FalError,
    FalFailure,
    RequestNotFoundError,
    RequestPendingError,
    RequestUnclearError,
    SubmissionPostponedError,
    SubmissionRefusedError,
    SubmissionUnknownError,
    find_error_type,
    parse_failure,
)
from worker.fal.http import ACCOUNT_CODES, Reply
from worker.fal.options import RequestOptions
from worker.fal.requests import (
    CancelAnswer,
    Forgotten,
    Progress,
    RequestClient,
    Unclear,
    read_status,
)
from worker.fal.submit import Ambiguous, QueueClient, RefusalClass, Refused

QUEUE_URL = "https://queue.fal.run"
CALL_LIMIT = timedelta(seconds=30)
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
    """Submits, follows, fetches and cancels. The key goes to `queue_url` and its backup only.

    `limit` bounds each call as a whole: name resolution, connection, request and reply.
    """

    def __init__(
        self,
        credentials: SecretStr,
        *,
        queue_url: str = QUEUE_URL,
        backup_url: str | None = None,
        limit: timedelta = CALL_LIMIT,
    ) -> None:
        self._queue = QueueClient(queue_url, credentials, limit=limit)
        self._requests = RequestClient(queue_url, credentials, backup_url=backup_url, limit=limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
        if isinstance(reply, Ambiguous):
            raise SubmissionUnknownError(reply.message, http_status=reply.http_status)
        if isinstance(reply, Refused):
            kinds: dict[RefusalClass, type[FalError]] = {
                RefusalClass.INPUT: SubmissionRefusedError,
                RefusalClass.ACCOUNT: AccountRefusedError,
            }
            raise kinds.get(reply.why, SubmissionPostponedError)(
                reply.message,
                http_status=reply.http_status,
                error_type=reply.code,
                details=reply.details,
                retry_after=reply.retry_after,
            )
        urls = (reply.status_url, reply.response_url, reply.cancel_url)
        return Handle(endpoint, reply.fal_request_id, *urls)

    def status(self, handle: Handle, *, logs: bool = False) -> Progress:
        """Where the request is now.

        Raises RequestNotFoundError, RequestUnclearError and AccountRefusedError.
        """
        fal_request_id = handle.fal_request_id
        reply = self._requests.fetch_status(handle, fal_request_id, with_logs=logs)
        if isinstance(reply, Reply) and reply.http_status in ACCOUNT_CODES:
            message = f"the status call answered {reply.http_status}"
            raise AccountRefusedError(message, http_status=reply.http_status)
        match read_status(reply) if isinstance(reply, Reply) else reply:
            case Progress() as status:
                return status
            case Unclear(message):
                raise RequestUnclearError(message, fal_request_id=fal_request_id)
            case Forgotten():
                message = "fal does not know the request, or no longer"
                raise RequestNotFoundError(message, fal_request_id=fal_request_id)

    def result(self, handle: Handle) -> dict[str, JsonValue]:
        """The model's output, once the request is completed; `iter_events` waits for that.

        Raises RequestPendingError before, what `status` raises, and for a request that failed a
        RequestFailedError: InputRefusedError, RunFailedError or RequestCancelledError.
        """
        fal_request_id = handle.fal_request_id
        status = self.status(handle)
        if not status.has_ended:
            message = "the request has not ended yet"
            raise RequestPendingError(message, fal_request_id=fal_request_id)
        truth = self._requests.read_result(handle, fal_request_id, status)
        match truth:
            case Completion(status="OK", payload=dict(output)):
                return output
            case Completion(status="OK"):
                message = "the result is no JSON object"
                raise RequestUnclearError(message, fal_request_id=fal_request_id)
            case Completion(error=error):
                words = error or "fal reports an error without a message"
                failure = parse_failure(truth.payload, words) or FalFailure(UNNAMED_CODE, words)
                known = find_error_type(failure.code, names_fields=bool(failure.details))
                raise FAILURES[known.error_class](
                    failure.message,
                    fal_request_id=fal_request_id,
                    error_type=failure.code,
                    details=failure.details,
                    retryable=truth.retryable,
                )
            case Unclear(message):
                raise RequestUnclearError(message, fal_request_id=fal_request_id)
            case _:
                message = "fal no longer has the request's result"
                raise RequestNotFoundError(message, fal_request_id=fal_request_id)

    def cancel(self, handle: Handle) -> CancelAnswer:
        """Have fal remove or stop the request; a running one may complete all the same.

        Raises RequestUnclearError where there was no answer.
        """
        answer = self._requests.cancel(handle, handle.fal_request_id)
        if answer is CancelAnswer.UNCLEAR:
            message = "fal did not answer the cancellation"
            raise RequestUnclearError(message, fal_request_id=handle.fal_request_id)
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

        From fal's event stream while that works, else by polling every `interval`. Logs are all so
        far. Raises RequestPendingError after `timeout`, and what `status` raises, though
        RequestUnclearError only after a minute without a usable answer.
        """
        seconds = float("inf") if timeout is None else timeout.total_seconds()
        return self._requests.follow(
            handle,
            handle.fal_request_id,
            lambda: self.status(handle, logs=logs),
            with_logs=logs,
            interval=interval,
            deadline=time.monotonic() + seconds,
        )

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
        except RequestPendingError:
            with suppress(RequestUnclearError):
                self.cancel(handle)
            raise
        return self.result(handle)
