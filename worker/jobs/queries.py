"""Lists of jobs for people, in statements that a million rows do not slow.

Lists are paged by key, never by offset. What no index serves is searched in a window of the newest
rows that an index finds; a page that its window has not filled says where to go on.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Select, func, literal, select, tuple_

from worker.ground.clock import read_moment
from worker.ground.db import Database
from worker.jobs.models import AttemptRow, JobRow, UtcDateTime
from worker.jobs.rows import columns_of, fetch_all
from worker.jobs.states import ENDED, JobState
from worker.jobs.values import Job

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


_PROMPT = JobRow.input["prompt"].as_string()
_LINE = [getattr(JobRow, name) for name in JobLine.__slots__ if name != "prompt"]


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


def _parse_field(name: str, text: str, now: datetime) -> Any:  # noqa: ANN401 - by the field's name
    if "\0" in text:
        # PostgreSQL takes none with it, not even to compare.
        raise ValueError("text without a NUL")
    match name:
        case "state":
            if text not in set(JobState):
                raise ValueError(f"one of {', '.join(JobState)}")
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
    exact = find_exact(connection, wanted.text) if wanted.text else []
    # Of state and tenant the rarer one leads through its index: live states are few.
    is_by_state = wanted.tenant is None or wanted.state not in ENDED
    walk = select(*_LINE, _PROMPT.label("prompt"))
    if exact:
        walk = walk.where(JobRow.id.in_(exact))
    elif wanted.state is not None and is_by_state:
        walk = walk.where(JobRow.state == wanted.state)
    elif wanted.tenant is not None:
        walk = walk.where(JobRow.tenant == wanted.tenant)
    if wanted.since is not None:
        walk = walk.where(JobRow.enqueued_at >= wanted.since)
    if wanted.until is not None:
        walk = walk.where(JobRow.enqueued_at < wanted.until)
    if place is not None:
        key = tuple_(JobRow.enqueued_at, JobRow.id)
        at = tuple_(literal(place.enqueued_at, UtcDateTime()), literal(place.id, JobRow.id.type))
        walk = walk.where(key > at if is_backward else key < at)
    walk = walk.order_by(*_order(JobRow, is_backward=is_backward))

    is_whole_answer = not (wanted.text or wanted.label or wanted.states) and (
        wanted.state is None or wanted.tenant is None
    )
    if is_whole_answer:
        shown = func.substr(_PROMPT, 1, SHOWN_PROMPT).label("prompt")
        statement = walk.with_only_columns(*_LINE, shown)
    else:
        window = walk.limit(WINDOW).subquery().c
        conditions = _list_conditions(window, wanted, is_prompt=bool(wanted.text) and not exact)
        shown = func.substr(window.prompt, 1, SHOWN_PROMPT).label("prompt")
        statement = select(*(window[column.key] for column in _LINE), shown).where(*conditions)
        statement = statement.order_by(*_order(window, is_backward=is_backward))
    lines = fetch_all(connection, JobLine, statement.limit(limit + 1))
    following = None
    if len(lines) > limit:
        lines = lines[:limit]
        following = lines[-1].place
    elif not is_whole_answer:
        end = walk.with_only_columns(JobRow.enqueued_at, JobRow.id).offset(WINDOW - 1).limit(1)
        found = connection.execute(end).one_or_none()
        following = None if found is None else Place(*found)
    return JobPage(lines[::-1] if is_backward else lines, following)


def _order(columns: Any, *, is_backward: bool) -> list[ColumnElement[Any]]:  # noqa: ANN401 - of a table or subquery
    key = (columns.enqueued_at, columns.id)
    return [one.asc() if is_backward else one.desc() for one in key]


def _list_conditions(
    window: Any,  # noqa: ANN401 - columns of a subquery
    wanted: JobFilter,
    *,
    is_prompt: bool,
) -> Iterator[ColumnElement[bool]]:
    """All but the times, also what the window's index has answered already."""
    if wanted.state is not None:
        yield window.state == wanted.state
    if wanted.states is not None:
        yield window.state.in_(sorted(wanted.states))
    if wanted.tenant is not None:
        yield window.tenant == wanted.tenant
    if wanted.label is not None:
        name, value = wanted.label
        found = window.labels[name].as_string()
        yield found.is_not(None) if value is None else found == value
    if is_prompt:
        yield window.prompt.icontains(wanted.text, autoescape=True)


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


def _span_ids(text: str) -> tuple[UUID, UUID] | None:
    """The first and last id that begin so; None if the text begins no id, or too many."""
    digits = text.replace("-", "").lower()
    if not re.fullmatch(f"[0-9a-f]{{{SHORTEST_ID_PREFIX},{ID_DIGITS}}}", digits):
        return None
    return UUID(digits.ljust(ID_DIGITS, "0")), UUID(digits.ljust(ID_DIGITS, "f"))
