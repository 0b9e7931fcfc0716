"""Beneath the path. Submissions pause while fal refuses the account, or its replies are unclear.

A refusal of the account would meet every job alike (ADR 10), and an outage behind fal's front door
would leave every job unknown (ADR 16). So one job at a time is tried, as a probe, and the others
wait, without attempts, as long as it takes. Each cause is a row of its own, with its own end.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from sqlalchemy import Connection

from worker.fal.submit import Accepted, Ambiguous, RefusalClass, Refused, SubmitReply
from worker.ground.clock import Clock
from worker.ground.db import Database
from worker.jobs import limits, table
from worker.jobs.values import Gate

# ------------------------------------------------------------------ pause


ACCOUNT_GATE = "submissions"
AMBIGUOUS_GATE = "ambiguous"
# How `blocked_reason` begins for all who wait for one of them.
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


def is_closed(pause: Gate, now: datetime, probe_after: timedelta) -> bool:
    """Whether nobody may submit: not before `opens_at`, which a wrong clock may have set; pure."""
    return now < pause.opens_at <= now + max(probe_after, LONGEST_PAUSE)


def describe_pause(cause: str, words: str) -> str:
    return f"{MARKS[cause]}: {words}"


def push_on(connection: Connection, pauses: Sequence[Gate], until: datetime) -> None:
    """Let nobody but the caller submit before `until`."""
    for pause in pauses:
        limits.shut_gate(connection, Gate(pause.name, until, pause.reason, pause.strikes))


def note_reply(
    connection: Connection, reply: SubmitReply, seen: Sequence[Gate], until: datetime
) -> None:
    """Begin, lengthen or end pauses by what a reply proves; `seen` are the gates before the POST.

    Called before any job is locked, so that two cannot deadlock.
    """
    match reply:
        case Ambiguous():
            strikes = limits.count_strike(connection, AMBIGUOUS_GATE, until)
            if strikes >= MOST_AMBIGUOUS:
                words = f"{strikes} in a row, the last: {reply.message}"
                _begin(connection, AMBIGUOUS_GATE, words, until, strikes)
        case Refused(why=RefusalClass.ACCOUNT):
            _begin(connection, ACCOUNT_GATE, f"{reply.code}: {reply.message}", until)
            _end(connection, seen, AMBIGUOUS_GATE)
        case Accepted() | Refused(why=RefusalClass.INPUT | RefusalClass.BUSY):
            _end(connection, seen, AMBIGUOUS_GATE, ACCOUNT_GATE)
        case Refused():
            pass  # nobody at fal has answered: that says nothing about either


def _begin(
    connection: Connection, cause: str, words: str, until: datetime, strikes: int = 0
) -> None:
    reason = describe_pause(cause, words)
    limits.shut_gate(connection, Gate(cause, until, reason, strikes))
    log.error("submissions_paused", cause=cause, reason=reason)


def _end(connection: Connection, seen: Sequence[Gate], *causes: str) -> None:
    for gate in seen:
        if gate.name in causes:
            limits.remove_gate(connection, gate.name)


def block_submissions(
    connection: Connection, job_ids: Sequence[UUID], pause: Gate, until: datetime
) -> None:
    """Keep queued jobs waiting, and say why."""
    table.block_queued(connection, job_ids, until, str(pause.reason))


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
