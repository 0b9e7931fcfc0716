"""`extend-video status`: is the deployment at work? Workers, queues, sweeps, pauses, counts."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer

from worker.broker.app import QUEUES
from worker.cli import display
from worker.cli.arguments import FAILED, OK
from worker.ground.clock import format_duration, read_clock
from worker.ground.log import configure_logging
from worker.ground.settings import Settings, list_secrets, load_settings
from worker.jobs.workers import list_workers
from worker.ops.metrics import Measures, list_seen, read_measures
from worker.runtime import SHELL_PROGRAM, Runtime

# A sweep may take a while, or wait for a worker to end a step.
LATE_SWEEPS = 6
SOONEST_LATE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Status:
    """The numbers, the queues if the broker answers, and what is wrong, in words."""

    measures: Measures
    queues: dict[str, int] | None
    problems: list[str]


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    worker: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only whether this worker has been seen of late."),
    ] = None,
) -> None:
    """Say whether workers, queues and sweeps do their work. Exit code 1 if something does not."""
    settings = load_settings()
    configure_logging("error", settings.log_format, list_secrets(settings))
    runtime = Runtime(settings, program=SHELL_PROGRAM)
    if worker is not None:
        raise typer.Exit(OK if is_seen(runtime, worker) else FAILED)
    found = read_status(runtime)
    if as_json:
        display.print_json(to_json(found))
    else:
        print_status(found)
    raise typer.Exit(FAILED if found.problems else OK)


def is_seen(runtime: Runtime, name: str) -> bool:
    """Whether the worker's loop has turned within the last minute: for health checks.

    By the job table alone, for Celery's remote control is off.
    """
    with runtime.db.reading() as connection:
        return any(one.name == name for one in list_seen(list_workers(connection), read_clock()))


def read_status(runtime: Runtime) -> Status:
    measures = read_measures(db=runtime.db)
    queues = runtime.dispatcher.count_messages(list(QUEUES.values()))
    return Status(measures, queues, list_problems(measures, queues, runtime.settings))


def list_problems(
    measures: Measures, queues: dict[str, int] | None, settings: Settings
) -> list[str]:
    """What an operator should look at now; pure."""
    problems = [f"submissions pause: {gate.reason}" for gate in measures.pauses]
    if queues is None:
        problems.append("the broker does not answer")
    seen = list_seen(measures.workers, measures.now)
    if not seen:
        problems.append("no worker has been seen within the last minute")
    faulty = [worker for worker in seen if worker.archive_fault]
    problems += [f"archive of {worker.name}: {worker.archive_fault}" for worker in faulty]
    consumed = {queue for worker in seen for queue in worker.queues}
    unconsumed = sorted({*QUEUES.values()} - consumed) if seen else []
    if unconsumed:
        problems.append(f"nobody consumes {', '.join(unconsumed)}")
    late = max(settings.sweep_seconds * LATE_SWEEPS, SOONEST_LATE)
    if measures.swept_at is None or measures.now - measures.swept_at > late:
        problems.append(_describe_silence(measures.swept_at, measures.now))
    if measures.sweep_lag > late:
        problems.append(f"jobs have been due for {format_duration(measures.sweep_lag)}")
    if measures.held:
        problems.append(
            f"{measures.held} held submissions wait for a decision: "
            "extend-video list --state submission_unknown says why"
        )
    return problems


def list_shared_names(measures: Measures) -> list[str]:
    """Node names that several processes have had within the last minute."""
    counted = Counter(worker.name for worker in list_seen(measures.workers, measures.now))
    return sorted(name for name, processes in counted.items() if processes > 1)


def to_json(found: Status) -> dict[str, Any]:
    measures = found.measures
    return {
        "ok": not found.problems,
        "problems": found.problems,
        "workers": [
            {
                "name": worker.name,
                "host": worker.host,
                "pid": worker.pid,
                "queues": worker.queues,
                "started_at": worker.started_at,
                "last_seen_at": worker.last_seen_at,
                "last_step": worker.last_step,
                "last_step_at": worker.last_step_at,
                "archive_fault": worker.archive_fault,
            }
            for worker in measures.workers
        ],
        "shared_names": list_shared_names(measures),
        "queues": found.queues,
        "last_sweep_at": measures.swept_at,
        "sweep_lag_seconds": measures.sweep_lag.total_seconds(),
        "paused": [
            {"gate": gate.name, "opens_at": gate.opens_at, "reason": gate.reason}
            for gate in measures.pauses
        ],
        "jobs": {state.value: number for state, number in measures.jobs.items()},
        "oldest_seconds": {state.value: age for state, age in measures.ages.items()},
        "held": measures.held,
        "extra_charges": measures.extra_charges,
        "counted_at": measures.counted_at,
    }


def print_status(found: Status) -> None:
    measures = found.measures
    for problem in found.problems:
        display.out.print(f"[red]![/red] {display.escape(problem)}")
    if not found.problems:
        display.out.print("[green]ok[/green]")
    for name in list_shared_names(measures):
        display.out.print(
            f"[yellow]note[/yellow]  {display.escape(name)} is the node name of several processes: "
            "start each with a name of its own (celery -A worker worker -n NAME@%h)"
        )
    display.print_section("workers")
    for worker in measures.workers:
        ago = format_duration(measures.now - worker.last_seen_at)
        did = f", last {worker.last_step}" if worker.last_step else ""
        line = f"{worker.name} ({worker.pid})  seen {ago} ago{did}  {', '.join(worker.queues)}"
        display.out.print(f"  {display.escape(line)}")
    display.print_section("queues")
    display.print_fields(dict(found.queues) if found.queues is not None else {"broker": "away"})
    display.print_section("sweep")
    at = measures.swept_at
    swept = "never" if at is None else f"{format_duration(measures.now - at)} ago"
    display.print_fields({"last": swept, "lag": format_duration(measures.sweep_lag)})
    display.print_section("jobs")
    for state, number in measures.jobs.items():
        age = measures.ages.get(state)
        oldest = f"  oldest {format_duration(timedelta(seconds=age))}" if number and age else ""
        display.out.print(f"  {number:>9}  {display.show_state(state)}{oldest}")


def _describe_silence(swept_at: datetime | None, now: datetime) -> str:
    if swept_at is None:
        return "no sweep has run yet"
    return f"no sweep for {format_duration(now - swept_at)}"
