"""Beneath the path. admit: whether anything may be submitted now.

Submissions pause while fal refuses the account, which would meet every job alike (ADR 10), and
while its replies are unclear, which would leave every job unknown (ADR 16). Then one job at a time
is tried, as a probe; the others wait, without attempts, as long as it takes. Each cause is a row of
its own (a circuit breaker), with its own end.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy import Connection

from worker.fal.submit import Accepted, Ambiguous, RefusalClass, Refused, SubmitReply
from worker.ground.clock import Clock, spread
from worker.ground.db import Database
from worker.jobs import limits, table
from worker.jobs.values import Gate, Job

ACCOUNT_GATE = "submissions"
AMBIGUOUS_GATE = "ambiguous"
# How `blocked_reason` begins for all that wait for one of them.
MARKS = {ACCOUNT_GATE: "fal refuses the account", AMBIGUOUS_GATE: "fal's replies are ambiguous"}
# So many ambiguous replies in a row are an outage.
MOST_AMBIGUOUS = 3
# A pause that goes on further was written by a clock that was wrong.
LONGEST_PAUSE = timedelta(hours=1)

log = structlog.stdlib.get_logger(__name__)


def list_pauses(connection: Connection, *, lock: bool = False) -> list[Gate]:
    """The pauses in force, the one that opens last first; a count of replies is none yet."""
    found = limits.list_gates(connection, list(MARKS), lock=lock)
    return sorted((one for one in found if one.reason), key=lambda one: one.opens_at, reverse=True)


def find_closed(pauses: Sequence[Gate], now: datetime, probe_after: timedelta) -> Gate | None:
    """The pause that forbids even a probe the longest; None if one may be sent. Pure."""
    longest = now + max(probe_after, LONGEST_PAUSE)
    return next((one for one in pauses if now < one.opens_at <= longest), None)


def describe_pause(cause: str, words: str) -> str:
    return f"{MARKS[cause]}: {words}"


def admit_submission(
    connection: Connection, job_id: UUID, now: datetime, probe_after: timedelta
) -> tuple[Gate, ...] | None:
    """The circuit breakers as they are, locked; None if submissions pause, and the job waits.

    Called before any job is locked, here and everywhere, so that two cannot deadlock.
    """
    seen = limits.list_gates(connection, list(MARKS), lock=True)
    pauses = sorted((one for one in seen if one.reason), key=lambda one: one.opens_at, reverse=True)
    closed = find_closed(pauses, now, probe_after)
    if closed is None:
        return tuple(seen)
    table.block_queued(connection, [job_id], closed.opens_at, str(closed.reason))
    return None


def begin_probe(connection: Connection, seen: Sequence[Gate], until: datetime) -> None:
    """Let only the caller submit before `until`, if submissions pause."""
    for gate in seen:
        if gate.reason:
            limits.shut_gate(connection, replace(gate, opens_at=until))


def hold_back(
    connection: Connection, queued: Sequence[Job], now: datetime, probe_after: timedelta
) -> set[UUID]:
    """While submissions pause, keep all back but one, which is the probe when it is time."""
    pauses = list_pauses(connection)
    if not pauses:
        return set()
    closed = find_closed(pauses, now, probe_after)
    held_back = [job.id for job in (queued if closed else queued[1:])]
    wait = max(closed.opens_at - now, timedelta(seconds=1)) if closed else probe_after
    reason = str((closed or pauses[0]).reason)
    table.block_queued(connection, held_back, now + spread(wait), reason)
    return set(held_back)


def note_reply(
    connection: Connection, reply: SubmitReply, seen: Sequence[Gate], until: datetime
) -> None:
    """Begin, lengthen or end pauses by what a reply proves; `seen` are the rows before the POST.

    Called before any job is locked, so that two cannot deadlock.
    """
    match reply:
        case Ambiguous():
            strikes = limits.count_strike(connection, AMBIGUOUS_GATE, until)
            if strikes >= MOST_AMBIGUOUS:
                words = f"{strikes} in a row, the last: {reply.message}"
                _pause(connection, AMBIGUOUS_GATE, words, until, strikes)
            ended = set()
        case Refused(why=RefusalClass.ACCOUNT):
            _pause(connection, ACCOUNT_GATE, f"{reply.code}: {reply.message}", until)
            ended = {AMBIGUOUS_GATE}
        case Accepted() | Refused(why=RefusalClass.INPUT | RefusalClass.BUSY):
            ended = {AMBIGUOUS_GATE, ACCOUNT_GATE}
        case Refused():  # nobody at fal has answered: that says nothing about either
            ended = set()
    for gate in seen:
        if gate.name in ended:
            limits.remove_gate(connection, gate.name)


def _pause(
    connection: Connection, cause: str, words: str, until: datetime, strikes: int = 0
) -> None:
    reason = describe_pause(cause, words)
    limits.shut_gate(connection, Gate(cause, until, reason, strikes))
    log.error("submissions_paused", cause=cause, reason=reason)


def release_waiting(*, db: Database, clock: Clock) -> None:
    """Once a pause is over, let the sweep publish at once for all that waited for it.

    In a transaction of its own: locking many rows after one would invite a deadlock.
    """
    with db.transaction() as connection:
        in_force = {pause.name for pause in list_pauses(connection)}
        for cause, mark in MARKS.items():
            if cause not in in_force:
                waiting = table.hasten_blocked(connection, mark, clock())
                if waiting:
                    log.info("submissions_resumed", cause=cause, waiting=waiting)
