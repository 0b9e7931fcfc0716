"""A job table as it looks after a year: so many jobs with all that was written about them.

The database makes the rows itself: a million of them take a minute or two. Of a hundred jobs one is
live (each live state in turn), three have failed, one is cancelled, and the others are archived.
"""

from collections.abc import Mapping

from sqlalchemy import Connection
from typing_extensions import override

from worker.db import Database

# Job n was enqueued n * SPACING seconds before the newest.
SPACING = 3
STATE = """CASE WHEN n % 100 = 0 THEN CASE (n / 100) % 6 WHEN 0 THEN 'queued'
    WHEN 1 THEN 'submitting' WHEN 2 THEN 'submission_unknown' WHEN 3 THEN 'submitted'
    WHEN 4 THEN 'completed' ELSE 'archiving' END
    WHEN n % 100 < 4 THEN 'failed' WHEN n % 100 = 4 THEN 'cancelled' ELSE 'archived' END"""
DONE = "state IN ('completed', 'archiving', 'archived')"
SENT = "state NOT IN ('queued', 'submitting', 'submission_unknown', 'cancelled')"
INPUT = """{"prompt": "a quiet street in the rain, the camera moves on slowly", "seed": 7,
"video_url": "https://v3.fal.media/files/b/0a/clip.mp4", "num_frames": 241, "mode": "extend"}"""
RESULT = """{"video": {"url": "https://v3.fal.media/files/b/0a/out.mp4", "num_frames": 241,
"content_type": "video/mp4"}, "seed": 7, "prompt": "a quiet street in the rain"}"""
SPELLINGS: dict[str, Mapping[str, str]] = {
    "postgresql": {
        "numbers": "SELECT n FROM generate_series(0, {rows} - 1) AS n",
        "id": "('{kind}0000-0000-7000-8000-' || lpad(to_hex({top} - n), 12, '0'))::uuid",
        "at": "to_timestamp({base} - n * {spacing} + {later})",
        "json": "::jsonb",
        "bytes": "'{{}}'::bytea",
    },
    "sqlite": {
        "numbers": "WITH RECURSIVE c(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM c"
        " WHERE n < {rows} - 1) SELECT n FROM c",
        "id": "'{kind}000000007000' || '8000' || printf('%012x', {top} - n)",
        "at": "strftime('%Y-%m-%d %H:%M:%f000', {base} - n * {spacing} + {later}, 'unixepoch')",
        "json": "",
        "bytes": "x'7b7d'",
    },
}
JOBS = """INSERT INTO jobs (id, fence, priority, state, due_at, tenant, labels, endpoint, input,
    options, claimed_by, fal_request_id, result, error_code, archive_uri, archive_sha256,
    archive_bytes, enqueued_at, submitted_at, completed_at, archived_at, failed_at, cancelled_at)
SELECT {job}, 2, 0, state, CASE WHEN n % 100 = 0 THEN {at:3600} END, 'tenant-' || (n % 50),
    '{{"batch": "b7"}}'{json}, 'fal-ai/ltx-2.3-22b/extend-video', '{input}'{json}, '{{}}'{json},
    CASE WHEN state IN ('submitting', 'archiving') THEN 'host:1:a' END,
    CASE WHEN {sent} THEN 'request-' || n END, CASE WHEN {done} THEN '{result}'{json} END,
    CASE WHEN state = 'failed' THEN 'content_policy_violation' END,
    CASE WHEN state = 'archived' THEN 'file:///archive/' || n || '.mp4' END,
    CASE WHEN state = 'archived' THEN 'e3b0c44298fc1c149afbf4c8996fb92427ae41e464' END,
    CASE WHEN state = 'archived' THEN 8000000 + n % 1000 END,
    {at:0}, CASE WHEN {sent} THEN {at:4} END, CASE WHEN {done} THEN {at:100} END,
    CASE WHEN state = 'archived' THEN {at:110} END, CASE WHEN state = 'failed' THEN {at:90} END,
    CASE WHEN state = 'cancelled' THEN {at:50} END
FROM (SELECT n, {state} AS state FROM ({numbers}) AS numbers) AS made"""
ATTEMPTS = """INSERT INTO attempts (id, job_id, number, fence, token_hash, endpoint, input, options,
    claimed_by, started_at, ended_at, outcome, http_status, fal_request_id, completed_at, ending,
    extra_charge_at)
SELECT {attempt}, {job}, 1, 1, 'hash-' || n, 'fal-ai/ltx-2.3-22b/extend-video', '{input}'{json},
    '{{}}'{json}, 'host:1:a', {at:3}, {at:4},
    CASE WHEN {sent} THEN 'accepted' WHEN state = 'submission_unknown' THEN 'unknown' END, 200,
    CASE WHEN {sent} THEN 'request-' || n END, CASE WHEN {done} THEN {at:100} END,
    CASE WHEN {done} THEN 'ok' END, CASE WHEN n % 10000 = 77 THEN {at:100} END
FROM (SELECT n, {state} AS state FROM ({numbers}) AS numbers) AS made
WHERE state NOT IN ('queued', 'cancelled')"""
DELIVERIES = """INSERT INTO deliveries (job_id, attempt_id, received_at, last_received_at,
    times_received, fal_request_id, status, verdict, body, body_sha256)
SELECT {job}, {attempt}, {at:100}, {at:100}, 1, 'request-' || n, 'OK', 'recorded', {bytes},
    'sha-' || n
FROM (SELECT n, {state} AS state FROM ({numbers}) AS numbers) AS made WHERE {done}"""
EVENTS = """INSERT INTO events (job_id, at, from_state, to_state, reason, fence)
SELECT {job}, {at}, {source}, '{target}', '{reason}', {fence}
FROM (SELECT n, {state} AS state FROM ({numbers}) AS numbers) AS made WHERE {where}"""
# Seconds after the enqueuing, from, to, reason, which jobs.
WAYS = (
    (0, None, "queued", "enqueued", "1 = 1"),
    (3, "queued", "submitting", "submission_claimed", "state NOT IN ('queued', 'cancelled')"),
    (4, "submitting", "submitted", "submission_accepted", SENT),
    (100, "submitted", "completed", "result_arrived", DONE),
    (90, "submitted", "failed", "failure_arrived", "state = 'failed'"),
    (50, "queued", "cancelled", "job_cancelled", "state = 'cancelled'"),
    (101, "completed", "archiving", "archive_claimed", "state IN ('archiving', 'archived')"),
    (110, "archiving", "archived", "archive_recorded", "state = 'archived'"),
)


