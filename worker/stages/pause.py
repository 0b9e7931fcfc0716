"""Beneath the path. All submissions pause while fal refuses the account (ADR 10).

A refusal of the account would meet every job alike, so one job at a time is tried and the others
wait, without attempts, as long as it takes.
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import structlog
from sqlalchemy import Connection

from worker.clock import Clock
from worker.db import Database
from worker.jobs import gates, table
from worker.jobs.values import Gate

SUBMISSIONS_GATE = "submissions"
# How `blocked_reason` begins for all who wait for the account, whatever fal said to whom.
MARK = "fal refuses the account"

log = structlog.stdlib.get_logger(__name__)


def find_pause(connection: Connection, *, lock: bool = False) -> Gate | None:
    """The pause in force, with fal's words and when one job may be tried; None if there is none."""
    return gates.find_gate(connection, SUBMISSIONS_GATE, lock=lock)


def describe_pause(words: str) -> str:
    return f"{MARK}: {words}"


def begin_pause(connection: Connection, reason: str, until: datetime) -> None:
    """Begin a pause, or let one go on: nobody submits before `until`, and then one job does."""
    gates.shut_gate(connection, Gate(SUBMISSIONS_GATE, until, reason))


def end_pause(connection: Connection) -> None:
    gates.remove_gate(connection, SUBMISSIONS_GATE)


def block_submissions(
    connection: Connection, job_ids: Sequence[UUID], pause: Gate, until: datetime
) -> None:
    """Keep queued jobs waiting, and say why."""
    table.block_queued(connection, job_ids, until, str(pause.reason))


def hasten_blocked(*, db: Database, clock: Clock) -> None:
    """Once a pause is over, let the sweep ring at once for all who waited for that.

    In a transaction of its own: locking many rows after one would invite a deadlock.
    """
    with db.transaction() as connection:
        if find_pause(connection) is None:
            waiting = table.hasten_blocked(connection, MARK, clock())
            log.info("submissions_resumed", waiting=waiting)
