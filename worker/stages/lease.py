"""Beneath the path. A claimed job's lease is renewed as long as its worker lives, and no longer.

A thread renews it, so that neither a silent media host nor a slow disk counts as a dead worker. A
process that is killed or stopped takes its thread along.
"""

from contextvars import copy_context
from datetime import timedelta
from threading import Event, Thread
from typing import Protocol, Self

import structlog

from worker.ground.clock import Clock
from worker.ground.db import Database, describe_database_error
from worker.ground.errors import ClaimLostError
from worker.jobs import table
from worker.jobs.values import Job

log = structlog.stdlib.get_logger(__name__)

# Other threads add and remove while it is read: `copy` of a plain set is one step, without a lock
# that a signal handler could wait for in vain.
_beating: set["Heartbeat"] = set()


def abandon_claims() -> None:
    """Let every holder of this process know, at its next check, that its claim is given back."""
    for heartbeat in _beating.copy():
        heartbeat.abandon()


class Holder(Protocol):
    """How a long step checks that its job is still its own. Both raise ClaimLostError."""

    def check(self, *_: object) -> None:
        """Cheap: what is known already."""

    def renew(self) -> None:
        """Check the table, right before something is published."""


class Heartbeat:
    """Renews the lease of a claimed job each third of it, while its context is open."""

    def __init__(self, job: Job, *, db: Database, lease: timedelta, clock: Clock) -> None:
        self._job = job
        self._db = db
        self._lease = lease
        self._clock = clock
        self._stopped = Event()
        self._lost = Event()
        # Its log lines name the job and attempt, as those of the step do.
        run = copy_context().run
        self._thread = Thread(
            target=run, args=(self._beat,), name=f"heartbeat {job.id}", daemon=True
        )

    def __enter__(self) -> Self:
        _beating.add(self)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        _beating.discard(self)
        self._stopped.set()
        self._thread.join()

    def abandon(self) -> None:
        """From now on the claim counts as lost."""
        self._lost.set()

    def check(self, *_: object) -> None:
        """Raises ClaimLostError once another worker has been seen to have the job."""
        if self._lost.is_set():
            raise ClaimLostError(f"job {self._job.id} was taken over")

    def renew(self) -> None:
        """Renew now. Raises ClaimLostError if another worker has taken the job over."""
        with self._db.statement() as connection:
            if not table.extend_claim(connection, self._job, self._clock() + self._lease):
                self._lost.set()
        self.check()

    def _beat(self) -> None:
        while not self._stopped.wait((self._lease / 3).total_seconds()):
            try:
                self.renew()
            except ClaimLostError:
                return
            except Exception as error:  # noqa: BLE001 - without its thread the lease would run out
                # Not lost: the lease may outlive the outage, and the next write shows it.
                reason = describe_database_error(error)
                log.warning("heartbeat_missed", error=type(error).__name__, reason=reason)
