"""Fill a job table with a million jobs as they look after three months, for measurements.

    python benchmarks/million_rows.py sqlite:////tmp/million.db
    python benchmarks/million_rows.py postgresql+psycopg://user:password@db/empty --rows 100000

Nine in ten are archived; some failed or were cancelled; a few hundred live. Tenants and labels are
skewed as customers are. The newest jobs have attempts and events, too. Same seed, same rows.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqlalchemy import Connection, text

from tests.harness.jobs import ENDPOINT, build_result
from worker.db import Database
from worker.jobs.models import AttemptRow, Base, EventRow, JobRow
from worker.jobs.states import ENDED, JobState
from worker.schema import upgrade_schema

ROWS = 1_000_000
DAYS = 90
STORIES = 20_000
CHUNK = 5000
SHARES = {JobState.ARCHIVED: 0.93, JobState.FAILED: 0.05, JobState.CANCELLED: 0.02}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="an empty database")
    parser.add_argument("--rows", type=int, default=ROWS)
    arguments = parser.parse_args()
    began = time.monotonic()
    fill_table(arguments.url, arguments.rows)
    print(f"{arguments.rows} jobs in {time.monotonic() - began:.0f} s")


def fill_table(url: str, rows: int, *, days: float = DAYS) -> None:
    """Migrate the empty database, and fill it with what came in the last days."""
    upgrade_schema(url)
    db = Database(url)
    dice = random.Random(7)  # noqa: S311 - the same rows each time
    jobs = make_jobs(dice, rows, timedelta(days=days))
    try:
        for number, chunk in enumerate(split(jobs, CHUNK)):
            with db.transaction() as connection:
                insert_rows(connection, JobRow, chunk)
                if rows - number * CHUNK <= STORIES:
                    insert_rows(
                        connection, AttemptRow, [*map(make_attempt, filter(was_sent, chunk))]
                    )
                    insert_rows(connection, EventRow, [one for job in chunk for one in tell(job)])
        with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))
    finally:
        db.close()


def make_jobs(dice: random.Random, rows: int, span: timedelta) -> Iterator[Row]:
    """The oldest first; the live ones are the last, and no sweep looks at them for an hour."""
    now = datetime.now(UTC)
    live = [state for state, count in LIVE.items() for _ in range(count * rows // ROWS + 1)]
    dice.shuffle(live)
    pause = span / rows
    for number in range(rows):
        is_live = number >= rows - len(live)
        state = live[rows - number - 1] if is_live else pick(dice, SHARES)
        job = make_job(dice, number, state, now - (rows - number) * pause)
        yield job | {"due_at": None if state in ENDED else now + timedelta(hours=1)}


def make_job(dice: random.Random, number: int, state: JobState, at: datetime) -> Row:
    took = timedelta(seconds=dice.lognormvariate(4.6, 0.5))
    ended_at = at + took
    is_archived = state is JobState.ARCHIVED
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
        "fal_request_id": make_request_id(number) if state is not JobState.QUEUED else None,
        "result": build_result(f"https://v3.fal.media/files/b/{number}.mp4")
        if is_archived
        else None,
        "error_code": dice.choice(CODES) if state is JobState.FAILED else None,
        "archive_uri": f"file:///archive/{number}.mp4" if is_archived else None,
        "archive_sha256": f"{number:064x}" if is_archived else None,
        "archive_bytes": dice.randrange(10**6, 10**8) if is_archived else None,
        "enqueued_at": at,
        "submitted_at": at + took / 20 if state is not JobState.QUEUED else None,
        "completed_at": at + took / 2 if is_archived else None,
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
    if dice.random() < 0.001:  # noqa: PLR2004 - a rare one
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


def make_attempt(job: Row) -> Row:
    return {
        "id": UUID(int=job["id"].int ^ 1),
        "job_id": job["id"],
        "number": 1,
        "fence": 1,
        "token_hash": f"{job['id'].int:064x}",
        "endpoint": ENDPOINT,
        "input": job["input"],
        "options": {},
        "claimed_by": "host:1:aa",
        "started_at": job["submitted_at"],
        "ended_at": job["submitted_at"],
        "outcome": "accepted",
        "fal_request_id": job["fal_request_id"],
        "completed_at": job["completed_at"],
    }


def tell(job: Row) -> Iterator[Row]:
    """The job's history, as far as it has come."""
    ways: list[tuple[str, str, str]] = [
        ("queued", "submitting", "submission_claimed"),
        ("submitting", "submitted", "submission_accepted"),
        ("submitted", "completed", "result_arrived"),
        ("completed", "archiving", "archive_claimed"),
        ("archiving", "archived", "archive_recorded"),
    ]
    if job["state"] == "failed":
        ways[2:] = [("submitted", "failed", "failure_arrived")]
    if job["state"] == "cancelled":
        ways[2:] = [("submitted", "cancelled", "job_cancelled")]
    if job["state"] == "submission_unknown":
        ways[1:] = [("submitting", "submission_unknown", "submission_lost")]
    path = ["queued", *(target for _, target, _ in ways)]
    ended_at = job["archived_at"] or job["failed_at"] or job["cancelled_at"] or datetime.now(UTC)
    moves = [(None, "queued", "enqueued"), *ways][: path.index(job["state"]) + 1]
    step = (ended_at - job["enqueued_at"]) / max(len(moves) - 1, 1)
    for number, (source, target, reason) in enumerate(moves):
        yield {
            "job_id": job["id"],
            "at": job["enqueued_at"] + number * step,
            "from_state": source,
            "to_state": target,
            "reason": reason,
            "detail": None,
            "fence": 1,
        }


def was_sent(job: Row) -> bool:
    return job["submitted_at"] is not None


def pick(dice: random.Random, shares: dict[JobState, float]) -> JobState:
    return dice.choices(list(shares), list(shares.values()))[0]


def split(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    walk = iter(rows)
    while chunk := list(islice(walk, size)):
        yield chunk


def insert_rows(connection: Connection, model: type[Base], rows: Sequence[Row]) -> None:
    """By the driver itself: a million rows through an ORM take minutes."""
    if not rows:
        return
    names = list(rows[0])
    table = model.__tablename__
    if connection.dialect.name == "postgresql":
        copy_rows(connection, f"COPY {table} ({', '.join(names)}) FROM STDIN", rows)
        return
    marks = ", ".join("?" * len(names))
    insertion = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})"  # noqa: S608 - our names
    values = [tuple(map(spell_for_sqlite, row.values())) for row in rows]
    connection.exec_driver_sql(insertion, values)


def copy_rows(connection: Connection, statement: str, rows: Sequence[Row]) -> None:
    driver: Any = connection.connection.driver_connection
    with driver.cursor().copy(statement) as copy:
        for row in rows:
            copy.write_row([encode(value) for value in row.values()])


def spell_for_sqlite(value: object) -> object:
    match value:
        case UUID():
            return value.hex
        case datetime():
            return value.replace(tzinfo=None).isoformat(" ", "microseconds")
        case _:
            return encode(value)


def encode(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
