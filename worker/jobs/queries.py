"""Lists of jobs for people, in statements that a million rows do not slow.

Lists are paged by key, never by offset. What no index serves is searched in a window of the newest
rows that an index finds; a page that its window has not filled says where to go on.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Select, asc, desc, func, select, true, union_all

from worker.ground.clock import read_moment
from worker.ground.db import Database
from worker.jobs.models import AttemptRow, JobRow
from worker.jobs.rows import columns_of, fetch_all
from worker.jobs.states import ENDED, JobState
from worker.jobs.values import Job
from worker.jobs.walks import PLACE, bind_place

# What is not rare is found in the first rows; what is, is not searched through the whole table.
WINDOW = 5000
PAGE = 500
MOST_EXACT = 1000
# A list shows one line; a prompt may be as long as a book.
SHOWN_PROMPT = 500
SHORTEST_ID_PREFIX = 8
ID_DIGITS = 32


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs are meant; without anything, all.

    `text` is a job's id or how it begins, an idempotency key, a request id of fal's, or else a
    part of the prompt.
    """

    state: JobState | None = None
    tenant: str | None = None
    label: tuple[str, str | None] | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None
    states: frozenset[JobState] | None = None
    """Only these, for a command that applies to no others."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the order of jobs a page ends, and the next one begins."""

    enqueued_at: datetime
    id: UUID


@dataclass(frozen=True, slots=True)
class JobLine:
    """As much of a job as a list shows."""

    id: UUID
    state: JobState
    tenant: str
    labels: dict[str, str]
    enqueued_at: datetime
    due_at: datetime | None
    blocked_by: str | None
    blocked_reason: str | None
    error_code: str | None
    archived_at: datetime | None
    failed_at: datetime | None
    cancelled_at: datetime | None
    archive_bytes: int | None
    prompt: str | None
    """Its beginning."""

    @property
    def place(self) -> Place:
        return Place(self.enqueued_at, self.id)


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs in their order, the newest first, and where to go on; None where there is no more."""

    lines: list[JobLine]
    following: Place | None


_PROMPT = JobRow.input["prompt"].as_string()
_LINE = [name for name in JobLine.__slots__ if name != "prompt"]
# What the columns of `jobs`, or of a window of it, have to meet.
_Demand = Callable[[Any], ColumnElement[bool]]


def parse_label(text: str) -> tuple[str, str | None]:
    """A label's name, and its value if one is meant. Raises ValueError with what is allowed."""
    name, mark, value = text.partition("=")
    if not re.fullmatch(r"[\w.:/-]{1,64}", name):
        raise ValueError("a label as name=value, or its name alone")
    return name, value if mark else None


def parse_filter(texts: Mapping[str, str], now: datetime) -> tuple[JobFilter, dict[str, str]]:
    """The filter that texts by field describe; by field, what is allowed instead of invalid ones.

    An invalid text does not narrow the filter.
    """
    wanted, wrong = JobFilter(), dict[str, str]()
    for name, text in texts.items():
        try:
            wanted = replace(wanted, **{name: _parse_field(name, text, now)})
        except ValueError as error:
            wrong[name] = str(error)
    return wanted, wrong


def _parse_field(name: str, text: str, now: datetime) -> Any:  # noqa: ANN401 - by the field
    if "\0" in text:
        # PostgreSQL takes none with it, not even to compare.
        raise ValueError("text without a NUL")
    match name:
        case "state" if text not in set(JobState):
            raise ValueError(f"one of {', '.join(JobState)}")
        case "state":
            return JobState(text)
        case "label":
            return parse_label(text)
        case "since" | "until":
            return read_moment(text, now)
        case _:
            return text


