"""What commands print: tables, jobs and their stories, progress, errors; and all of it as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from rich import markup
from rich.console import Console
from rich.table import Column, Table

from worker.ground.clock import format_duration
from worker.ground.errors import ViolationsError
from worker.jobs.states import JobState

if TYPE_CHECKING:
    from worker.jobs.queries import JobLine
    from worker.jobs.values import Attempt, Event, Job
    from worker.ops.timeline import Story, TimeInState

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

MIB = 1024 * 1024
JOBS_A_LINE = 1000
LINES_OF_BYTES = 10
FOLDED_CHARACTERS = 64
STYLES = {
    JobState.ARCHIVED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.SUBMISSION_UNKNOWN: "magenta",
}
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def escape(text: str) -> str:
    """Text from outside, printed as it is: neither markup nor a terminal's control sequence.

    The consoles make no emoji of `:key:` either.
    """
    return markup.escape(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text))


# ------------------------------------------------------------------ JSON, tables, errors


def print_json(value: object) -> None:
    """One line, for programs."""
    print(json.dumps(value, default=_encode, ensure_ascii=False))  # noqa: T201 - without markup


def _encode(value: object) -> object:
    match value:
        case datetime():
            return value.isoformat()
        case UUID():
            return str(value)
        case Enum():
            return value.value
        case _:
            raise TypeError(f"{type(value).__name__} has no JSON form")


def print_table(heading: Sequence[str | Column], rows: Iterable[Sequence[str]]) -> None:
    """A line for each row, for `grep`: as wide as it takes."""
    table = Table(*heading, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    print_wide(table)


def print_wide(table: Table) -> None:
    Console(highlight=False, width=100_000, emoji=False).print(table)


def print_section(title: str) -> None:
    out.print(f"[bold]{title}[/bold]")


def print_fields(fields: Mapping[str, object]) -> None:
    width = max(map(len, fields))
    for name, value in fields.items():
        out.print(f"  [dim]{name:<{width}}[/dim]  {escape(str(value))}")


def print_violations(error: ViolationsError) -> None:
    """Each wrong field on a line: its name, its value, what is allowed."""
    err.print(f"[red]{error.code}[/red]")
    for violation in error.violations:
        err.print(f"  {escape(str(violation))}")


def show_state(state: JobState) -> str:
    style = STYLES.get(state)
    return f"[{style}]{state.value}[/{style}]" if style else state.value


def show_time(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


# ------------------------------------------------------------------ jobs


def build_job_table(jobs: Sequence[Job | JobLine]) -> Table:
    names = ("state", "tenant", "enqueued (UTC)", "due", "why")
    table = Table(Column("id", min_width=36), *names, box=None, pad_edge=False)
    for job in jobs:
        table.add_row(
            str(job.id),
            show_state(job.state),
            escape(job.tenant),
            show_time(job.enqueued_at),
            show_time(job.due_at),
            escape(job.error_code or job.blocked_reason or ""),
        )
    return table


def job_to_json(job: Job) -> dict[str, Any]:
    return asdict(job)


def list_facts(job: Job) -> dict[str, object]:
    """The columns that have a value, the long ones as JSON."""
    return {
        name: json.dumps(fold_files(value), ensure_ascii=False)
        if isinstance(value, dict | list)
        else value
        for name, value in json.loads(json.dumps(asdict(job), default=_encode)).items()
        if value not in (None, {})
    }


def fold_files(value: object) -> object:
    """The same, with data URIs shortened: nobody reads base64."""
    match value:
        case dict():
            return {name: fold_files(inner) for name, inner in value.items()}
        case list():
            return [fold_files(inner) for inner in value]
        case str() if value.startswith("data:") and len(value) > FOLDED_CHARACTERS:
            return f"{value[:FOLDED_CHARACTERS]}… ({len(value)} characters)"
        case _:
            return value


# ------------------------------------------------------------------ a job's story


def story_to_json(story: Story) -> dict[str, Any]:
    """The job's columns; beside them its wait, states, attempts, deliveries and events."""
    from worker.ops.timeline import explain_failure

    explanation = explain_failure(story.job, story.attempts)
    return {
        **job_to_json(story.job),
        "explanation": asdict(explanation) if explanation else None,
        "wait": asdict(story.wait),
        "states": [
            {
                "state": one.state,
                "since": one.since,
                "until": one.until,
                "seconds": None if one.duration is None else one.duration.total_seconds(),
            }
            for one in story.stays
        ],
        "attempts": [asdict(attempt) for attempt in story.attempts],
        "deliveries": [
            {name: value for name, value in asdict(delivery).items() if name != "body"}
            for delivery in story.deliveries
        ],
        "events": [asdict(event) for event in story.events],
    }


