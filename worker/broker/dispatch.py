"""The only publisher: rings the doorbell of a job, and never fails anybody by failing.

What is published is a task's name and a job id. The row is committed before, so a ring that is lost
only makes the job late: the sweep rings again.
"""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

import structlog
from celery import Celery
from kombu import Connection, Producer
from uuid_utils import uuid7

from worker.broker.app import ARCHIVE, CANCEL, QUEUES, RECONCILE, SUBMIT, create_publisher
from worker.broker.transport import Outage, refuse_cluster
from worker.ground.deadline import call_within
from worker.ground.errors import InvalidSettingsError
from worker.ground.settings import Settings
from worker.jobs.states import Doorbell, Step

PUBLISH_TIMEOUT = timedelta(seconds=1)
PUBLISH_ALL_TIMEOUT = timedelta(seconds=20)
# Small enough for a broker that is busy to take so many within PATIENCE_SECONDS.
MESSAGES_AT_ONCE = 200
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

    def begin(self) -> bool:
        """False if whoever rang has given up, or would have: then it is not published."""
        if not self.outcome.set_running_or_notify_cancel():
            return False
        if time.monotonic() > self.give_up_at:
            self.outcome.set_exception(TimeoutError())
            return False
        return True


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
        self._outage = Outage()

    def publish(self, doorbell: Doorbell | None) -> bool:
        """Publish; False if the broker did not take the message in time."""
        if doorbell is None:
            return True
        outcome = self._order(doorbell)
        try:
            outcome.result(PUBLISH_TIMEOUT.total_seconds())
        except Exception as error:  # noqa: BLE001 - any broker, any failure: the sweep rings again
            outcome.cancel()
            tell_lost(doorbell, error)
            return False
        return True

    def publish_soon(self, doorbell: Doorbell | None) -> None:
        """As `publish`, without anybody waiting for it: a doorbell that is lost is only logged."""
        if doorbell is not None:
            outcome = self._order(doorbell)
            outcome.add_done_callback(lambda ended: tell_lost(doorbell, ended.exception()))

    def publish_all(self, doorbells: Sequence[Doorbell]) -> bool:
        """Publish each, together where the broker can; False if any may be lost.

        At most a thousand or so: the broker takes all within PUBLISH_ALL_TIMEOUT. A broker that
        is away is found out as soon as by `publish`.
        """
        if not doorbells:
            return True
        try:
            call_within(PUBLISH_ALL_TIMEOUT, lambda: _publish(self._app, doorbells))
        except Exception as error:  # noqa: BLE001 - any broker, any failure: the sweep rings again
            reason = f"{type(error).__name__}: {error}"
            log.warning("doorbells_lost", doorbells=len(doorbells), reason=reason)
            return False
        return True

    def ping(self) -> bool:
        """Whether the broker answers in time.

        Raises InvalidSettingsError for one that answers, and can hold no queues.
        """
        try:
            call_within(PUBLISH_TIMEOUT, lambda: _connect(self._app))
        except InvalidSettingsError:
            raise
        except Exception as error:  # noqa: BLE001 - any broker, any failure
            self._outage.begin(error)
            return False
        self._outage.end()
        return True

    def count_messages(self, queues: Sequence[str]) -> dict[str, int] | None:
        """How many messages wait in each queue; None if the broker does not answer in time."""
        try:
            counted = call_within(COUNT_TIME, lambda: _count(self._app, queues))
        except Exception as error:  # noqa: BLE001 - any broker, any failure
            self._outage.begin(error)
            return None
        self._outage.end()
        return counted

    def flush(self) -> None:
        """Publish what is still to be rung, within the usual time; the next ring begins anew."""
        if self._thread is not None:
            self._rings.put(None)
            self._thread.join(PUBLISH_TIMEOUT.total_seconds())

    def close(self) -> None:
        self.flush()
        self._app.close()

    def _order(self, doorbell: Doorbell) -> Future[None]:
        publish = Ring(doorbell, time.monotonic() + PUBLISH_TIMEOUT.total_seconds())
        self._rings.put(publish)
        with self._starting:
            # Started when first needed, and once more in a process that was forked since.
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._publish_all, name="ringing", daemon=True)
                self._thread.start()
        return publish.outcome

    def _publish_all(self) -> None:
        while (first := self._rings.get()) is not None:
            rings = [publish for publish in (first, *self._take_waiting()) if publish.begin()]
            try:
                _publish(self._app, [publish.doorbell for publish in rings])
            except Exception as error:  # noqa: BLE001 - any broker, any failure
                for publish in rings:
                    publish.outcome.set_exception(error)
            else:
                for publish in rings:
                    publish.outcome.set_result(None)

    def _take_waiting(self) -> Iterator[Ring]:
        """What waits already goes together."""
        for _ in range(MESSAGES_AT_ONCE - 1):
            try:
                publish = self._rings.get_nowait()
            except Empty:  # nothing else waits
                return
            if publish is None:
                self._rings.put(None)
                return
            yield publish


def _publish(app: Celery, doorbells: Sequence[Doorbell]) -> None:
    """As `send_task` for each, at a tenth of its price: on Redis in a few round trips.

    Queues are declared once, and no event tells Flower that a message was sent.
    """
    if not doorbells:
        return
    with app.producer_or_acquire() as producer, producer.batch(MESSAGES_AT_ONCE):
        for step in {doorbell.step for doorbell in doorbells}:
            ids = [str(one.job_id) for one in doorbells if one.step is step]
            _publish_step(app, producer, step, ids)


def _publish_step(app: Celery, producer: Producer, step: Step, job_ids: Sequence[str]) -> None:
    task = TASK_OF_STEP[step]
    producer.maybe_declare(app.amqp.queues[QUEUES[task]])
    blank = app.amqp.create_task_message("", task, [], {}, ignore_result=None)
    for job_id in job_ids:
        message_id = str(uuid7())
        own = {"id": message_id, "root_id": message_id, "argsrepr": f"['{job_id}']"}
        producer.publish(
            json.dumps([[job_id], *blank.body[1:]]),
            routing_key=QUEUES[task],
            content_type="application/json",
            content_encoding="utf-8",
            headers={**blank.headers, **own},
            correlation_id=message_id,
        )


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
        refuse_cluster(connection, str(app.conf.broker_url))
