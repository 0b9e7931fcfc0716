"""The commands about the deployment as a whole.

`extend-video status`, `sweep`, `doctor`, `refused`, `migrate` and `restore`.
"""

from collections import Counter
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated

import typer

from worker.cli import options, output
from worker.ground.clock import format_duration
from worker.ground.settings import Settings
from worker.jobs.checks import Check
from worker.jobs.job_requests import list_refused
from worker.ops.doctor import Diagnosis
from worker.ops.metrics import Measures, list_seen, read_measures
from worker.runtime import build_runtime

# A sweep may take a while, or wait for a worker to end a step.
LATE_SWEEPS = 6
SOONEST_LATE = timedelta(seconds=30)


# ------------------------------------------------------------------ status


def status(
    as_json: options.Json = False,
    worker: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only whether this worker was seen in the last minute."),
    ] = None,
) -> None:
    """Show whether workers, queues and sweeps do their work.

    Exit code 1 if one does not.

    Examples:
        extend-video status
        extend-video status --json

    """
    runtime = build_runtime()
    if worker is not None:
        # For health checks, by the job table alone: Celery's remote control is off.
        is_seen = any(one.name == worker for one in runtime.list_workers())
        raise typer.Exit(options.OK if is_seen else options.FAILED)
    from worker.broker.app import QUEUES

    measures = read_measures(db=runtime.db)
    queues = runtime.dispatcher.count_messages(list(QUEUES.values()))
    problems = list_problems(measures, queues, runtime.settings)
    if as_json:
        print_status_json(measures, queues, problems)
    else:
        print_status(measures, queues, problems)
    raise typer.Exit(options.FAILED if problems else options.OK)


def list_problems(
    measures: Measures, queues: dict[str, int] | None, settings: Settings
) -> list[str]:
    """What needs an operator's attention now; pure."""
    from worker.broker.app import QUEUES

    late = max(settings.sweep_seconds * LATE_SWEEPS, SOONEST_LATE)
    since_sweep = measures.now - (measures.swept_at or measures.now)
    seen = list_seen(measures.workers, measures.now)
    consumed = {queue for worker in seen for queue in worker.queues}
    unconsumed = ", ".join(sorted({*QUEUES.values()} - consumed))
    held = (
        f"{measures.held} held submissions wait for a decision: "
        "extend-video list --state submission_unknown shows why"
    )
    rules = [
        (queues is None, "the broker does not answer"),
        (not seen, "no worker has been seen within the last minute"),
        (seen and unconsumed, f"no worker consumes {unconsumed}"),
        (measures.swept_at is None, "no sweep has run yet"),
        (since_sweep > late, f"no sweep for {format_duration(since_sweep)}"),
        (
            measures.sweep_lag > late,
            f"jobs have been due for {format_duration(measures.sweep_lag)}",
        ),
        (measures.held, held),
    ]
    return [
        *(
            f"submissions of {pause.scope} pause: {pause.reason}"
            for pause in measures.pauses
            if not pause.is_counting
        ),
        *(f"archive of {one.name}: {one.archive_fault}" for one in seen if one.archive_fault),
        *(problem for is_problem, problem in rules if is_problem),
    ]


def list_shared_names(measures: Measures) -> list[str]:
    """Node names that several processes have had within the last minute."""
    counted = Counter(worker.name for worker in list_seen(measures.workers, measures.now))
    return sorted(name for name, processes in counted.items() if processes > 1)


def print_status_json(
    measures: Measures, queues: dict[str, int] | None, problems: list[str]
) -> None:
    paused = [
        {"scope": one.scope, "name": one.cause, "until": one.until, "reason": one.reason}
        for one in measures.pauses
        if not one.is_counting
    ]
    output.print_json(
        {
            "ok": not problems,
            "problems": problems,
            "workers": measures.workers,
            "shared_names": list_shared_names(measures),
            "queues": queues,
            "last_sweep_at": measures.swept_at,
            "sweep_lag_seconds": measures.sweep_lag.total_seconds(),
            "paused": paused,
            "jobs": measures.jobs,
            "oldest_seconds": measures.ages,
            "held": measures.held,
            "extra_charges": measures.extra_charges,
            "counted_at": measures.counted_at,
        }
    )


