"""How a worker consumes: neither a message nor an outage of the broker ends it."""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import closing
from types import MappingProxyType
from typing import Any

import structlog
from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer as TypedConsumer
from celery.worker.request import Request as TypedRequest
from celery.worker.state import maybe_shutdown
from typing_extensions import override

from worker.broker.app import ENQUEUE, QUEUES
from worker.broker.receiving import (
    LONGEST_ID,
    UNKNOWN_TASK,
    RefusedMessageError,
    check_message,
    describe_refusal,
    guard_channel,
    read_named,
)
from worker.broker.transport import OUTAGE
from worker.ground.db import Database, describe_database_error
from worker.ground.settings import load_settings
from worker.jobs.job_requests import Door
from worker.runtime import WORKER_PROGRAM
from worker.stages.refuse import keep_refusal

_SILENT = {"without_mingle": True, "without_gossip": True}
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0
# A connection that lasted so long was stable.
LASTING_SECONDS = 10.0
# How long refused messages are only logged after the database failed.
KEEP_PAUSE_SECONDS = 10.0

# Printed at each loss of a connection, about an option that `create_app` sets.
warnings.filterwarnings("ignore", "\\s*In Celery 5.1 we introduced", CPendingDeprecationWarning)
# Their stubs lack most of what they have.
CeleryConsumer: Any = TypedConsumer
CeleryRequest: Any = TypedRequest

log = structlog.stdlib.get_logger(__name__)


class Consumer(CeleryConsumer):  # type: ignore[misc]  # Any: its stubs lack most of it
    """Celery's, without mingle and gossip, even if the command line has them.

    Mingle costs each start a second, gossip a message for every event of every other worker, and
    its step raises at the end of a worker without its broker (ConsumerStep._close in
    celery.bootsteps 5.7.0), which then ends with exit code 1. Workers here find each other in SQL.
    """

    def __init__(self, on_task_request: Callable[..., None], **settings: Any) -> None:  # noqa: ANN401 - Celery's own
        options: Mapping[str, Any] = settings.pop("worker_options", None) or {}
        self._is_handing_over = False
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._connected_at = math.inf
        self._keep_again_at = -math.inf

        def hand_over(request: object) -> None:
            self._is_handing_over = True
            on_task_request(request)

        super().__init__(hand_over, worker_options={**options, **_SILENT}, **settings)

    # ------------------------------------------------------------------ messages

    @override
    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        """At each connection, before the first message comes."""
        guard_channel(self.task_consumer.channel, self._keep)
        take = super().create_task_handler(*args, **options)

        def take_or_refuse(message: Any) -> None:  # noqa: ANN401 - kombu's
            self._is_handing_over = False
            try:
                check_message(message, self.strategies)
                take(message)
            except Exception as error:
                if self._is_handing_over:
                    raise  # the pool's fault: the message is good
                self._refuse(message, error)

        return take_or_refuse

    @override
    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._refuse(message, exc)

    @override
    def on_unknown_message(self, body: object, message: Any) -> None:
        self._refuse(message, RefusedMessageError("it is no task message"))

    @override
    def on_unknown_task(self, body: object, message: Any, exc: Exception) -> None:
        self._refuse(message, RefusedMessageError("there is no such task", UNKNOWN_TASK))

    @override
    def on_invalid_task(self, body: object, message: Any, exc: Exception) -> None:
        self._refuse(message, exc)

    def _refuse(self, message: Any, error: Exception) -> None:  # noqa: ANN401 - kombu's
        """Log why, without anything of its content, and take it off the queue."""
        code, reason = describe_refusal(error)
        queue = (message.delivery_info or {}).get("routing_key")
        is_doorbell = queue in QUEUES.values() and queue != QUEUES[ENQUEUE]
        message_id, task = (
            value[:LONGEST_ID] if isinstance(value := message.headers.get(name), str) else None
            for name in ("id", "task")
        )
        event = "doorbell_refused" if is_doorbell else "enqueue_refused"
        log.warning(event, message_id=message_id, task=task, code=code, reason=reason)
        if not is_doorbell:
            self._keep(code, reason, message_id or None, read_named(message))
        if not message.acknowledged:
            message.reject_log_error(log, self.connection_errors)

    def _keep(
        self,
        code: str,
        reason: str,
        message_id: str | None = None,
        fields: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """As a row, if the database is available; it is logged in any case.

        On a connection of its own, which no process that is forked later shares. While the
        database is unavailable the loop is not held up for each of thousands of messages.
        """
        if time.monotonic() < self._keep_again_at:
            return
        errors = [(None, reason)]
        url = load_settings().database_url
        try:
            with closing(Database(url, program=WORKER_PROGRAM)) as db:
                keep_refusal(Door.CELERY, message_id, fields, code=code, errors=errors, db=db)
        except Exception as error:  # noqa: BLE001 - nothing about a message ends the worker
            self._keep_again_at = time.monotonic() + KEEP_PAUSE_SECONDS
            log.warning("refusal_not_kept", reason=describe_database_error(error))

    # ------------------------------------------------------------------ broker

    @override
    def ensure_connected(self, conn: Any) -> Any:
        """Retry without end; one log line reports it."""
        connected = conn.ensure_connection(
            lambda error, _: OUTAGE.begin(error), None, callback=maybe_shutdown
        )
        self.first_connection_attempt = False
        self._connected_at = time.monotonic()
        return connected

    @override
    def on_ready(self) -> None:
        super().on_ready()
        self.timer.call_after(LASTING_SECONDS, self._note_lasting)

    def _note_lasting(self) -> None:
        if time.monotonic() - self._connected_at >= LASTING_SECONDS:
            OUTAGE.end()

    @override
    def on_connection_error_after_connected(self, exc: Exception) -> None:
        super().on_connection_error_after_connected(exc)
        self.on_connection_error_before_connected(exc)

    @override
    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """A broker that accepts connections and refuses all else is retried with a pause."""
        OUTAGE.begin(exc)
        if time.monotonic() - self._connected_at > LASTING_SECONDS:
            self._pause_seconds = FIRST_PAUSE_SECONDS
        self._connected_at = math.inf
        until = time.monotonic() + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        while time.monotonic() < until:
            maybe_shutdown()
            time.sleep(0.1)


class Request(CeleryRequest):  # type: ignore[misc]  # as above
    """Celery's, but logs and events show the names of its fields, never their values."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Celery's own
        super().__init__(*args, **options)
        positional, named = self._args or (), self._kwargs or {}
        self._argsrepr = f"<{len(positional)} values>"
        self._kwargsrepr = f"<{', '.join(sorted(map(str, named)))}>"[:LONGEST_ID]
        self._request_dict.update(argsrepr=self._argsrepr, kwargsrepr=self._kwargsrepr)
