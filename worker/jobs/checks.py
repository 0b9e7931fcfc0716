"""What must hold between the rows, and what the doctor compares with fal and the archive.

Each check is one statement that only reads, for each slice of the table: it sees a consistent
moment, locks nothing, and returns only what violates it. Joined jobs are bounded by the slice, too:
PostgreSQL does not see it from the join alone, and would read the whole table for each slice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, Connection, Uuid, bindparam, func, select, text

from worker.jobs.base import UtcDateTime
from worker.jobs.limits import MANY_POLLS
from worker.jobs.models import JobRow, StrayDeliveryRow
from worker.jobs.rows import count
from worker.jobs.states import EDGES, BlockedBy, JobState
from worker.jobs.values import Verdict
from worker.jobs.walks import Slice

HINT_TIMEOUT = timedelta(days=1)
MOST_REASONS = 10


class Check(StrEnum):
    """What is looked for, by the name that is printed and documented."""

    DUE_TIME = "due_time"
    UNTRACKED_PAYMENT = "untracked_payment"
    TWO_CHARGES = "two_charges"
    ENDED_ROW_CHANGED = "ended_row_changed"
    BROKEN_HISTORY = "broken_history"
    INCOMPLETE_ARCHIVED_ROW = "incomplete_archived_row"
    DAMAGED_ARCHIVE = "damaged_archive"
    UNRECORDED_RESULT = "unrecorded_result"
    UNANSWERED_POLLS = "unanswered_polls"
    LATE_ARCHIVE = "late_archive"
    UNMATCHED_DELIVERY = "unmatched_delivery"
    STRAY_DELIVERY = "stray_delivery"
    MISSING_CHARGE = "missing_charge"
    OVER_CAP = "over_cap"
    SPEND_DIFFERS = "spend_differs"
    OVER_BUDGET = "over_budget"
    ARCHIVED_FILE = "archived_file"
    ORPHAN_AT_FAL = "orphan_at_fal"
    MISSING_AT_FAL = "missing_at_fal"


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation, with the ids to look it up by; a request that nobody owns has no job."""

    check: Check
    job_id: UUID | None
    detail: str
    attempt_id: UUID | None = None
    delivery_id: int | None = None
    fal_request_id: str | None = None


# ------------------------------------------------------------------ the checks


