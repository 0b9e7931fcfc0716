"""The only publisher: rings the doorbell of a job, and never fails anybody by failing.

What is published is a task's name and a job id. The row is committed before, so a ring that is lost
only makes the job late: the sweep rings again.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

import structlog
from celery import Celery
from kombu import Connection, Producer

from worker.app import ARCHIVE, CANCEL, RECONCILE, SUBMIT, create_publisher
from worker.deadline import call_within
from worker.jobs.states import Doorbell, Step
from worker.settings import Settings

RING_TIME = timedelta(seconds=1)
COUNT_TIME = timedelta(seconds=3)
TASK_OF_STEP = {
    Step.SUBMIT: SUBMIT,
    Step.RECONCILE: RECONCILE,
    Step.ARCHIVE: ARCHIVE,
    Step.CANCEL: CANCEL,
}

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ring:
    """A doorbell on its way to the broker, until when that makes sense, and how it ended."""

    doorbell: Doorbell
    give_up_at: float
    outcome: Future[None] = field(default_factory=Future)


class Dispatcher:
    """Publishes within one second or gives up; one per process, shared by its threads.

    One thread publishes for all, over one connection: whoever rings waits on it with a bound of
    his own, or not at all, and a broker that keeps silent holds up that thread alone.
    """

    def __init__(self, settings: Settings) -> None:
        self._app = create_publisher(settings)
        self._rings: SimpleQueue[Ring | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._starting = Lock()

    def ring(self, doorbell: Doorbell | None) -> bool:
        """Publish; False if the broker did not take the message in time."""
        if doorbell is None:
            return True
        outcome = self._order(doorbell)
        try:
            outcome.result(RING_TIME.total_seconds())
        except Exception as error:  # noqa: BLE001 - any broker, any failure: the sweep rings again
            outcome.cancel()
            tell_lost(doorbell, error)
            return False
        return True

    def ring_soon(self, doorbell: Doorbell | None) -> None:
        """As `ring`, without anybody waiting for it: a doorbell that is lost is only logged."""
        if doorbell is not None:
            outcome = self._order(doorbell)
            outcome.add_done_callback(lambda ended: tell_lost(doorbell, ended.exception()))

    def ping(self) -> bool:
        """Whether the broker answers in time."""
        try:
            call_within(RING_TIME, lambda: _connect(self._app))
        except Exception as error:  # noqa: BLE001 - any broker, any failure
            log.warning("broker_unavailable", reason=f"{type(error).__name__}: {error}")
            return False
        return True

    def count_messages(self, queues: Sequence[str]) -> dict[str, int] | None:
        """How many messages wait in each queue; None if the broker does not answer in time."""
        try:
            return call_within(COUNT_TIME, lambda: _count(self._app, queues))
        except Exception as error:  # noqa: BLE001 - any broker, any failure
            log.warning("broker_unavailable", reason=f"{type(error).__name__}: {error}")
            return None

    def flush(self) -> None:
        """Publish what is still to be rung, within the usual time; the next ring begins anew."""
        if self._thread is not None:
            self._rings.put(None)
            self._thread.join(RING_TIME.total_seconds())

    def close(self) -> None:
        self.flush()
        self._app.close()

    def _order(self, doorbell: Doorbell) -> Future[None]:
        ring = Ring(doorbell, time.monotonic() + RING_TIME.total_seconds())
        self._rings.put(ring)
        with self._starting:
            # Started when first needed, and once more in a process that was forked since.
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._publish_all, name="ringing", daemon=True)
                self._thread.start()
        return ring.outcome

    def _publish_all(self) -> None:
        while (ring := self._rings.get()) is not None:
            try:
                with self._app.producer_pool.acquire(block=True) as producer:
                    while ring is not None:
                        publish(self._app, producer, ring)
                        ring = self._find_next()
            except Exception as error:  # noqa: BLE001 - any broker, any failure
                if ring is not None:
                    with suppress(InvalidStateError):  # nobody waits for it any more
                        ring.outcome.set_exception(error)

    def _find_next(self) -> Ring | None:
        """The next one, if it waits already: it takes the same connection."""
        try:
            ring = self._rings.get_nowait()
        except Empty:
            return None
        if ring is None:
            self._rings.put(None)
        return ring


def publish(app: Celery, producer: Producer, ring: Ring) -> None:
    """Unless it is too late for it: then whoever rang has given up, or would have."""
    if not ring.outcome.set_running_or_notify_cancel():
        return
    if time.monotonic() > ring.give_up_at:
        ring.outcome.set_exception(TimeoutError())
        return
    task = TASK_OF_STEP[ring.doorbell.step]
    app.send_task(task, args=[str(ring.doorbell.job_id)], producer=producer)
    ring.outcome.set_result(None)


def tell_lost(doorbell: Doorbell, error: BaseException | None) -> None:
    if error is not None:
        log.warning(
            "doorbell_lost",
            job_id=str(doorbell.job_id),
            step=doorbell.step.value,
            reason=f"{type(error).__name__}: {error}",
        )


def _count(app: Celery, queues: Sequence[str]) -> dict[str, int]:
    with app.connection_for_write() as connection:
        return {name: _count_queue(connection, name) for name in queues}


def _count_queue(connection: Connection, name: str) -> int:
    """On a channel of its own, which RabbitMQ closes if there is no such queue."""
    channel: Any = connection.channel()
    with channel:
        try:
            return int(channel.queue_declare(name, passive=True).message_count)
        except connection.channel_errors:
            return 0


def _connect(app: Celery) -> None:
    with app.connection_for_write() as connection:
        connection.connect()