def print_story(story: Story) -> None:
    from worker.ops.timeline import describe_explanation, explain_failure

    job = story.job
    print_fields(list_facts(job))
    print_section("why is it not done?" if story.wait.until else "what now?")
    out.print(f"  {escape(story.wait.sentence)}")
    print_section("states")
    for one in story.stays:
        out.print(show_time_in_state(one))
    if job.archive_warnings:
        print_section("archive warnings")
        for warning in job.archive_warnings:
            out.print(f"  {escape(warning['message'])}")
    explanation = explain_failure(job, story.attempts)
    if explanation is not None:
        print_section("failure")
        print_fields(describe_explanation(explanation, job))
    print_section("attempts")
    for attempt in story.attempts:
        out.print(show_attempt(attempt))
    print_section("deliveries")
    for delivery in story.deliveries:
        times = f"{delivery.times_received} times" if delivery.times_received > 1 else "once"
        disposition = escape(f"{delivery.status}  {delivery.verdict}")
        out.print(f"  {show_time(delivery.received_at)}  {disposition}  received {times}")
    print_section("events")
    before: Event | None = None
    for event in story.events:
        out.print(show_event(event, before))
        before = event


def print_logs(story: Story) -> None:
    """What fal has logged, as far as it was stored."""
    print_section("logs")
    for attempt in story.attempts:
        for entry in attempt.logs or []:
            out.print(show_log_entry(entry))


def show_time_in_state(one: TimeInState) -> str:
    """Since when the job was in the state, and for how long; an end has no length."""
    lasted = "" if one.duration is None else format_duration(one.duration)
    so_far = " so far" if lasted and one.until is None else ""
    return f"  {show_time(one.since)}  {show_state(one.state)}  {lasted}{so_far}".rstrip()


def show_attempt(attempt: Attempt) -> str:
    words = [
        f"{attempt.number}  {show_time(attempt.started_at)}",
        escape(attempt.outcome or "no outcome yet"),
        escape(attempt.fal_request_id or attempt.error_message or ""),
    ]
    if attempt.ending:
        words.append(f"ended {escape(attempt.ending)}")
    if attempt.extra_charge_at:
        words.append("[red]extra charge[/red]")
    if progress := describe_progress(attempt):
        words.append(escape(progress))
    return "  " + "  ".join(words)


def show_request_progress(attempt: Attempt, before: Attempt | None) -> Iterator[str]:
    """A line if fal's status has changed since then, and one for each new log entry."""
    from worker.fal.requests import list_new

    if attempt.fal_status and describe_progress(attempt) != (before and describe_progress(before)):
        yield f"  [dim]fal:[/dim] {escape(describe_progress(attempt))}"
    known = (before and before.logs) or []
    for entry in list_new(attempt.logs or [], known):
        yield show_log_entry(entry)


def describe_progress(attempt: Attempt) -> str:
    """The request's status at fal, its place in the queue, and how long the run took."""
    words = [attempt.fal_status or ""]
    if attempt.queue_position is not None:
        words.append(f"{attempt.queue_position} ahead")
    if attempt.inference_seconds is not None:
        words.append(f"inference {attempt.inference_seconds:g} s")
    return ", ".join(words)


def show_log_entry(entry: Mapping[str, str]) -> str:
    words = " ".join(entry.get(name, "") for name in ("timestamp", "level", "message"))
    return f"  [dim]fal |[/dim] {escape(words.strip())}"


def show_event(event: Event, before: Event | None) -> str:
    """When, how long after the event before, from which state to which, and why."""
    gap = event.at - before.at if before is not None else timedelta()
    came_from = f"{event.from_state.value} → " if event.from_state else ""
    detail = f"  {escape(event.detail)}" if event.detail else ""
    clock = f"{event.at:%H:%M:%S.%f}"[:-3]
    moved = f"{came_from}{show_state(event.to_state)}"
    reason = f"[dim]{escape(event.reason)}[/dim]"
    return f"  {clock}  +{gap.total_seconds():7.3f} s  {moved}  {reason}{detail}"


# ------------------------------------------------------------------ progress


class OnDone(Protocol):
    """Called with how much is done so far, and of how much, if that is known."""

    def __call__(self, completed: int, total: int | None, /) -> None: ...


@contextmanager
def show_progress(
    console: Console,
    *,
    quiet: bool = False,
    doing: str = "uploading",
    done: str = "uploaded",
    of_jobs: bool = False,
) -> Iterator[OnDone | None]:
    """Progress of bytes, or of jobs: a bar on a terminal, a line now and then elsewhere.

    Yields None where nothing is to be shown. The bar appears with the first call.
    """
    if quiet:
        yield None
    elif console.is_terminal:
        from rich import progress as rich

        amount = (
            (rich.MofNCompleteColumn(),)
            if of_jobs
            else (rich.DownloadColumn(binary_units=True), rich.TransferSpeedColumn())
        )
        columns = (rich.TextColumn(doing), rich.BarColumn(), *amount, rich.TimeRemainingColumn())
        with rich.Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None, visible=False)

            def move(completed: int, total: int | None, /) -> None:
                bar.update(task, completed=completed, total=total, visible=True)

            yield move
    else:
        printed = 0

        def print_line(completed: int, total: int | None, /) -> None:
            nonlocal printed
            if of_jobs:
                step, text = completed // JOBS_A_LINE, f"{completed} jobs {done}"
            else:
                size = total or completed or 1
                step = completed * LINES_OF_BYTES // size
                text = f"{done} {completed / MIB:.1f} of {size / MIB:.1f} MiB"
            if step > printed:
                printed = step
                console.print(text)

        yield print_line
