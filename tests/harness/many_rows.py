"""A job table as it looks after three months: so many jobs with all that was written about them.

Nine in ten are archived; some failed or were cancelled; a few hundred live. Tenants and labels are
skewed as customers are. Same seed, same rows. A million of them take minutes.
"""

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from tests.harness.jobs import ENDPOINT, build_result
from worker.ground.db import Database
from worker.jobs.states import ENDED, JobState

MILLION = 1_000_000
DAYS = 90
CHUNK = 5000
SHARES = {JobState.ARCHIVED: 0.93, JobState.FAILED: 0.05, JobState.CANCELLED: 0.02}
# Of a million; of fewer at least one each.
LIVE = {
    JobState.QUEUED: 300,
    JobState.SUBMITTING: 4,
    JobState.SUBMITTED: 120,
    JobState.SUBMISSION_UNKNOWN: 3,
    JobState.COMPLETED: 10,
    JobState.ARCHIVING: 6,
}
TENANTS = [f"tenant-{number:03}" for number in range(200)]
CODES = ("content_policy_violation", "generation_timeout", "file_download_error", "media_refused")
PROMPTS = ("The camera rises over", "Slow push towards", "Waves roll across", "Rain begins on")
PLACES = ("a harbour at dawn", "the old town", "a field of rye", "the night market", "a glacier")
Row = dict[str, Any]

# ------------------------------------------------------------------ what was written of each job

IS_DONE = "state IN ('completed', 'archiving', 'archived')"
IS_SENT = "submitted_at IS NOT NULL AND state NOT IN ('submitting', 'submission_unknown')"
# A job has one attempt, which has the job's own id, and at most one delivery.
ATTEMPTS = f"""INSERT INTO attempts (id, job_id, number, fence, token_hash, endpoint, input,
    options, claimed_by, started_at, ended_at, outcome, http_status, fal_request_id, completed_at,
    ending, extra_charge_at)
SELECT id, id, 1, 1, 'hash-' || CAST(id AS TEXT), endpoint, input, options, 'host:1:a',
    submitted_at, submitted_at,
    CASE WHEN {IS_SENT} THEN 'accepted' WHEN state = 'submission_unknown' THEN 'unknown' END,
    CASE WHEN {IS_SENT} THEN 200 END, CASE WHEN {IS_SENT} THEN fal_request_id END, completed_at,
    CASE WHEN {IS_DONE} THEN 'ok' END,
    CASE WHEN idempotency_key LIKE '%0077' THEN completed_at END
FROM jobs WHERE submitted_at IS NOT NULL"""
DELIVERIES = f"""INSERT INTO deliveries (job_id, attempt_id, received_at, last_received_at,
    times_received, fal_request_id, status, verdict, body, body_sha256)
SELECT id, id, completed_at, completed_at, 1, fal_request_id, 'OK', 'recorded',
    CAST('{{{{}}}}' AS {{binary}}), 'sha-' || CAST(id AS TEXT)
FROM jobs WHERE {IS_DONE}"""
EVENTS = """INSERT INTO events (job_id, at, from_state, to_state, reason, fence)
SELECT id, {at}, {source}, '{target}', '{reason}', 1 FROM jobs WHERE {where}"""
# When, from, to, reason, which jobs.
WAYS = (
    ("enqueued_at", None, "queued", "enqueued", "1 = 1"),
    ("submitted_at", "queued", "submitting", "submission_claimed", "submitted_at IS NOT NULL"),
    ("submitted_at", "submitting", "submitted", "submission_accepted", IS_SENT),
    (
        *("submitted_at", "submitting", "submission_unknown", "submission_lost"),
        "state = 'submission_unknown'",
    ),
    ("completed_at", "submitted", "completed", "result_arrived", IS_DONE),
    ("failed_at", "submitted", "failed", "failure_arrived", "state = 'failed'"),
    ("cancelled_at", "submitted", "cancelled", "job_cancelled", "state = 'cancelled'"),
    (
        *("completed_at", "completed", "archiving", "archive_claimed"),
        "state IN ('archiving', 'archived')",
    ),
    ("archived_at", "archiving", "archived", "archive_recorded", "state = 'archived'"),
)


def fill_table(db: Database, rows: int, *, newest: datetime, days: float = DAYS) -> None:
    """Add so many jobs of the days before `newest`; the live ones are the last."""
    dice = random.Random(7)
    for chunk in split(make_jobs(dice, rows, newest, timedelta(days=days)), CHUNK):
        with db.transaction() as connection:
            insert_jobs(connection, chunk)
    binary = "BYTEA" if db.engine.dialect.name == "postgresql" else "BLOB"
    with db.transaction() as connection:
        if db.engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            # Foreign keys hold by construction; to look each up takes longer than all the rest.
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            # VACUUM takes no row for there whose commit is not on disk.
            connection.exec_driver_sql("SET LOCAL synchronous_commit = on")
        for statement in (ATTEMPTS, DELIVERIES.format(binary=binary), *write_events()):
            plain = connection.execution_options(no_parameters=True)
            plain.exec_driver_sql(statement)
    _analyze(db)