def print_status(measures: Measures, queues: dict[str, int] | None, problems: list[str]) -> None:
    for problem in problems:
        output.out.print(f"[red]![/red] {output.escape(problem)}")
    if not problems:
        output.out.print("[green]ok[/green]")
    for name in list_shared_names(measures):
        output.out.print(
            f"[yellow]note[/yellow]  {output.escape(name)} is the node name of several processes: "
            "start each with a name of its own (celery -A worker worker -n NAME@%h)"
        )
    workers = []
    for worker in measures.workers:
        ago = format_duration(measures.now - worker.last_seen_at)
        did = f", last {worker.last_step}" if worker.last_step else ""
        line = f"{worker.name} ({worker.pid})  seen {ago} ago{did}  {', '.join(worker.queues)}"
        workers.append(output.escape(line))
    output.print_section("workers", workers)
    output.print_section("queues")
    output.print_fields({"broker": "unavailable"} if queues is None else queues)
    output.print_section("sweep")
    at = measures.swept_at
    swept = "never" if at is None else f"{format_duration(measures.now - at)} ago"
    output.print_fields({"last": swept, "lag": format_duration(measures.sweep_lag)})
    states = []
    for state, number in measures.jobs.items():
        age = measures.ages.get(state)
        oldest = f"  oldest {format_duration(timedelta(seconds=age))}" if number and age else ""
        states.append(f"{number:>9}  {output.show_state(state)}{oldest}")
    output.print_section("jobs", states)


# ------------------------------------------------------------------ sweep, refused


def sweep(as_json: options.Json = False) -> None:
    """Dispatch every overdue job once, as the scheduler does.

    Examples:
        extend-video sweep
        extend-video sweep --json

    """
    overdue, dispatched = build_runtime().publish_overdue() or (0, 0)
    counts = {"overdue": overdue, "dispatched": dispatched}
    output.report(f"{overdue} overdue jobs, {dispatched} dispatched", counts, as_json=as_json)
    raise typer.Exit(options.OK if dispatched == overdue else options.FAILED)


def refused(
    tenant: options.Tenant = None, limit: options.Limit = 50, as_json: options.Json = False
) -> None:
    """List requests that were refused, the newest first.

    With every wrong field. What they contained is shortened, without secrets and data URIs.

    Examples:
        extend-video refused --limit 10
        extend-video refused --tenant studio --json

    """
    with build_runtime().db.reading() as connection:
        found = list_refused(connection, limit, tenant)
    if as_json:
        output.print_json(found)
        return
    rows = []
    for request in found:
        wrong = [
            one["message"] if one["field"] is None else f"{one['field']}: {one['message']}"
            for one in request.errors or []
        ]
        values = (request.tenant, request.error_code, request.message_id)
        received = output.show_time(request.received_at)
        rows.append((received, request.door, *(one or "" for one in values), "; ".join(wrong)))
    heading = ("received (UTC)", "door", "tenant", "code", "message id", "wrong")
    output.print_table(heading, rows)


# ------------------------------------------------------------------ doctor

# What an operator may do about findings. docs/operations.md says what each check finds.
REMEDIES = {
    Check.DUE_TIME: "no sweep finds such a row: set its due_at to the present",
    Check.UNTRACKED_PAYMENT: "search fal's list for its input; redrive the job only if not there",
    Check.TWO_CHARGES: "compare with fal's bill; the job's events say which decision led to it",
    Check.ENDED_ROW_CHANGED: "written to past the state machine: restore the row by its events",
    Check.BROKEN_HISTORY: "written to past the state machine: restore the row by its events",
    Check.INCOMPLETE_ARCHIVED_ROW: "the file is named after the job: fill the columns in from it",
    Check.DAMAGED_ARCHIVE: "extend-video rearchive, while fal has the video; else restore the file",
    Check.UNRECORDED_RESULT: "correct what the reason names while fal keeps the result",
    Check.UNANSWERED_POLLS: "the detail has fal's reply: check FAL_QUEUE_URL, proxy, key, and fal",
    Check.LATE_ARCHIVE: "remove the obstacle before fal deletes it: disk, network, FAL_MEDIA_HOSTS",
    Check.UNMATCHED_DELIVERY: "read the request's status at fal; the body is kept in deliveries",
    Check.STRAY_DELIVERY: "a job lost by a restore, or pruned: keep its result, delete this row",
    Check.MISSING_CHARGE: "costs and budgets leave it out: extend-video costs --reconcile names it",
    Check.OVER_CAP: "fal may have let it wait; look for workers of another release, or other rows",
    Check.SPEND_DIFFERS: "written to past the ledger: set spend.nano_usd to the sum of its charges",
    Check.OVER_BUDGET: "look for workers of another release, or for changes past the ledger",
    Check.ARCHIVED_FILE: "run this where the archive is mounted; restore or fetch the file",
    Check.ORPHAN_AT_FAL: "paid, but no job waits for it: keep its result, or cancel it",
    Check.MISSING_AT_FAL: "it may be another account's request: compare the key with the job's",
}


