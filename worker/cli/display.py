"""Jobs and stories on a terminal, and as JSON."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from enum import Enum
from typing import Any
from uuid import UUID

from rich import markup
from rich.console import Console
from rich.table import Column, Table

from worker.fal.requests import list_new
from worker.ground.clock import format_duration
from worker.ground.errors import ViolationsError
from worker.jobs.queries import JobLine
from worker.jobs.states import JobState
from worker.jobs.values import Attempt, Event, Job
from worker.ops.timeline import Stay, Story, describe_explanation, explain_failure

out = Console(highlight=False, soft_wrap=True, emoji=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

FOLDED_CHARACTERS = 64
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def escape(text: str) -> str:
    """Text of others, shown as it is: neither markup nor a terminal's control sequence.

    The consoles make no emoji of `:key:` in whatever they print.
    """
    return markup.escape(_CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text))


STYLES = {
    JobState.ARCHIVED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "yellow",
    JobState.SUBMISSION_UNKNOWN: "magenta",
}


def print_json(value: object) -> None:
    print(json.dumps(value, default=_encode, ensure_ascii=False))  # noqa: T201 - for programs, without markup


def job_to_json(job: Job) -> dict[str, Any]:
    return asdict(job)


def story_to_json(story: Story) -> dict[str, Any]:
    """The job's columns, with its wait, attempts, deliveries and events beside them."""
    explanation = explain_failure(story.job, story.attempts)
    return {
        **job_to_json(story.job),
        "explanation": asdict(explanation) if explanation else None,
        "wait": asdict(story.wait),
        "stays": [stay_to_json(stay) for stay in story.stays],
        "attempts": [asdict(attempt) for attempt in story.attempts],
        "deliveries": [
            {name: value for name, value in asdict(delivery).items() if name != "body"}
            for delivery in story.deliveries
        ],
        "events": [asdict(event) for event in story.events],
    }


def stay_to_json(stay: Stay) -> dict[str, Any]:
    """Without its events, which stand beside it; an end has no seconds."""
    seconds = None if stay.duration is None else stay.duration.total_seconds()
    return {"state": stay.state, "since": stay.since, "until": stay.until, "seconds": seconds}


def print_jobs(jobs: Sequence[Job | JobLine]) -> None:
    print_wide(build_job_table(jobs))


def print_wide(table: Table) -> None:
    """A line for each row, for `grep`: as wide as it takes."""
    Console(highlight=False, width=100_000, emoji=False).print(table)


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


def print_story(story: Story) -> None:
    print_fields(list_facts(story.job))
    print_section("why is it not done?" if story.wait.until else "what now?")
    out.print(f"  {escape(story.wait.sentence)}")
    print_section("states")
    for line in show_stays(story.stays):
        out.print(line)
    if story.job.archive_warnings:
        print_section("archive warnings")
        for one in story.job.archive_warnings:
            out.print(f"  {escape(one['message'])}")
    explanation = explain_failure(story.job, story.attempts)
    if explanation is not None:
        print_section("failure")
        print_fields(describe_explanation(explanation, story.job))
    print_section("attempts")
    for attempt in story.attempts:
        known = attempt.fal_request_id or attempt.error_message or ""
        outcome = escape(attempt.outcome or "no outcome yet")
        ending = f"  ended {escape(attempt.ending)}" if attempt.ending else ""
        extra = "  [red]extra charge[/red]" if attempt.extra_charge_at else ""
        times = f"{attempt.number}  {show_time(attempt.started_at)}"
        told = escape(describe_progress(attempt))
        progress = f"  {told}" if told else ""
        out.print(f"  {times}  {outcome}  {escape(known)}{ending}{extra}{progress}")
    print_section("deliveries")
    for delivery in story.deliveries:
        times = f"{delivery.times_received} times" if delivery.times_received > 1 else "once"
        told = escape(f"{delivery.status}  {delivery.verdict}")
        out.print(f"  {show_time(delivery.received_at)}  {told}  received {times}")
    print_section("events")
    for line in show_events(story.events):
        out.print(line)


def print_logs(story: Story) -> None:
    """What fal has logged, as far as it was stored."""
    print_section("logs")
    for attempt in story.attempts:
        for entry in attempt.logs or []:
            out.print(show_log_entry(entry))


def show_request_progress(attempt: Attempt, before: Attempt | None) -> Iterator[str]:
    """A line if fal's status has changed since then, and one for each new log entry."""
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


def show_stays(stays: list[Stay]) -> Iterator[str]:
    """A line for each state: since when, and for how long; an end lasts."""
    for stay in stays:
        lasted = "" if stay.duration is None else format_duration(stay.duration)
        so_far = " so far" if lasted and stay.until is None else ""
        yield f"  {show_time(stay.since)}  {show_state(stay.state)}  {lasted}{so_far}".rstrip()


def show_events(events: list[Event]) -> Iterator[str]:
    """A line for each event: when, how long after the one before, from which state to which."""
    before: Event | None = None
    for event in events:
        yield show_event(event, before)
        before = event


def show_event(event: Event, before: Event | None) -> str:
    gap = event.at - before.at if before is not None else timedelta()
    came_from = f"{event.from_state.value} → " if event.from_state else ""
    detail = f"  {escape(event.detail)}" if event.detail else ""
    clock = f"{event.at:%H:%M:%S.%f}"[:-3]
    moved = f"{came_from}{show_state(event.to_state)}"
    reason = f"[dim]{escape(event.reason)}[/dim]"
    return f"  {clock}  +{gap.total_seconds():7.3f} s  {moved}  {reason}{detail}"


def print_fields(fields: Mapping[str, object]) -> None:
    width = max(map(len, fields))
    for name, value in fields.items():
        out.print(f"  [dim]{name:<{width}}[/dim]  {escape(str(value))}")


def print_violations(error: ViolationsError) -> None:
    """Each wrong field on a line: its name, what it was given, what is allowed."""
    err.print(f"[red]{error.code}[/red]")
    for violation in error.violations:
        err.print(f"  {escape(str(violation))}")


def show_state(state: JobState) -> str:
    style = STYLES.get(state)
    return f"[{style}]{state.value}[/{style}]" if style else state.value


def show_time(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


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


def print_section(title: str) -> None:
    out.print(f"[bold]{title}[/bold]")


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
