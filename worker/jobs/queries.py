"""Jobs by a filter, from the newest on: all that match, however far one has to look."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    func,
    literal,
    select,
    tuple_,
)

from worker.ground.db import Database
from worker.jobs.models import AttemptRow, JobRow, UtcDateTime
from worker.jobs.rows import columns_of, fetch_all
from worker.jobs.states import ENDED, JobState
from worker.jobs.values import Job

# ------------------------------------------------------------------ overview


# What is not rare is found in the first rows; what is, is not looked for through the whole table.
WINDOWS = (500, 5000)
MOST_EXACT = 1000
# A list shows one line; a prompt may be as long as a book.
SHOWN_PROMPT = 500
SHORTEST_ID_PREFIX = 8
ID_DIGITS = 32
Condition: TypeAlias = Callable[[Any], ColumnElement[bool]]
"""Made of a window's columns."""


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
    """Only these, for an order that others cannot take."""


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
    blocked_reason: str | None
    error_code: str | None
    submitted_at: datetime | None
    completed_at: datetime | None
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


def parse_label(text: str) -> tuple[str, str | None]:
    """A label's name, and its value if one is meant. Raises ValueError with what is allowed."""
    name, mark, value = text.partition("=")
    if not re.fullmatch(r"[\w.:/-]{1,64}", name):
        raise ValueError("a label as name=value, or its name alone")
    return name, value if mark else None


def list_page(
    connection: Connection,
    wanted: JobFilter,
    *,
    place: Place | None = None,
    limit: int,
    is_backward: bool = False,
) -> JobPage:
    """The jobs that follow `place`; backward those before it, in the same order."""
    exact = find_exact(connection, wanted.text) if wanted.text else []
    found, following = _walk(connection, wanted, exact, place, limit, is_backward=is_backward)
    return JobPage(found[::-1] if is_backward else found, following)


def find_exact(connection: Connection, text: str) -> list[UUID]:
    """Jobs that the text names by an id or key of theirs."""
    keyed = select(JobRow.id).where(JobRow.idempotency_key == text)
    requested = select(AttemptRow.job_id).where(AttemptRow.fal_request_id == text)
    statements: list[Select[Any]] = [keyed, requested]
    span = _span_ids(text)
    if span is not None:
        statements.append(select(JobRow.id).where(JobRow.id >= span[0], JobRow.id <= span[1]))
    return [
        job_id
        for statement in statements
        for job_id in connection.execute(statement.limit(MOST_EXACT)).scalars()
    ]


def list_by_ids(connection: Connection, job_ids: Sequence[UUID]) -> list[Job]:
    """Whole jobs, in the order of the ids."""
    statement = select(*columns_of(JobRow)).where(JobRow.id.in_(job_ids))
    found = {job.id: job for job in fetch_all(connection, Job, statement)}
    return [found[job_id] for job_id in job_ids if job_id in found]


_PROMPT = JobRow.input["prompt"].as_string()
_LINE = [
    *(getattr(JobRow, name) for name in JobLine.__slots__ if name != "prompt"),
    _PROMPT.label("prompt"),
]
_SHOWN_LINE = [*_LINE[:-1], func.substr(_PROMPT, 1, SHOWN_PROMPT).label("prompt")]


def _walk(
    connection: Connection,
    wanted: JobFilter,
    exact: list[UUID],
    place: Place | None,
    limit: int,
    *,
    is_backward: bool,
) -> tuple[list[JobLine], Place | None]:
    """The lines in walking order, and from where to walk on."""
    rest = _list_rest(wanted, is_prompt=bool(wanted.text) and not exact)
    lines: list[JobLine] = []
    for size in WINDOWS if rest else (limit + 1,):
        walk = _select_window(wanted, exact, place, size, is_backward=is_backward)
        statement = (
            _look_through(walk, rest, is_backward=is_backward)
            if rest
            else walk.with_only_columns(*_SHOWN_LINE)
        )
        missing = limit + 1 - len(lines)
        lines += fetch_all(connection, JobLine, statement.limit(missing))
        if len(lines) > limit:
            return lines[:limit], lines[limit - 1].place
        place = _find_window_end(connection, walk, size) if rest else None
        if place is None:
            break
    return lines, place


