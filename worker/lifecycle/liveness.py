"""A worker's heartbeat in `workers`, its exit when it is stuck, and its stand-in for beat.

A thread of the worker's main process observes its event loop from beside it, so that a blocked loop
is noticed. A heartbeat says that the loop turned, or a step ended, not just that a process exists.
"""

import math
import os
import signal
import socket
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import structlog
from celery import Task, bootsteps
from celery.signals import (
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
from worker.ground.settings import Settings, load_settings
from worker.jobs.observed import is_pass_missing
from worker.jobs.workers import SeenWorker, forget_workers, keep_worker, note_step, remove_worker
from worker.lifecycle.archive_probe import ArchiveProbe
from worker.runtime import WORKER_PROGRAM, Runtime, get_runtime
from worker.tasks import sweep_with

TICK_SECONDS = 2.0
CHECK_PERIOD = timedelta(seconds=10)
# Between two notes of one process and step.
STEP_PAUSE_SECONDS = 5.0
# Several turns of an idle loop.
SHORTEST_LIMIT = timedelta(seconds=10)
# Longer than any step may take: a pool that works in the main thread stops the loop for as long.
LONGEST_STEP = timedelta(minutes=30)
FORGET_AFTER = timedelta(days=1)
LEAVE_SECONDS = 5.0
# EX_SOFTWARE of sysexits; a supervisor starts the worker again.
WEDGED = 70
# A worker sweeps if no sweep has come for so many periods.
PERIODS = 3

log = structlog.stdlib.get_logger(__name__)


class Pulse(bootsteps.StartStopStep):
    """Notes each turn of the consumer's loop, for both kinds of loop."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **_: object) -> None:  # noqa: ANN401 - Celery's consumer
        settings = load_settings()
        self.monitor = Monitor(consumer, settings)
        self.standby = Standby(settings)
        self._has_begun = False
        self._entry: Any = None

    @override
    def start(self, consumer: Any) -> None:
        """At each connection; the threads are started at the first."""
        self.monitor.tick()
        if consumer.hub:
            self._entry = consumer.timer.call_repeatedly(TICK_SECONDS, self.monitor.tick)
        else:
            turn = type(consumer).perform_pending_operations

            def turn_and_tick() -> None:
                self.monitor.tick()
                turn(consumer)

            consumer.perform_pending_operations = turn_and_tick
        if not self._has_begun:
            self._has_begun = True
            self.begin()

    def begin(self) -> None:
        """Start the threads; they end once the worker shuts down, and consumes nothing more."""
        ending, monitor = threading.Event(), self.monitor
        task_received.connect(monitor.receive, weak=False)
        worker_shutting_down.connect(lambda **_: ending.set(), weak=False)
        if QUEUES[ARCHIVE] in monitor.list_queues():
            monitor.probe = ArchiveProbe(ending)
            monitor.probe.begin()
        pulse = threading.Thread(target=monitor.run, args=(ending,), name="pulse", daemon=True)
        pulse.start()
        worker_shutdown.connect(lambda **_: pulse.join(LEAVE_SECONDS), weak=False)
        sweep = self.standby.run
        threading.Thread(target=sweep, args=(ending,), name="standby", daemon=True).start()

    @override
    def stop(self, _consumer: object) -> None:
        if self._entry is not None:
            self._entry.cancel()


# ------------------------------------------------------------------ when a worker is wedged


@dataclass(frozen=True, slots=True)
class Observation:
    """One observation of a worker, in seconds of a monotonic clock.

    `waiting` are messages in the queues that it consumes, None if the broker did not answer in
    time; `is_full` if it holds as many messages as it can work on.
    """

    at: float
    looped_at: float
    received_at: float
    waiting: int | None
    is_busy: bool
    is_full: bool


@dataclass
class Watchdog:
    """Decides from observations whether a worker has stopped consuming; pure.

    It never ends a worker while the broker does not answer: a restart would not help. A busy worker
    may leave messages waiting for as long as its steps may take.
    """

    limit: timedelta
    _answering_since: float | None = None
    _deaf_since: float | None = None

    def judge(self, seen: Observation) -> str | None:
        """Why the worker should exit; None while it should not."""
        if seen.waiting is None:
            self._answering_since = self._deaf_since = None
            return None
        if self._answering_since is None:
            self._answering_since = seen.at
        blocked = seen.at - max(seen.looped_at, self._answering_since)
        longest = max(LONGEST_STEP, self.limit) if seen.is_busy else self.limit
        if blocked > longest.total_seconds():
            return f"its event loop has been blocked for {blocked:.0f} s, while the broker answers"
        if not seen.waiting or seen.is_full:
            self._deaf_since = None
            return None
        since = seen.at if self._deaf_since is None else self._deaf_since
        self._deaf_since = max(since, seen.received_at)
        deaf = seen.at - self._deaf_since
        if deaf <= self.limit.total_seconds():
            return None
        return f"{seen.waiting} messages are waiting, and it has consumed none for {deaf:.0f} s"


@dataclass
class Monitor:
    """The state of this worker, which a thread observes."""

    consumer: Any
    settings: Settings
    looped_at: float = field(default_factory=time.monotonic)
    received_at: float = field(default_factory=time.monotonic)
    started_at: datetime = field(default_factory=read_clock)
    probe: ArchiveProbe | None = None

    def tick(self) -> None:
        self.looped_at = time.monotonic()

    def receive(self, **_: object) -> None:
        self.received_at = time.monotonic()

    def list_queues(self) -> list[str]:
        """Without those whose consumption an operator has cancelled."""
        consuming = self.consumer.task_consumer
        return [] if consuming is None else sorted(queue.name for queue in consuming.queues)

    def describe(self) -> SeenWorker:
        return SeenWorker(
            name=self.consumer.hostname,
            pid=os.getpid(),
            queues=self.list_queues(),
            started_at=self.started_at,
            last_seen_at=read_clock(),
            host=socket.gethostname(),
            archive_fault=None if self.probe is None else self.probe.fault,
        )

    def run(self, ending: threading.Event) -> None:
        limit = max(self.settings.watchdog_seconds, SHORTEST_LIMIT)
        watchdog, dispatcher = Watchdog(limit), Dispatcher(self.settings)
        self._write_row()
        while not ending.wait(min(CHECK_PERIOD, limit / 4).total_seconds()):
            try:
                counted = dispatcher.count_messages(self.list_queues())
                seen = Observation(
                    at=time.monotonic(),
                    looped_at=self.looped_at,
                    received_at=self.received_at,
                    waiting=None if counted is None else sum(counted.values()),
                    is_busy=len(state.active_requests) > 0,
                    is_full=len(state.reserved_requests) >= self.consumer.pool.num_processes,
                )
                if seen.at - seen.looped_at < limit.total_seconds() or seen.is_busy:
                    self._write_row()
                reason = watchdog.judge(seen)
            except Exception as error:  # noqa: BLE001 - the thread must outlive any error
                log.warning("pulse_missed", error=type(error).__name__, reason=str(error))
                continue
            if reason is not None and not ending.is_set():
                self._end_worker(reason)
        self._write_row(leaving=True)

    def _write_row(self, *, leaving: bool = False) -> None:
        """Over a connection of its own each time: children that are forked later share none.

        A row that is not removed is forgotten after a day.
        """
        seen = self.describe()
        try:
            with (
                closing(Database(self.settings.database_url, program=WORKER_PROGRAM)) as db,
                db.transaction() as connection,
            ):
                if leaving:
                    remove_worker(connection, seen)
                    return
                keep_worker(connection, seen)
                forget_workers(connection, seen.last_seen_at - FORGET_AFTER)
        except SQLAlchemyError as error:
            log.debug("pulse_not_written", reason=type(error).__name__)

    def _end_worker(self, reason: str) -> None:
        """Let it drain if its loop still turns, else exit at once."""
        log.error("worker_wedged", reason=reason)
        state.should_stop = WEDGED  # type: ignore[assignment]  # an exit code, or None
        time.sleep((self.settings.drain_seconds + MARGIN).total_seconds())
        for child in getattr(getattr(self.consumer.pool, "_pool", None), "_pool", None) or ():
            with suppress(OSError, AttributeError):  # it has ended by itself
                os.kill(child.pid, signal.SIGKILL)
        os._exit(WEDGED)


# When this process last noted each step.
_NOTED: dict[str, float] = {}


@task_postrun.connect
def note_work(task: "Task[Any, Any]", **_: object) -> None:
    """Note the step that ended last; an unknown worker, or an unavailable database, is ignored."""
    step, now = task.name.rpartition(".")[2], time.monotonic()
    if now - _NOTED.get(step, -math.inf) < STEP_PAUSE_SECONDS or task.request.is_eager:
        return
    _NOTED[step] = now
    try:
        with get_runtime().db.transaction() as connection:
            note_step(connection, str(task.request.hostname), step, read_clock())
    except SQLAlchemyError as error:
        log.debug("pulse_not_written", reason=type(error).__name__)


# ------------------------------------------------------------------ when beat is missing


class Standby:
    """A thread that sweeps while no other process does: beat may be down, or its messages lost.

    One for each worker, for any queues it consumes. It reads the time of the last sweep, by the
    database's clock. All workers may notice at once: one of them sweeps
    (`add_observed`).
    """

    def __init__(self, settings: Settings) -> None:
        self._period = settings.sweep_seconds
        # Its own, without a connection in between: children that are forked later share none.
        self._runtime = Runtime(settings, program=WORKER_PROGRAM)
        self._swept_at = -math.inf

    def sweep_if_missing(self) -> bool:
        """Sweep if no process has for three periods; whether it did."""
        db = self._runtime.db
        try:
            with db.reading() as connection:
                is_missing = is_pass_missing(connection, PERIODS * self._period)
            has_swept = is_missing and sweep_with(self._runtime)
        finally:
            db.close()
        if has_swept:
            # A warning when it begins, not at each of the sweeps that follow.
            before, self._swept_at = self._swept_at, time.monotonic()
            is_first = self._swept_at - before > 2 * PERIODS * self._period.total_seconds()
            write = log.warning if is_first else log.debug
            write("sweep_missing", reason="no sweep for three periods: this worker sweeps")
        return has_swept

    def run(self, ending: threading.Event) -> None:
        wait = PERIODS * self._period
        while not ending.wait(wait.total_seconds()):
            wait = self._period
            try:
                self.sweep_if_missing()
            except Exception as error:  # noqa: BLE001 - the thread must outlive any error
                log.debug("sweep_missed", error=type(error).__name__)