def doctor(
    every_file: Annotated[bool, typer.Option("--all", help="Check every archived file.")] = False,
    hours: Annotated[
        int, typer.Option(min=1, max=2160, help="How far back to read fal's list.")
    ] = 24,
    as_json: options.Json = False,
) -> None:
    """Look for inconsistencies; change nothing.

    In rows, in the archive and, with a key, in fal's list of requests. Exit code 1 if any is found.

    Examples:
        extend-video doctor
        extend-video doctor --all --hours 48 --json

    """
    diagnosis = build_runtime().examine(every_file=every_file, hours=hours)
    if as_json:
        examined = ("jobs", "archived", "files", "listed")
        output.print_json(
            {
                "clean": diagnosis.is_clean,
                "examined": {name: getattr(diagnosis, name) for name in examined},
                "checks": diagnosis.counts,
                "findings": diagnosis.findings,
                "notes": diagnosis.notes,
                "not_ours": diagnosis.not_ours,
            }
        )
    else:
        print_diagnosis(diagnosis)
    raise typer.Exit(options.OK if diagnosis.is_clean else options.FAILED)


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """A line for each check, with a table of what it found, then the notes."""
    for check, count in diagnosis.counts.items():
        if count == 0:
            output.out.print(f"[green]ok[/green]  {check.value}")
            continue
        output.out.print(f"[red]{check.value}: {count}[/red]  {REMEDIES[check]}")
        found = [one for one in diagnosis.findings if one.check is check]
        rows = []
        for one in found:
            ids = (one.job_id, one.attempt_id, one.delivery_id, one.fal_request_id)
            rows.append((*(str(known or "") for known in ids), one.detail))
        output.print_table(("job", "attempt", "delivery", "fal request", "what"), rows)
        if count > len(found):
            output.out.print(f"and {count - len(found)} more")
    for note in diagnosis.notes:
        output.out.print(f"[yellow]note[/yellow]  {output.escape(note)}")
    sampled = "" if diagnosis.files == diagnosis.archived else f" of {diagnosis.archived}"
    listed = "" if diagnosis.listed is None else f", {diagnosis.listed} requests at fal"
    output.out.print(
        f"examined {diagnosis.jobs} jobs, {diagnosis.files}{sampled} archived files{listed}"
    )


# ------------------------------------------------------------------ migrate, restore


def migrate(as_json: options.Json = False) -> None:
    """Create the job table, or bring it up to date.

    Examples:
        extend-video migrate
        extend-video migrate --json

    """
    from worker.ground.schema import upgrade_schema

    revision = upgrade_schema(build_runtime().settings.database_url)
    sentence = f"the job table is at revision {revision}"
    output.report(sentence, {"revision": revision}, as_json=as_json)


def read_fixed_past(text: str) -> datetime:
    """A time in the past. No age: the same text again has to mean the same restore."""
    if text.strip()[-1:] in {*"smhdw"}:
        expected = "the back-up's own time, such as 2026-11-24T18:30 (UTC)"
        raise typer.BadParameter(f"{text!r} means another time on each run; give {expected}")
    return options.read_past(text)


def restore(
    since: Annotated[
        datetime,
        typer.Option(
            parser=read_fixed_past,
            metavar="TIME",
            help="When the back-up was taken, or the time of the last commit that is left; "
            "rather a minute early than late.",
        ),
    ],
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Run this on a restored job table, before any worker starts.

    Queued jobs may have been paid for since the back-up. They become unknown, are searched for at
    fal first, and are bought only once it is confirmed that fal does not have them. The same time
    again resumes an interrupted restore, and does nothing twice.

    Examples:
        extend-video restore --since 2026-11-24T18:30 --dry-run
        extend-video restore --since 2026-11-24T18:30 --json

    """
    restored = build_runtime().restore(since, dry_run=dry_run)
    if as_json:
        output.print_json({"dry_run": dry_run, **asdict(restored)})
        return
    again = ", which was restored before" if restored.is_repeated else ""
    output.out.print(f"lost since {restored.lost_since:%Y-%m-%d %H:%M:%S} UTC{again}")
    verb = "would be " if dry_run else ""
    output.out.print(f"{restored.doubted} queued jobs {verb}put in doubt")
    output.out.print(f"{restored.taken_over} jobs {verb}taken from workers that are gone")
    output.out.print(f"{restored.unknown} jobs {verb}searched for at fal at once")
    if restored.strays:
        output.out.print(f"{restored.strays} webhooks of jobs without a row: extend-video doctor")
    if not dry_run:
        output.out.print("next: extend-video doctor, then start the daemons")