def write_events() -> Iterator[str]:
    for at, source, target, reason, where in WAYS:
        known = "NULL" if source is None else f"'{source}'"
        yield EVENTS.format(at=at, source=known, target=target, reason=reason, where=where)


def make_jobs(dice: random.Random, rows: int, newest: datetime, span: timedelta) -> Iterator[Row]:
    """The oldest first; no sweep looks at the live ones for an hour."""
    live = [state for state, count in LIVE.items() for _ in range(count * rows // MILLION + 1)]
    dice.shuffle(live)
    pause = span / rows
    for number in range(rows):
        is_live = number >= rows - len(live)
        state = live[rows - number - 1] if is_live else pick(dice, SHARES)
        job = make_job(dice, number, state, newest - (rows - number) * pause)
        yield job | {"due_at": None if state in ENDED else newest + timedelta(hours=1)}


def make_job(dice: random.Random, number: int, state: JobState, at: datetime) -> Row:
    took = timedelta(seconds=dice.lognormvariate(4.6, 0.5))
    ended_at = at + took
    is_archived = state is JobState.ARCHIVED
    is_done = is_archived or state in {JobState.COMPLETED, JobState.ARCHIVING}
    return {
        "id": make_id(dice, at),
        "fence": 2,
        "priority": 0,
        "state": state.value,
        "due_at": None,
        "tenant": TENANTS[int(len(TENANTS) * dice.random() ** 3)],
        "idempotency_key": f"order-{number}" if number % 3 else None,
        "labels": make_labels(dice),
        "endpoint": ENDPOINT,
        "input": make_input(dice, number),
        "options": {},
        "claimed_by": "host:1:a" if state in {JobState.SUBMITTING, JobState.ARCHIVING} else None,
        "fal_request_id": make_request_id(number) if state is not JobState.QUEUED else None,
        "result": build_result(f"https://v3.fal.media/files/b/{number}.mp4") if is_done else None,
        "error_code": dice.choice(CODES) if state is JobState.FAILED else None,
        "archive_uri": f"file:///archive/{number}.mp4" if is_archived else None,
        "archive_sha256": f"{number:064x}" if is_archived else None,
        "archive_bytes": dice.randrange(10**6, 10**8) if is_archived else None,
        "enqueued_at": at,
        "submitted_at": at + took / 20 if state is not JobState.QUEUED else None,
        "completed_at": at + took / 2 if is_done else None,
        "archived_at": ended_at if is_archived else None,
        "failed_at": ended_at if state is JobState.FAILED else None,
        "cancelled_at": ended_at if state is JobState.CANCELLED else None,
    }


def make_input(dice: random.Random, number: int) -> Row:
    """As large as a real one: every field is stored."""
    fields: Row = {
        "prompt": f"{dice.choice(PROMPTS)} {dice.choice(PLACES)}, take {number}",
        "video_url": f"https://v3.fal.media/files/b/{number:x}/source.mp4",
        "negative_prompt": "blurry, out of focus, overexposed, low contrast, washed out, shaky",
        "seed": dice.randrange(2**31),
        "num_frames": 241,
    }
    return fields | {f"option_{place}": place / 3 for place in range(34)}


def make_labels(dice: random.Random) -> Row:
    labels = {"source": dice.choice(("web", "api", "batch"))}
    if dice.random() < 0.001:
        labels["campaign"] = f"c{dice.randrange(20)}"
    return labels


def make_id(dice: random.Random, at: datetime) -> UUID:
    """A UUIDv7 of that moment."""
    milliseconds = int(at.timestamp() * 1000)
    return UUID(
        int=milliseconds << 80
        | 7 << 76
        | dice.getrandbits(12) << 64
        | 2 << 62
        | dice.getrandbits(62)
    )


def make_request_id(number: int) -> str:
    return str(UUID(int=number, version=4))


def pick(dice: random.Random, shares: dict[JobState, float]) -> JobState:
    return dice.choices(list(shares), list(shares.values()))[0]


def split(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    walk = iter(rows)
    while chunk := list(islice(walk, size)):
        yield chunk


def insert_jobs(connection: Connection, rows: Sequence[Row]) -> None:
    """By the driver itself: a million rows through an ORM take minutes more."""
    names = ", ".join(rows[0])
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        driver: Any = connection.connection.driver_connection
        with driver.cursor().copy(f"COPY jobs ({names}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row([encode(value) for value in row.values()])
        return
    marks = ", ".join("?" * len(rows[0]))
    insertion = f"INSERT INTO jobs ({names}) VALUES ({marks})"
    values = [tuple(map(spell_for_sqlite, row.values())) for row in rows]
    connection.exec_driver_sql(insertion, values)


def spell_for_sqlite(value: object) -> object:
    match value:
        case UUID():
            return value.hex
        case datetime():
            return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
        case _:
            return encode(value)


def encode(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict) else value


def _analyze(db: Database) -> None:
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        is_postgres = db.engine.dialect.name == "postgresql"
        if is_postgres:
            connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("VACUUM ANALYZE" if is_postgres else "ANALYZE")
