"""A worker sweeps by itself while nobody else does: beat may be away, or its messages lost.

A thread of the worker's main process looks at the time of the last sweep, by the database's clock.
That all workers see it at once does no harm: one of them passes (`add_observed`).
"""

import math
import threading
import time

import structlog
from celery.signals import worker_shutting_down

from worker.ground.settings import Settings
from worker.jobs.observed import is_pass_missing
from worker.runtime import Runtime
from worker.tasks import WORKER_PROGRAM, sweep_with

PERIODS = 3

log = structlog.stdlib.get_logger(__name__)


class Standby:
    """One for each worker, whatever queues it consumes."""

    def __init__(self, settings: Settings) -> None:
        self._period = settings.sweep_seconds
        # Its own, without a connection in between: children that are forked later share none.
        self._runtime = Runtime(settings, program=WORKER_PROGRAM)
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._swept_at = -math.inf

    def begin(self) -> None:
        if self._thread is None:
            worker_shutting_down.connect(self._end, weak=False)
            self._thread = threading.Thread(target=self._run, name="standby", daemon=True)
            self._thread.start()

    def sweep_if_missing(self) -> bool:
        """Sweep if nobody has for three periods; whether it did."""
        db = self._runtime.db
        try:
            with db.reading() as connection:
                is_missing = is_pass_missing(connection, PERIODS * self._period)
            has_swept = is_missing and sweep_with(self._runtime)
        finally:
            db.close()
        if has_swept:
            self._say_once()
        return has_swept

    def _say_once(self) -> None:
        """Said when it begins, not at each of the sweeps that follow."""
        now = time.monotonic()
        is_first = now - self._swept_at > 2 * PERIODS * self._period.total_seconds()
        self._swept_at = now
        (log.warning if is_first else log.debug)("sweep_missing", reason="no sweep came: done here")

    def _end(self, **_: object) -> None:
        self._ending.set()

    def _run(self) -> None:
        wait = PERIODS * self._period
        while not self._ending.wait(wait.total_seconds()):
            wait = self._period
            try:
                self.sweep_if_missing()
            except Exception as error:  # noqa: BLE001 - the thread outlives any trouble
                log.debug("sweep_missed", error=type(error).__name__)
