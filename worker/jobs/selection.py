"""Jobs by a filter, from the newest on: all that match, however far one has to look."""

from collections.abc import Iterator
from uuid import UUID

from worker.ground.db import Database
from worker.jobs import overview
from worker.jobs.overview import JobFilter, JobLine
from worker.jobs.values import Job

PAGE = 500


def list_lines(wanted: JobFilter, *, db: Database, limit: int) -> list[JobLine]:
    """At most `limit` of them, the newest first."""
    lines: list[JobLine] = []
    for line in walk_lines(wanted, db=db, size=min(limit, PAGE)):
        lines.append(line)
        if len(lines) == limit:
            break
    return lines


def list_jobs(wanted: JobFilter, *, db: Database, limit: int) -> list[Job]:
    """The same jobs, whole."""
    job_ids = [line.id for line in list_lines(wanted, db=db, limit=limit)]
    return read_jobs(job_ids, db=db)


def read_jobs(job_ids: list[UUID], *, db: Database) -> list[Job]:
    with db.reading() as connection:
        return [
            job
            for start in range(0, len(job_ids), PAGE)
            for job in overview.list_by_ids(connection, job_ids[start : start + PAGE])
        ]


def walk_lines(wanted: JobFilter, *, db: Database, size: int = PAGE) -> Iterator[JobLine]:
    """Every job that matches, in short statements."""
    place = None
    while True:
        with db.reading() as connection:
            page = overview.list_page(connection, wanted, place=place, limit=size)
        yield from page.lines
        place = page.following
        if place is None:
            return
