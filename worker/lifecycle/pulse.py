"""A worker's signs of life: a row in `workers`, and its end if it has stopped to consume.

A thread of the worker's main process looks at its loop from beside it, so that one which stands
still is seen. What is written says that the loop turned, or a step ended, not that there is a
process.
"""

import os
import signal
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import structlog
from celery import Task, bootsteps
from celery.signals import (
    celeryd_init,
    task_postrun,
    task_received,
    worker_shutdown,
    worker_shutting_down,
)
from celery.worker import state
from sqlalchemy.exc import SQLAlchemyError
from typing_extensions import override

from worker.broker.app import ARCHIVE, QUEUES
from worker.broker.dispatch import Dispatcher
from worker.cli.daemons import MARGIN
from worker.ground.clock import read_clock
from worker.ground.db import Database
from worker.ground.errors import ForeignArchiveError, StoreUnavailableError
from worker.ground.settings import Settings, load_settings
from worker.jobs.stats import SeenWorker, forget_workers, keep_worker, note_step, remove_worker
from worker.lifecycle.standby import Standby
from worker.lifecycle.watchdog import Look, Watchdog
from worker.media.store import open_store
from worker.ops.mark import require_own_archive
from worker.tasks import WORKER_PROGRAM, get_runtime

TICK_SECONDS = 2.0
LOOK = timedelta(seconds=10)
# Of one process and step; whatever comes in between says nothing new.
STEP_PAUSE_SECONDS = 5.0
# Several turns of an idle loop.
SHORTEST_LIMIT = timedelta(seconds=10)
FORGET_AFTER = timedelta(days=1)
LEAVE_SECONDS = 5.0
# Of a program that is at fault itself (sysexits); a supervisor starts it again.
WEDGED = 70

log = structlog.stdlib.get_logger(__name__)