def _look_through(
    walk: Select[Any], rest: Sequence[Condition], *, is_backward: bool
) -> Select[Any]:
    """Those of the window's rows that meet the rest, in their order."""
    window = walk.subquery()
    columns = [window.c[name] for name in JobLine.__slots__ if name != "prompt"]
    columns.append(func.substr(window.c.prompt, 1, SHOWN_PROMPT).label("prompt"))
    order = _order_by(window.c.enqueued_at, window.c.id, is_backward=is_backward)
    return select(*columns).where(*(condition(window.c) for condition in rest)).order_by(*order)


def _order_by(*columns: Any, is_backward: bool) -> list[Any]:  # noqa: ANN401 - columns of a table or a subquery
    return [one.asc() if is_backward else one.desc() for one in columns]


def _select_window(
    wanted: JobFilter, exact: list[UUID], place: Place | None, size: int, *, is_backward: bool
) -> Select[Any]:
    """The rows that one index walks through, so many at most.

    Of state and tenant the rarer one leads: live states are few.
    """
    key = tuple_(JobRow.enqueued_at, JobRow.id)
    statement = select(*_LINE)
    if exact:
        statement = statement.where(JobRow.id.in_(exact))
    elif wanted.state is not None and _leads_by_state(wanted):
        statement = statement.where(JobRow.state == wanted.state)
    elif wanted.tenant is not None:
        statement = statement.where(JobRow.tenant == wanted.tenant)
    if wanted.since is not None:
        statement = statement.where(JobRow.enqueued_at >= wanted.since)
    if wanted.until is not None:
        statement = statement.where(JobRow.enqueued_at < wanted.until)
    if place is not None:
        at = tuple_(literal(place.enqueued_at, UtcDateTime()), literal(place.id, JobRow.id.type))
        statement = statement.where(key > at if is_backward else key < at)
    order = _order_by(JobRow.enqueued_at, JobRow.id, is_backward=is_backward)
    return statement.order_by(*order).limit(size)


def _leads_by_state(wanted: JobFilter) -> bool:
    return wanted.tenant is None or wanted.state not in ENDED


def _list_rest(wanted: JobFilter, *, is_prompt: bool) -> list[Condition]:
    """What the window's index has not answered, or not for certain."""
    rest: list[Condition] = []
    if wanted.state is not None and (wanted.text or not _leads_by_state(wanted)):
        rest.append(lambda columns: columns.state == wanted.state)
    if wanted.states is not None:
        states = sorted(wanted.states)
        rest.append(lambda columns: columns.state.in_(states))
    if wanted.tenant is not None and (wanted.text or wanted.state is not None):
        rest.append(lambda columns: columns.tenant == wanted.tenant)
    if wanted.label is not None:
        rest.append(partial(_has_label, wanted.label))
    if is_prompt:
        rest.append(lambda columns: columns.prompt.icontains(wanted.text, autoescape=True))
    return rest


def _has_label(label: tuple[str, str | None], columns: Any) -> ColumnElement[bool]:  # noqa: ANN401 - as above
    name, value = label
    found: ColumnElement[str] = columns.labels[name].as_string()
    return found.is_not(None) if value is None else found == value


def _find_window_end(connection: Connection, walk: Select[Any], size: int) -> Place | None:
    """The last row of a full window; None if the window reached the end."""
    last = walk.with_only_columns(JobRow.enqueued_at, JobRow.id).offset(size - 1).limit(1)
    found = connection.execute(last).one_or_none()
    return None if found is None else Place(*found)


def _span_ids(text: str) -> tuple[UUID, UUID] | None:
    """The first and last id that begin so; None if the text begins no id, or too many."""
    digits = text.replace("-", "").lower()
    if not re.fullmatch(f"[0-9a-f]{{{SHORTEST_ID_PREFIX},{ID_DIGITS}}}", digits):
        return None
    return UUID(digits.ljust(ID_DIGITS, "0")), UUID(digits.ljust(ID_DIGITS, "f"))


# ------------------------------------------------------------------ selection


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
            for job in list_by_ids(connection, job_ids[start : start + PAGE])
        ]


def walk_lines(wanted: JobFilter, *, db: Database, size: int = PAGE) -> Iterator[JobLine]:
    """Every job that matches, in short statements."""
    place = None
    while True:
        with db.reading() as connection:
            page = list_page(connection, wanted, place=place, limit=size)
        yield from page.lines
        place = page.following
        if place is None:
            return
