"""The only publisher of task messages; a failure never fails its caller.

What is published is a task's name and a job id. The row is committed before, so a message that is
lost only makes the job late: the sweep publishes again.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar
from uuid import UUID

import structlog
from celery import Celery
from uuid_utils import uuid7

from worker.broker.app import ARCHIVE, CANCEL, QUEUES, RECONCILE, SUBMIT, create_publisher
from worker.broker.transport import Outage, refuse_cluster
from worker.ground.clock import call_within
from worker.ground.errors import InvalidSettingsError
from worker.ground.settings import Settings
from worker.jobs.states import Doorbell, Step

PUBLISH_TIMEOUT = timedelta(seconds=1)
PUBLISH_ALL_TIMEOUT = timedelta(seconds=20)
# Few enough for a busy broker to take them within PUBLISHER_SECONDS.
MESSAGES_AT_ONCE = 200
COUNT_TIME = timedelta(seconds=3)
# Workers of earlier releases, which may take the message, need an id; no job has this one.
NO_JOB = UUID(int=0)
# More messages of one step than this help no worker.
MOST_WAITING = 300
TASK_OF_STEP = {
    Step.SUBMIT: SUBMIT,
    Step.RECONCILE: RECONCILE,
    Step.ARCHIVE: ARCHIVE,
    Step.CANCEL: CANCEL,
}
V = TypeVar("V")

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class QueueRoom:
    """How many messages wait in the queue of each step."""

    waiting: dict[str, int]

    def left(self, step: Step, most: int = MOST_WAITING) -> int:
        """How many more the queue may hold, if it is to hold so many at the most."""
        return max(most - self.waiting.get(QUEUES[TASK_OF_STEP[step]], 0), 0)

    def choose(self, doorbells: Sequence[Doorbell]) -> list[Doorbell]:
        """Those that their queues have room for, in order; they count as waiting from now on."""
        chosen = []
        for doorbell in doorbells:
            if self.left(doorbell.step) > 0:
                chosen.append(doorbell)
                queue = QUEUES[TASK_OF_STEP[doorbell.step]]
                self.waiting[queue] = self.waiting.get(queue, 0) + 1
        return chosen


class Dispatcher:
    """Publishes within a time limit or gives up; one per process, shared by its threads.

    All messages go through one queue and one thread, over one connection: callers wait for it with
    their own timeout, or not at all, and a silent broker blocks only that thread.
    """

    def __init__(self, settings: Settings) -> None:
        self._app = create_publisher(settings)
        # Doorbells that are published together, their deadline, and the outcome.
        self._batches: SimpleQueue[tuple[Sequence[Doorbell], float, Future[None]] | None]
        self._batches = SimpleQueue()
        self._thread: Thread | None = None
        self._starting = Lock()
        self._outage = Outage()

    def publish(self, doorbell: Doorbell | None) -> bool:
        """Publish; False if the broker did not take the message within a second."""
        return doorbell is None or self._publish([doorbell], PUBLISH_TIMEOUT)

    def publish_all(self, doorbells: Sequence[Doorbell]) -> bool:
        """Publish a thousand or so together; False if any may be lost.

        A broker that is unavailable is noticed as soon as by `publish`.
        """
        return not doorbells or self._publish(doorbells, PUBLISH_ALL_TIMEOUT)

    def publish_soon(self, doorbell: Doorbell | None) -> None:
        """Publish without waiting: a message that is lost is only logged."""
        if doorbell is not None:
            outcome = self._order([doorbell], PUBLISH_TIMEOUT)
            outcome.add_done_callback(lambda ended: log_lost([doorbell], ended.exception()))

    def ping(self) -> bool:
        """Whether the broker answers in time.

        Raises InvalidSettingsError for one that answers, and can hold no queues.
        """
        return self._query(PUBLISH_TIMEOUT, lambda: _connect(self._app)) is not None

    def count_messages(self, queues: Sequence[str]) -> dict[str, int] | None:
        """How many messages wait in each queue; None if the broker does not answer in time."""
        return self._query(COUNT_TIME, lambda: _count(self._app, queues))

    def _query(self, limit: timedelta, read: Callable[[], V]) -> V | None:
        try:
            answer = call_within(limit, read)
        except InvalidSettingsError:
            raise
        except Exception as error:  # noqa: BLE001 - any broker, any failure
            self._outage.begin(error)
            return None
        self._outage.end()
        return answer

    def measure_room(self, *steps: Step) -> QueueRoom | None:
        """What waits in the queues of these steps; None if the broker does not answer in time."""
        waiting = self.count_messages([QUEUES[TASK_OF_STEP[step]] for step in steps])
        return None if waiting is None else QueueRoom(waiting)

    def flush(self) -> None:
        """Publish what still waits, within the usual time; the next call begins anew."""
        if self._thread is not None:
            self._batches.put(None)
            self._thread.join(PUBLISH_TIMEOUT.total_seconds())

    def close(self) -> None:
        self.flush()
        self._app.close()

    def _publish(self, doorbells: Sequence[Doorbell], limit: timedelta) -> bool:
        outcome = self._order(doorbells, limit)
        try:
            outcome.result(limit.total_seconds())
        except Exception as error:  # noqa: BLE001 - any broker, any failure: the sweep publishes again
            outcome.cancel()
            log_lost(doorbells, error)
            return False
        return True

    def _order(self, doorbells: Sequence[Doorbell], limit: timedelta) -> Future[None]:
        outcome: Future[None] = Future()
        self._batches.put((doorbells, time.monotonic() + limit.total_seconds(), outcome))
        with self._starting:
            # Started when first needed, and once more in a process that was forked since.
            if self._thread is None or not self._thread.is_alive():
                self._thread = Thread(target=self._run, name="publisher", daemon=True)
                self._thread.start()
        return outcome

    def _run(self) -> None:
        """Publish batch by batch, until a None ends it."""
        while (batch := self._batches.get()) is not None:
            doorbells, give_up_at, outcome = batch
            if not outcome.set_running_or_notify_cancel():
                continue  # its caller has given up
            try:
                if time.monotonic() > give_up_at:
                    raise TimeoutError  # noqa: TRY301 - one outcome for all that goes wrong
                _publish(self._app, doorbells)
            except Exception as error:  # noqa: BLE001 - any broker, any failure
                outcome.set_exception(error)
            else:
                outcome.set_result(None)


def log_lost(doorbells: Sequence[Doorbell], error: BaseException | None) -> None:
    if error is None:
        return
    reason = f"{type(error).__name__}: {error}"
    if len(doorbells) > 1:
        log.warning("doorbells_lost", doorbells=len(doorbells), reason=reason)
        return
    [one] = doorbells
    named = {} if one.job_id is None else {"job_id": str(one.job_id)}
    log.warning("doorbell_lost", **named, step=one.step.value, reason=reason)


def _publish(app: Celery, doorbells: Sequence[Doorbell]) -> None:
    """As `send_task` for each, at a tenth of its cost: on Redis in a few round trips.

    Queues are declared once, and no event reports to Flower that a message was sent.
    """
    with app.producer_or_acquire() as producer, producer.batch(MESSAGES_AT_ONCE):
        for step in {doorbell.step for doorbell in doorbells}:
            task = TASK_OF_STEP[step]
            producer.maybe_declare(app.amqp.queues[QUEUES[task]])
            blank = app.amqp.create_task_message("", task, [], {}, ignore_result=None)
            for doorbell in [one for one in doorbells if one.step is step]:
                arguments = [str(doorbell.job_id or NO_JOB)]
                message_id = str(uuid7())
                own = {"id": message_id, "root_id": message_id, "argsrepr": str(arguments)}
                producer.publish(
                    json.dumps([arguments, *blank.body[1:]]),
                    routing_key=QUEUES[task],
                    content_type="application/json",
                    content_encoding="utf-8",
                    headers={**blank.headers, **own},
                    correlation_id=message_id,
                )


def _count(app: Celery, queues: Sequence[str]) -> dict[str, int]:
    """On a channel for each queue, which RabbitMQ closes if there is no such queue."""
    counts = dict.fromkeys(queues, 0)
    with app.connection_for_write() as connection:
        for name in queues:
            channel: Any = connection.channel()
            with channel, suppress(*connection.channel_errors):
                counts[name] = int(channel.queue_declare(name, passive=True).message_count)
    return counts


def _connect(app: Celery) -> bool:
    with app.connection_for_write() as connection:
        connection.connect()
        refuse_cluster(connection, str(app.conf.broker_url))
    return True