def list_page(
    connection: Connection,
    wanted: JobFilter,
    *,
    place: Place | None = None,
    limit: int,
    is_backward: bool = False,
) -> JobPage:
    """The jobs that follow `place`; backward those before it, in the same order."""
    demands = _list_demands(connection, wanted)
    # One of them leads through its index: a live state has fewer jobs than a tenant.
    is_live = wanted.state is not None and wanted.state not in ENDED
    names = ("id", "state", "tenant") if is_live else ("id", "tenant", "state")
    leading = next((demands.pop(name) for name in names if name in demands), lambda _: true())
    turn = asc if is_backward else desc
    columns, prompt = [getattr(JobRow, name) for name in _LINE], _PROMPT.label("prompt")
    walk = select(*columns, prompt).where(leading(JobRow))
    if wanted.since is not None:
        walk = walk.where(JobRow.enqueued_at >= wanted.since)
    if wanted.until is not None:
        walk = walk.where(JobRow.enqueued_at < wanted.until)
    if place is not None:
        at = bind_place(place.enqueued_at, place.id)
        walk = walk.where(at < PLACE if is_backward else at > PLACE)
    walk = statement = walk.order_by(turn(JobRow.enqueued_at), turn(JobRow.id))
    if demands:
        window = walk.limit(WINDOW).subquery().c
        columns, prompt = [window[name] for name in _LINE], window.prompt
        statement = select(window.id).where(*(meets(window) for meets in demands.values()))
        statement = statement.order_by(turn(window.enqueued_at), turn(window.id))
    shown = func.substr(prompt, 1, SHOWN_PROMPT).label("prompt")
    statement = statement.with_only_columns(*columns, shown).limit(limit + 1)
    lines = fetch_all(connection, JobLine, statement)
    following = None
    if len(lines) > limit:
        lines = lines[:limit]
        following = lines[-1].place
    elif demands:
        end = walk.with_only_columns(JobRow.enqueued_at, JobRow.id).offset(WINDOW - 1).limit(1)
        found = connection.execute(end).one_or_none()
        following = None if found is None else Place(*found)
    return JobPage(lines[::-1] if is_backward else lines, following)


def _list_demands(connection: Connection, wanted: JobFilter) -> dict[str, _Demand]:
    """By name, all but the times."""
    demands: dict[str, _Demand] = {}
    if wanted.text and (exact := find_exact(connection, wanted.text)):
        demands["id"] = lambda of: of.id.in_(exact)
    elif wanted.text:
        demands["text"] = lambda of: of.prompt.icontains(wanted.text, autoescape=True)
    if wanted.state is not None:
        demands["state"] = lambda of: of.state == wanted.state
    if wanted.states is not None:
        states = sorted(wanted.states)
        demands["states"] = lambda of: of.state.in_(states)
    if wanted.tenant is not None:
        demands["tenant"] = lambda of: of.tenant == wanted.tenant
    if wanted.label is not None:
        name, value = wanted.label
        demands["label"] = lambda of: (
            of.labels[name].as_string().is_not(None)
            if value is None
            else of.labels[name].as_string() == value
        )
    return demands


def find_exact(connection: Connection, text: str) -> Sequence[UUID]:
    """Jobs that the text names by an id or key of theirs, or that have an id that begins so."""
    statements: list[Select[Any]] = [
        select(JobRow.id).where(JobRow.idempotency_key == text),
        select(AttemptRow.job_id).where(AttemptRow.fal_request_id == text),
    ]
    digits = text.replace("-", "").lower()
    if re.fullmatch(f"[0-9a-f]{{{SHORTEST_ID_PREFIX},{ID_DIGITS}}}", digits):
        first, last = UUID(digits.ljust(ID_DIGITS, "0")), UUID(digits.ljust(ID_DIGITS, "f"))
        statements.append(select(JobRow.id).where(JobRow.id.between(first, last)))
    return connection.execute(union_all(*statements).limit(MOST_EXACT)).scalars().all()


def list_by_ids(connection: Connection, job_ids: Sequence[UUID]) -> list[Job]:
    """Whole jobs, in the order of the ids."""
    statement = select(*columns_of(JobRow)).where(JobRow.id.in_(job_ids))
    found = {job.id: job for job in fetch_all(connection, Job, statement)}
    return [found[job_id] for job_id in job_ids if job_id in found]


def list_lines(wanted: JobFilter, *, db: Database, limit: int) -> list[JobLine]:
    """At most `limit` of them, the newest first."""
    return list(islice(walk_lines(wanted, db=db, size=min(limit, PAGE)), limit))


def list_jobs(wanted: JobFilter, *, db: Database, limit: int) -> list[Job]:
    """The same jobs, whole."""
    job_ids = [line.id for line in list_lines(wanted, db=db, limit=limit)]
    return read_jobs(job_ids, db=db)


def read_jobs(job_ids: list[UUID], *, db: Database) -> list[Job]:
    with db.reading() as connection:
        return [
            job
            for start in range(0, len(job_ids), PAGE)
            for job in list_by_ids(connection, job_ids[start : start + PAGE])
        ]


def walk_lines(wanted: JobFilter, *, db: Database, size: int = PAGE) -> Iterator[JobLine]:
    """Every job that matches, in short statements."""
    place, has_more = None, True
    while has_more:
        with db.reading() as connection:
            page = list_page(connection, wanted, place=place, limit=size)
        yield from page.lines
        place = page.following
        has_more = place is not None
