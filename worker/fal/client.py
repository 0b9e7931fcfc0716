"""fal's queue for those who want the call without the job table.

    with FalClient(SecretStr(key)) as fal:
        handle = fal.submit("fal-ai/ltx-2.3-22b/extend-video", arguments)
        for status in fal.iter_events(handle, logs=True):
            print(status)
        print(fal.result(handle)["video"]["url"])

The paid POST is sent once, whatever happens to it. Asking and cancelling may be repeated.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeAlias

from pydantic import JsonValue, SecretStr

from worker.fal.client_errors import (
    Handle,
    RequestPendingError,
    RequestUnclearError,
    SubmissionUnknownError,
    raise_refusal,
    take_output,
    take_status,
)
from worker.fal.follow import Follower
from worker.fal.options import RequestOptions
from worker.fal.queue import Ambiguous, QueueClient, Refused
from worker.fal.requests import RequestClient
from worker.fal.status import Completed, RequestStatus
from worker.fal.truth import CancelAnswer, Finished

__all__ = ["FalClient", "Handle"]

QUEUE_URL = "https://queue.fal.run"
CALL_LIMIT = timedelta(seconds=30)
POLL_INTERVAL = timedelta(milliseconds=500)

OnStatus: TypeAlias = Callable[[RequestStatus], object]


class FalClient:
    """Submits, follows, fetches and cancels. The key goes to `queue_url` and its backup only.

    `limit` bounds each call as a whole: name look-up, connection, request and reply.
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
        if isinstance(reply, Refused):
            raise_refusal(reply)
        if isinstance(reply, Ambiguous):
            raise SubmissionUnknownError(reply.message, http_status=reply.http_status)
        urls = (reply.status_url, reply.response_url, reply.cancel_url)
        return Handle(endpoint, reply.fal_request_id, *urls)

    def status(self, handle: Handle, *, logs: bool = False) -> RequestStatus:
        """Where the request is now: Queued, InProgress or Completed.

        Raises RequestNotFoundError, RequestUnclearError and AccountRefusedError.
        """
        reply = self._requests.fetch_status(handle, handle.fal_request_id, with_logs=logs)
        return take_status(reply, handle)

    def result(self, handle: Handle) -> dict[str, JsonValue]:
        """The model's output, once the request is completed; `iter_events` waits for that.

        Raises RequestPendingError before, what `status` raises, and for a request that failed a
        RequestFailedError: InputRefusedError, RunFailedError or RequestCancelledError.
        """
        status = self.status(handle)
        if not isinstance(status, Completed):
            message = "the request has not ended yet"
            raise RequestPendingError(message, fal_request_id=handle.fal_request_id)
        finished = Finished(status.error, status.error_type)
        return take_output(
            self._requests.read_result(handle, handle.fal_request_id, finished), handle
        )

    def cancel(self, handle: Handle) -> CancelAnswer:
        """Ask fal to remove or stop the request; a running one may end all the same.

        Raises RequestUnclearError where nobody answered.
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
    ) -> Iterator[RequestStatus]:
        """Each status that differs from the one before, the last one Completed.

        From fal's event stream while that works, else by asking every `interval`. Logs are all so
        far. Raises RequestPendingError after `timeout`, and what `status` raises, though
        RequestUnclearError only once nothing was learnt for a minute.
        """
        seconds = float("inf") if timeout is None else timeout.total_seconds()
        follower = Follower(
            self._requests,
            handle,
            lambda: self.status(handle, logs=logs),
            logs,
            interval,
            time.monotonic() + seconds,
        )
        return follower.watch()

    def subscribe(  # noqa: PLR0913 - one parameter for each choice, as httpx has it
        self,
        endpoint: str,
        arguments: Mapping[str, JsonValue],
        *,
        options: RequestOptions | None = None,
        on_queue_update: OnStatus | None = None,
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