class Pulse(bootsteps.StartStopStep):
    """Notes each turn of the consumer's loop, whichever kind of loop it is."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **_: object) -> None:  # noqa: ANN401 - Celery's consumer
        settings = load_settings()
        self.watch = Watch(consumer, settings)
        self.standby = Standby(settings)
        self._entry: Any = None

    @override
    def start(self, consumer: Any) -> None:
        """At each connection; the thread is started at the first."""
        self.watch.tick()
        if consumer.hub:
            self._entry = consumer.timer.call_repeatedly(TICK_SECONDS, self.watch.tick)
        else:
            turn = type(consumer).perform_pending_operations

            def turn_and_tick() -> None:
                self.watch.tick()
                turn(consumer)

            consumer.perform_pending_operations = turn_and_tick
        self.watch.begin()
        self.standby.begin()

    @override
    def stop(self, _consumer: object) -> None:
        if self._entry is not None:
            self._entry.cancel()


@dataclass
class Watch:
    """What is known of this worker, and the thread that looks at it."""

    consumer: Any
    settings: Settings
    looped_at: float = field(default_factory=time.monotonic)
    received_at: float = field(default_factory=time.monotonic)
    started_at: datetime = field(default_factory=read_clock)
    archive_fault: str | None = None
    _thread: threading.Thread | None = None
    _ending: threading.Event = field(default_factory=threading.Event)

    def tick(self, **_: object) -> None:
        self.looped_at = time.monotonic()

    def receive(self, **_: object) -> None:
        self.received_at = time.monotonic()

    def begin(self) -> None:
        if self._thread is not None:
            return
        task_received.connect(self.receive, weak=False)
        # Told to end, it takes nothing more, however long its steps take.
        worker_shutting_down.connect(self.end, weak=False)
        worker_shutdown.connect(self.leave, weak=False)
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def end(self, **_: object) -> None:
        """The worker is told to end; a signal's handler does no more than this."""
        self._ending.set()

    def leave(self, **_: object) -> None:
        if self._thread is not None:
            self._thread.join(LEAVE_SECONDS)

    def _run(self) -> None:
        limit = max(self.settings.watchdog_seconds, SHORTEST_LIMIT)
        watchdog = Watchdog(limit)
        dispatcher = Dispatcher(self.settings)
        while not self._ending.wait(min(LOOK, limit / 4).total_seconds()):
            try:
                look = self._look(dispatcher)
                if look.at - look.looped_at < limit.total_seconds() or look.is_busy:
                    self._keep_row()
                reason = watchdog.judge(look)
            except Exception as error:  # noqa: BLE001 - without its thread nobody watches
                log.warning("pulse_missed", error=type(error).__name__, reason=str(error))
                continue
            if reason is not None and not self._ending.is_set():
                self._end_worker(reason)
        self._remove_row()

    def _look(self, dispatcher: Dispatcher) -> Look:
        counted = dispatcher.count_messages(self._list_queues())
        held, hands = len(state.reserved_requests), self.consumer.pool.num_processes
        return Look(
            at=time.monotonic(),
            looped_at=self.looped_at,
            received_at=self.received_at,
            waiting=None if counted is None else sum(counted.values()),
            is_busy=len(state.active_requests) > 0,
            is_full=held >= hands,
        )

    def _list_queues(self) -> list[str]:
        """Without those that an operator has told it to leave alone."""
        consuming = self.consumer.task_consumer
        return [] if consuming is None else sorted(queue.name for queue in consuming.queues)

    def _keep_row(self) -> None:
        """With a connection of its own each time: children that are forked later share none."""
        now = read_clock()
        queues = self._list_queues()
        try:
            with closing(Database(self.settings.database_url, program=WORKER_PROGRAM)) as db:
                if QUEUES[ARCHIVE] in queues:
                    self._check_archive(db)
                seen = SeenWorker(
                    self.consumer.hostname,
                    os.getpid(),
                    queues,
                    self.started_at,
                    now,
                    archive_fault=self.archive_fault,
                )
                with db.transaction() as connection:
                    keep_worker(connection, seen)
                    forget_workers(connection, now - FORGET_AFTER)
        except SQLAlchemyError as error:
            log.debug("pulse_not_written", reason=type(error).__name__)

    def _check_archive(self, db: Database) -> None:
        """Each time, so that a volume that is mounted or lost later is noticed as well.

        Only a directory may be another one on each host.
        """
        if not self.settings.archive_url.lower().startswith("file:"):
            return
        store = open_store(self.settings.archive_url, Path(self.settings.spool_dir))
        try:
            require_own_archive(db=db, store=store)
            fault = None
        except (ForeignArchiveError, StoreUnavailableError) as error:
            fault = str(error)
        if fault is not None and fault != self.archive_fault:
            log.error("archive_fault", reason=fault)
        self.archive_fault = fault

    def _remove_row(self) -> None:
        with (
            suppress(SQLAlchemyError),  # it is forgotten after a day
            closing(Database(self.settings.database_url, program=WORKER_PROGRAM)) as db,
            db.transaction() as connection,
        ):
            remove_worker(connection, self.consumer.hostname)

    def _end_worker(self, reason: str) -> None:
        """Let it drain if its loop still turns, else end it here and now."""
        log.error("worker_wedged", reason=reason)
        state.should_stop = WEDGED  # type: ignore[assignment]  # an exit code, or None
        patience = self.settings.drain_seconds + MARGIN
        threading.Event().wait(patience.total_seconds())
        for child in getattr(getattr(self.consumer.pool, "_pool", None), "_pool", None) or ():
            with suppress(OSError, AttributeError):  # it has ended by itself
                os.kill(child.pid, signal.SIGKILL)
        os._exit(WEDGED)


@celeryd_init.connect
def watch_consumer(instance: Any, **_: object) -> None:  # noqa: ANN401 - Celery's worker
    instance.app.steps["consumer"].add(Pulse)


@cache
def _noted() -> dict[str, float]:
    """When this process last noted each step."""
    return {}


@task_postrun.connect
def note_work(task: "Task[Any, Any]", **_: object) -> None:
    """Say what was done last; a worker that is not known, or a database away, is no matter."""
    step, now = task.name.rpartition(".")[2], time.monotonic()
    if now - _noted().get(step, -STEP_PAUSE_SECONDS) < STEP_PAUSE_SECONDS or task.request.is_eager:
        return
    _noted()[step] = now
    try:
        with get_runtime().db.transaction() as connection:
            note_step(connection, str(task.request.hostname), step, read_clock())
    except SQLAlchemyError as error:
        log.debug("pulse_not_written", reason=type(error).__name__)