_CHECKS = (
    # A live row without a due time is one that no sweep will ever see.
    """
    SELECT 'due_time' AS finding, id AS job_id, fal_request_id, state || CASE WHEN due_at IS NULL
        THEN ': it is live without a due time' ELSE ': it has ended and has a due time' END
        AS detail
    FROM jobs WHERE id BETWEEN :first AND :last
        AND (state IN ('archived', 'failed', 'cancelled')) <> (due_at IS NULL)
    """,
    # An attempt that may have been paid, and that nothing will poll for.
    """
    SELECT 'untracked_payment' AS finding, attempts.job_id, attempts.id AS attempt_id,
        'the outcome of the attempt is ' || coalesce(outcome, 'missing') || ', the job is '
        || state || CASE WHEN due_at IS NULL
            THEN ': nothing polls fal' ELSE ': no worker holds its submission' END AS detail
    FROM attempts JOIN jobs ON jobs.id = attempts.job_id
    WHERE job_id BETWEEN :first AND :last AND jobs.id BETWEEN :first AND :last
        AND coalesce(outcome, 'unknown') = 'unknown' AND attempts.completed_at IS NULL
        AND (due_at IS NULL OR (outcome IS NULL
            AND NOT (state = 'submitting' AND jobs.fence = attempts.fence)))
    """,
    """
    SELECT 'two_charges' AS finding, job_id, id AS attempt_id, fal_request_id,
        'noted as paid besides the attempt whose result the job has' AS detail
    FROM attempts WHERE job_id BETWEEN :first AND :last AND extra_charge_at IS NOT NULL
    """,
    """
    SELECT 'two_charges' AS finding, job_id,
        paid || ' attempts have a request that ran or may run, and none is noted' AS detail
    FROM (SELECT job_id, count(extra_charge_at) AS noted, count(CASE WHEN ending = 'ok'
            OR (ending IS NULL AND fal_request_id IS NOT NULL) THEN 1 END) AS paid
        FROM attempts WHERE job_id BETWEEN :first AND :last GROUP BY job_id) AS counted
    WHERE paid > 1 AND noted = 0
    """,
    """
    SELECT 'broken_history' AS finding, id AS job_id, 'it has no events' AS detail FROM jobs
    WHERE id BETWEEN :first AND :last
        AND NOT EXISTS (SELECT 1 FROM events WHERE job_id = jobs.id)
    """,
    # Each event begins where the one before ended, along an edge, and the newest gives the state.
    # What breaks this after the job's end is a finding of its own: an ended row may be relied on.
    """
    SELECT job_id, CASE WHEN before IN ('archived', 'failed', 'cancelled')
            OR (is_newest AND to_state IN ('archived', 'failed', 'cancelled'))
            THEN 'ended_row_changed' ELSE 'broken_history' END AS finding,
        'event ' || id || ' (' || coalesce(from_state, 'none') || ' → ' || to_state || ', '
        || reason || ') ' || fault AS detail
    FROM (SELECT event.*, CASE
            WHEN is_newest AND to_state <> state
                THEN 'is the newest one, yet the job is ' || state
            WHEN before IS NULL AND (from_state IS NOT NULL OR reason <> 'enqueued')
                THEN 'is the first one, yet not its enqueuing'
            WHEN coalesce(from_state, '') <> before THEN 'follows an event into ' || before
            WHEN before IS NOT NULL
                AND from_state || ' ' || reason || ' ' || to_state NOT IN :edges
                THEN 'is no edge of the state machine' END AS fault
        FROM (SELECT job_id, id, from_state, reason, to_state,
                lag(to_state) OVER story AS before, lead(id) OVER story IS NULL AS is_newest
            FROM events WHERE job_id BETWEEN :first AND :last
            WINDOW story AS (PARTITION BY job_id ORDER BY id)) AS event
        JOIN jobs ON jobs.id = job_id WHERE jobs.id BETWEEN :first AND :last) AS judged
    WHERE fault IS NOT NULL ORDER BY job_id, id
    """,
    # An archived row promises a result and a file with its checksum, until the file is pruned.
    """
    SELECT 'incomplete_archived_row' AS finding, id AS job_id, fal_request_id,
        'archived without a result, or without its file, checksum, size or time' AS detail
    FROM jobs WHERE id BETWEEN :first AND :last AND state = 'archived'
        AND (result IS NULL OR archive_sha256 IS NULL OR archive_bytes IS NULL
            OR archived_at IS NULL OR (archive_uri IS NULL AND archive_pruned_at IS NULL))
    """,
    # What `verify` has found, and that has not been repaired since.
    """
    SELECT 'damaged_archive' AS finding, id AS job_id, fal_request_id,
        coalesce(archive_uri, '') || ': ' || archive_error AS detail
    FROM jobs WHERE id BETWEEN :first AND :last
        AND archive_error IS NOT NULL AND archive_pruned_at IS NULL
    """,
    # A paid video that is still only at fal, and was reported as late.
    """
    SELECT 'late_archive' AS finding, id AS job_id, fal_request_id,
        state || ', and its video is late: ' || coalesce(blocked_reason, 'nothing holds it up')
        AS detail
    FROM jobs WHERE id BETWEEN :first AND :last AND due_at IS NOT NULL
        AND state IN ('completed', 'archiving') AND archive_alarmed_at IS NOT NULL
    """,
    # A webhook that was taken must have had its effect on the attempt that it names. Rows written
    # by release 0.1.0 do not say when fal finished their attempt; the job's state does.
    """
    SELECT 'unmatched_delivery' AS finding, job_id, attempt_id, delivery_id, fal_request_id, detail
    FROM (SELECT deliveries.job_id, attempt_id, deliveries.id AS delivery_id,
            deliveries.fal_request_id, CASE
            WHEN attempts.job_id <> deliveries.job_id
                THEN 'it belongs to another job than its attempt'
            WHEN verdict <> 'hint'
                AND coalesce(attempts.fal_request_id, '') <> deliveries.fal_request_id
                THEN 'it names another request than its attempt'
            WHEN verdict = 'recorded' AND attempts.completed_at IS NULL
                AND state NOT IN ('completed', 'archiving', 'archived', 'failed')
                THEN 'it was recorded, and its attempt is not completed'
            WHEN verdict = 'hint' AND received_at < :old AND attempts.completed_at IS NULL
                AND due_at IS NOT NULL
                THEN 'it proves nothing, is older than a day, and its attempt is not completed'
            END AS detail
        FROM deliveries JOIN attempts ON attempts.id = attempt_id
        JOIN jobs ON jobs.id = deliveries.job_id
        WHERE deliveries.job_id BETWEEN :first AND :last
            AND jobs.id BETWEEN :first AND :last) AS judged
    WHERE detail IS NOT NULL
    """,
    # What fal has finished, and the database refuses each time it is recorded.
    """
    SELECT 'unrecorded_result' AS finding, id AS job_id, fal_request_id, blocked_reason AS detail
    FROM jobs WHERE id BETWEEN :first AND :last
        AND state = 'submitted' AND blocked_by = 'unrecordable'
    """,
    # Requests about which fal has said nothing of use, several polls in a row. SQLite writes ids
    # without dashes.
    """
    SELECT 'unanswered_polls' AS finding, id AS job_id, fal_request_id, blocked_reason AS detail
    FROM jobs WHERE id BETWEEN :first AND :last
        AND state = 'submitted' AND blocked_by = 'unanswered'
        AND EXISTS (SELECT 1 FROM gates WHERE strikes >= :many_polls AND replace(name, '-', '')
            = 'poll ' || replace(cast(jobs.id AS text), '-', ''))
    """,
    # Since there are charges each attempt has one, written in the transaction that admitted it.
    """
    SELECT 'missing_charge' AS finding, job_id, id AS attempt_id, fal_request_id,
        'it was begun, and no row of charges says what it costs' AS detail
    FROM attempts WHERE job_id BETWEEN :first AND :last
        AND started_at >= (SELECT min(admitted_at) FROM charges)
        AND NOT EXISTS (SELECT 1 FROM charges WHERE attempt_id = attempts.id)
    """,
)
_EDGES = sorted(f"{source} {event} {target}" for (source, event), target in EDGES.items())
_VALUES: tuple[BindParameter[Any], ...] = (
    bindparam("first", type_=Uuid()),
    bindparam("last", type_=Uuid()),
    bindparam("old", type_=UtcDateTime()),
    bindparam("edges", _EDGES, expanding=True),
    bindparam("many_polls", MANY_POLLS),
)
_STATEMENTS = [
    text(sql).bindparams(*(one for one in _VALUES if f":{one.key}" in sql)) for sql in _CHECKS
]


