"""The only publisher: rings the doorbell of a job, and never fails anybody by failing.

What is published is a task's name and a job id. The row is committed before, so a ring that is lost
only makes the job late: the sweep rings again.
"""

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import structlog
from celery import Celery
from kombu import Connection
from uuid_utils import uuid7

from worker.app import ARCHIVE, CANCEL, QUEUES, RECONCILE, SUBMIT, create_publisher
from worker.deadline import call_within
from worker.jobs.states import Doorbell, Step
from worker.settings import Settings

RING_TIME = timedelta(seconds=1)
RING_ALL_TIME = timedelta(seconds=20)
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


class Dispatcher:
    """Publishes within one second or gives up; one per process, shared by its threads."""

    def __init__(self, settings: Settings) -> None:
        self._app = create_publisher(settings)

    def ring(self, doorbell: Doorbell | None) -> bool:
        """Publish; False if the broker did not take the message in time."""
        if doorbell is None:
            return True
        try:
            call_within(RING_TIME, lambda: _publish(self._app, doorbell))
        except Exception as error:  # noqa: BLE001 - any broker, any failure: the sweep rings again
            log.warning(
                "doorbell_lost",
                job_id=str(doorbell.job_id),
                step=doorbell.step.value,
                reason=f"{type(error).__name__}: {error}",
            )
            return False
        return True

    def ring_all(self, doorbells: Sequence[Doorbell]) -> bool:
        """Publish each, together where the broker can; False if any may be lost.

        At most a thousand or so: all of them have to be taken within RING_ALL_TIME. A broker that
        is away is found out as soon as by `ring`.
        """
        if not doorbells:
            return True
        try:
            call_within(RING_ALL_TIME, lambda: _publish_all(self._app, doorbells))
        except Exception as error:  # noqa: BLE001 - any broker, any failure: the sweep rings again
            reason = f"{type(error).__name__}: {error}"
            log.warning("doorbells_lost", doorbells=len(doorbells), reason=reason)
            return False
        return True

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

    def close(self) -> None:
        self._app.close()


def _publish(app: Celery, doorbell: Doorbell) -> None:
    app.send_task(TASK_OF_STEP[doorbell.step], args=[str(doorbell.job_id)])


def _publish_all(app: Celery, doorbells: Sequence[Doorbell]) -> None:
    """As `send_task` for each, at a tenth of its price: on Redis in a few round trips.

    Queues are declared once, and no event tells Flower that a message was sent.
    """
    with app.producer_or_acquire() as producer, producer.batch(MESSAGES_AT_ONCE):
        for step in {doorbell.step for doorbell in doorbells}:
            task = TASK_OF_STEP[step]
            producer.maybe_declare(app.amqp.queues[QUEUES[task]])
            blank = app.amqp.create_task_message("", task, [], {}, ignore_result=None)
            for job_id in (str(one.job_id) for one in doorbells if one.step is step):
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
