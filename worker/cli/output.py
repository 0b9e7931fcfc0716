"""What commands print: tables, jobs and their stories, progress, errors; and all of it as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from rich import markup
from rich.console import Console
from rich.table import Column, Table

from worker.ground.clock import format_duration
from worker.ground.errors import ViolationsError
from worker.ground.money import format_usd
from worker.jobs.states import ENDED, JobState

if TYPE_CHECKING:
    from worker.jobs.charges import Charge
    from worker.jobs.queries import JobLine
    from worker.jobs.values import Attempt, Delivery, Event, Job
    from worker.ops.timeline import Story, TimeInState
    from worker.ops.waiting import Hold

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

MIB = 1024 * 1024
SOURCES = {
    "billing_events": "fal's billing events",
    "units": "the units that fal states",
    "estimate": "its estimate, as no bill came",
}
STYLES = {
    JobState.ARCHIVED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.SUBMISSION_UNKNOWN: "magenta",
}
_DATA_URI = re.compile(r'(?<=")(data:[^"]{59})[^"]+')
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


def report(sentence: str, value: object, *, as_json: bool) -> None:
    """One of the two, for people or for programs."""
    if as_json:
        print_json(value)
    else:
        out.print(sentence)


def _encode(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def print_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A line for each row, for `grep`: as wide as it takes."""
    table = Table(*heading, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    print_wide(table)


def print_wide(table: Table) -> None:
    Console(highlight=False, width=100_000, emoji=False).print(table)


def print_section(title: str, lines: Iterable[str] = ()) -> None:
    out.print(f"[bold]{title}[/bold]")
    for line in lines:
        out.print(f"  {line}".rstrip())


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


def build_job_table(jobs: Sequence[Job | JobLine], holds: Mapping[UUID, Hold]) -> Table:
    """A line for each job; of a queued one with what holds it, and its place."""
    names = ("state", "tenant", "enqueued (UTC)", "due", "why")
    table = Table(Column("id", min_width=36), *names, box=None, pad_edge=False)
    for job in jobs:
        table.add_row(
            str(job.id),
            show_state(job.state),
            escape(job.tenant),
            show_time(job.enqueued_at),
            show_time(job.due_at),
            escape(job.error_code or describe_hold(holds.get(job.id)) or job.blocked_reason or ""),
        )
    return table


def describe_hold(hold: Hold | None) -> str:
    """`in_flight: 2 of 2 are in flight, place 7, at about 12:40 UTC (estimate)`."""
    if hold is None:
        return ""
    words = [f"{hold.blocked_by}: {hold.detail}" if hold.detail else hold.blocked_by or "next"]
    words.append(f"place {hold.place}")
    if hold.estimated_submit_at is not None:
        words.append(f"about {hold.estimated_submit_at:%Y-%m-%d %H:%M} UTC (estimate)")
    return ", ".join(words)


def list_facts(job: Job) -> dict[str, object]:
    """The columns that have a value, the long ones as JSON."""
    columns = json.loads(json.dumps(job, default=_encode))
    return {
        name: fold_files(json.dumps(value, ensure_ascii=False))
        if isinstance(value, dict | list)
        else value
        for name, value in columns.items()
        if value not in (None, {})
    }


def fold_files(text: str) -> str:
    """JSON with shortened data URIs: nobody reads base64."""
    return _DATA_URI.sub(lambda found: f"{found[1]}… ({len(found[0])} characters)", text)


# ------------------------------------------------------------------ a job's story


def story_to_json(story: Story) -> dict[str, Any]:
    """The job's columns; beside them its wait, states, attempts, charges, deliveries, events.

    `blocked_by` has the reasons, too, that jobs share.
    """
    from worker.ops.timeline import explain_failure

    columns = asdict(story)
    states = [
        {
            "state": one.state,
            "since": one.since,
            "until": one.until,
            "seconds": None if one.duration is None else one.duration.total_seconds(),
        }
        for one in story.stays
    ]
    for delivery in columns["deliveries"]:
        del delivery["body"]
    names = ("wait", "attempts", "charges", "deliveries", "events")
    parts = {name: columns[name] for name in names}
    failure = explain_failure(story.job, story.attempts)
    shown = job_to_json(story.job, story.hold) | {"waits_for": story.wait.waits_for}
    return {**shown, "explanation": failure, "states": states, **parts}


def job_to_json(job: Job, hold: Hold | None) -> dict[str, Any]:
    """The job's columns, and what holds it if it is queued."""
    return {
        **asdict(job),
        "blocked_by": job.blocked_by if hold is None else hold.blocked_by,
        "waits_for": None if hold is None else hold.waits_for,
        "place": None if hold is None else hold.place,
        "estimated_submit_at": None if hold is None else hold.estimated_submit_at,
    }


def print_story(story: Story) -> None:
    from worker.ops.timeline import describe_explanation, explain_failure

    job = story.job
    print_fields(list_facts(job))
    title = "what now?" if job.state in ENDED else "why is it not done?"
    print_section(title, [escape(story.wait.sentence)])
    print_section("states", map(show_time_in_state, story.stays))
    if job.archive_warnings:
        print_section("archive warnings", [escape(one["message"]) for one in job.archive_warnings])
    if explanation := explain_failure(job, story.attempts):
        print_section("failure")
        print_fields(describe_explanation(explanation, job))
    print_section("attempts", map(show_attempt, story.attempts))
    if story.charges:
        print_section("charges", map(show_charge, story.charges, range(1, len(story.charges) + 1)))
    print_section("deliveries", map(show_delivery, story.deliveries))
    print_section("events", map(show_event, story.events, [None, *story.events]))


def print_logs(story: Story) -> None:
    """What fal has logged, as far as it was stored."""
    entries = [entry for attempt in story.attempts for entry in attempt.logs or []]
    print_section("logs", map(show_log_entry, entries))


def show_time_in_state(one: TimeInState) -> str:
    """Since when the job was in the state, and for how long; an end has no length."""
    lasted = "" if one.duration is None else format_duration(one.duration)
    so_far = " so far" if lasted and one.until is None else ""
    return f"{show_time(one.since)}  {show_state(one.state)}  {lasted}{so_far}"


def show_delivery(delivery: Delivery) -> str:
    times = f"{delivery.times_received} times" if delivery.times_received > 1 else "once"
    disposition = escape(f"{delivery.status}  {delivery.verdict}")
    return f"{show_time(delivery.received_at)}  {disposition}  received {times}"


def show_attempt(attempt: Attempt) -> str:
    words = [
        f"{attempt.number}  {show_time(attempt.started_at)}",
        escape(attempt.outcome or "no outcome yet"),
        escape(attempt.fal_request_id or attempt.error_message or ""),
        f"ended {escape(attempt.ending)}" if attempt.ending else None,
        "[red]extra charge[/red]" if attempt.extra_charge_at else None,
        escape(describe_progress(attempt)) or None,
    ]
    return "  ".join(word for word in words if word is not None)


def show_charge(charge: Charge, number: int) -> str:
    """What one attempt costs, and by what that is known."""
    if charge.voided_at is not None or (charge.void_reason and charge.source is None):
        basis = f"nothing: {str(charge.void_reason).replace('_', ' ')}"
    elif charge.source is not None:
        basis = f"by {SOURCES[charge.source]}"
    elif charge.estimated_nano_usd is None:
        basis = "no price was known"
    else:
        basis = "reserved, an estimate"
    assumed = f"  assumed {charge.assumed}" if charge.assumed and charge.source is None else ""
    units = charge.billed_units or charge.units
    text = f"{format_usd(charge.amount)} USD  {basis}  {units} units{assumed}"
    return f"{number}  {show_time(charge.admitted_at)}  {escape(text)}"


def show_request_progress(attempt: Attempt, before: Attempt | None) -> Iterator[str]:
    """A line if fal's status has changed since then, and one for each new log entry."""
    from worker.fal.requests import list_new

    progress = describe_progress(attempt)
    if attempt.fal_status and (before is None or progress != describe_progress(before)):
        yield f"[dim]fal:[/dim] {escape(progress)}"
    for entry in list_new(attempt.logs or [], (before and before.logs) or []):
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
    return f"[dim]fal |[/dim] {escape(words.strip())}"


def show_event(event: Event, before: Event | None) -> str:
    """When, how long after the event before, from which state to which, and why."""
    seconds = 0.0 if before is None else (event.at - before.at).total_seconds()
    came_from = f"{event.from_state.value} → " if event.from_state else ""
    detail = f"  {escape(event.detail)}" if event.detail else ""
    return (
        f"{event.at:%H:%M:%S}.{event.at.microsecond // 1000:03}  +{seconds:7.3f} s"
        f"  {came_from}{show_state(event.to_state)}  [dim]{escape(event.reason)}[/dim]{detail}"
    )


# ------------------------------------------------------------------ progress


OnDone = Callable[[int, int | None], None]
"""Called with how much is done so far, and of how much, if that is known."""


@contextmanager
def show_progress(
    console: Console, *, quiet: bool = False, doing: str = "uploading", of_jobs: bool = False
) -> Iterator[OnDone | None]:
    """A bar on a terminal; elsewhere, of bytes, a line for each tenth.

    Yields None where nothing is to be shown. The bar appears with the first call.
    """
    if quiet or (of_jobs and not console.is_terminal):
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
            yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
    else:
        printed = 0

        def print_tenth(done: int, total: int | None) -> None:
            nonlocal printed
            size = total or done or 1
            if done * 10 // size > printed:
                printed = done * 10 // size
                console.print(f"{doing}: {done / MIB:.1f} of {size / MIB:.1f} MiB")

        yield print_tenth