def check_slice(connection: Connection, part: Slice, now: datetime) -> Iterator[Finding]:
    """Every violation that the rows themselves show."""
    values = {"first": part.first, "last": part.last, "old": now - HINT_TIMEOUT}
    for statement in _STATEMENTS:
        typed = statement.columns(job_id=Uuid(), attempt_id=Uuid())
        for row in connection.execute(typed, values).mappings():
            found = dict(row)
            yield Finding(Check(found.pop("finding")), **found)


def find_strays(connection: Connection) -> Iterator[Finding]:
    """Webhooks with a token of ours whose job has no row: it may be paid for."""
    row = StrayDeliveryRow
    for stray in connection.execute(select(row.__table__).order_by(row.id)):
        worth = "proves" if stray.verdict == Verdict.KEPT else "says without proof"
        detail = (
            f"a webhook of attempt {stray.number} {worth} that fal's end was {stray.status}, and "
            "its job has no row; the body is in stray_deliveries"
        )
        yield Finding(
            Check.STRAY_DELIVERY, stray.job_id, detail, None, stray.id, stray.fal_request_id
        )


def count_jobs(connection: Connection, part: Slice) -> int:
    return count(connection, part.covers(JobRow.id))


def count_held(connection: Connection) -> list[tuple[str, int]]:
    """How many unknown submissions are held, by the reason; the most frequent ones."""
    jobs = func.count()
    statement = (
        select(JobRow.blocked_reason, jobs)
        .where(
            JobRow.due_at.is_not(None),
            JobRow.state == JobState.SUBMISSION_UNKNOWN,
            JobRow.blocked_by == BlockedBy.HOLD.value,
        )
        .group_by(JobRow.blocked_reason)
        .order_by(jobs.desc(), JobRow.blocked_reason)
        .limit(MOST_REASONS)
    )
    return [(str(reason), number) for reason, number in connection.execute(statement)]


def count_blocked(connection: Connection) -> int:
    """Queued jobs that wait for a reason."""
    is_queued = (JobRow.due_at.is_not(None), JobRow.state == JobState.QUEUED)
    return count(connection, *is_queued, JobRow.blocked_by.is_not(None))