class _Times:
    """`{at:100}` in a statement: 100 seconds after the job was enqueued."""

    def __init__(self, spelling: str, base: float) -> None:
        self._spelling, self._base = spelling, base

    @override
    def __format__(self, later: str) -> str:
        return self._spelling.format(base=self._base, spacing=SPACING, later=later)


def fill_table(db: Database, rows: int, *, newest: float) -> None:
    """Add so many jobs, the newest of them enqueued at that POSIX time."""
    words = SPELLINGS[db.engine.dialect.name]
    given = {
        "numbers": words["numbers"].format(rows=rows),
        "job": words["id"].format(kind="0193", top=rows),
        "attempt": words["id"].format(kind="0194", top=rows),
        "at": _Times(words["at"], newest),
        "state": STATE,
        "done": DONE,
        "sent": SENT,
        "json": words["json"],
        "bytes": words["bytes"],
        "input": INPUT,
        "result": RESULT,
    }
    with db.transaction() as connection:
        if db.engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        for statement in (JOBS, ATTEMPTS, DELIVERIES):
            _run(connection, statement.format(**given))
        for later, source, target, reason, where in WAYS:
            way = {"target": target, "reason": reason, "where": where, "fence": 0}
            way["source"] = "NULL" if source is None else f"'{source}'"
            way["at"] = f"{given['at']:{later}}"
            _run(connection, EVENTS.format(**{**given, **way}))
    _analyze(db)


def _run(connection: Connection, statement: str) -> None:
    plain = connection.execution_options(no_parameters=True)
    plain.exec_driver_sql(statement)


def _analyze(db: Database) -> None:
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        is_postgres = db.engine.dialect.name == "postgresql"
        if is_postgres:
            connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("VACUUM ANALYZE" if is_postgres else "ANALYZE")
