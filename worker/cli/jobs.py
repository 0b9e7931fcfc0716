"""`extend-video list`, `show`, `cancel` and `redrive`: one job by its id, or many by a filter."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, NoReturn
from uuid import UUID

import typer
from sqlalchemy.exc import SQLAlchemyError

from worker.cli import options, output
from worker.ground.db import Database, describe_database_error
from worker.ground.errors import ExtendVideoError, JobNotFoundError, PaysAgainError, TooLateError
from worker.jobs.queries import JobFilter, JobLine, list_jobs, list_lines, read_jobs, walk_lines
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Job
from worker.runtime import Runtime, build_runtime

if TYPE_CHECKING:
    from worker.ops.waiting import Hold

# After so many database errors in a row the rest is not tried.
MOST_FAILURES = 3
NEW_PAID_RUN = "new_paid_run"
RESTARTS = {
    JobEvent.ARCHIVE_REDRIVEN: "archived_again",
    JobEvent.POLL_REDRIVEN: "polled_again",
    JobEvent.SUBMIT_REDRIVEN: "submitted_nothing_paid_yet",
}
WORDS = {"submitted_nothing_paid_yet": "submitted (nothing paid yet)"}
# Why jobs that match are left out.
LEFT_OUT = {
    "left_out": "more need a new paid run: --pay-again",
    "failing_again": "are left out: fal says that the same input would fail again "
    "(extend-video redrive ID --pay-again buys a run all the same)",
}


def list_(
    state: options.State = None,
    tenant: options.Tenant = None,
    label: options.Label = None,
    since: options.Since = None,
    until: options.Until = None,
    text: options.Text = None,
    limit: options.Limit = 50,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh the list until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between refreshes.")] = 2,
    as_json: options.Json = False,
) -> None:
    """List jobs, the newest first.

    Examples:
        extend-video list --state failed --since 24h
        extend-video list --tenant studio --label env=prod --watch
        extend-video list --text order-7 --json

    """
    wanted = JobFilter(state, tenant, label, since, until, text)
    db = build_runtime().db
    on_screen = watch and not as_json and output.out.is_terminal
    if on_screen:
        limit = min(limit, max(output.out.height - 2, 1))

    def show_jobs() -> None:
        if as_json:
            jobs = list_jobs(wanted, db=db, limit=limit)
            holds = find_holds(jobs, db)
            output.print_json([output.job_to_json(job, holds.get(job.id)) for job in jobs])
            return
        lines = list_lines(wanted, db=db, limit=limit)
        table = output.build_job_table(lines, find_holds(lines, db))
        if on_screen:
            output.out.clear()
            output.out.print(table, soft_wrap=False)
        else:
            output.print_wide(table)

    show_jobs()
    with suppress(KeyboardInterrupt):  # the way out
        while watch:
            time.sleep(every)
            show_jobs()


def find_holds(jobs: Sequence[Job | JobLine], db: Database) -> "Mapping[UUID, Hold]":
    """What holds those that are queued; without any, nothing of admission is loaded."""
    queued = [job for job in jobs if job.state is JobState.QUEUED]
    if not queued:
        return {}
    from worker.ops.waiting import read_holds

    return read_holds(queued, db=db)


def show(
    job_id: options.JobId,
    logs: Annotated[bool, typer.Option("--logs", help="With the log of fal's run.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", "--follow", help="Follow the job to its end.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show what a job waits for, and its whole story.

    States, attempts, deliveries and events, in their order.

    Examples:
        extend-video show 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69
        extend-video show 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69 --wait
        extend-video show 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69 --logs --json

    """
    from worker.cli.enqueue import build_follower, follow_job
    from worker.ops.timeline import read_story

    runtime = build_runtime()
    if wait:
        follow_job(runtime, job_id, as_json=as_json)
    if logs and (follower := build_follower(runtime)):
        follower.ask_in_turn(job_id, is_last=True)
    story = read_story(job_id, db=runtime.db, policy=runtime.resolve_policy)
    if as_json:
        output.print_json(output.story_to_json(story))
        return
    output.print_story(story)
    if logs:
        output.print_logs(story)


# ------------------------------------------------------------------ cancel, redrive


def cancel(
    job_id: options.MaybeJobId = None,
    state: options.State = None,
    tenant: options.Tenant = None,
    label: options.Label = None,
    since: options.Since = None,
    until: options.Until = None,
    text: options.Text = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Cancel a job, or many.

    Free before the submission; afterwards fal is asked to cancel its request.

    Examples:
        extend-video cancel 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69
        extend-video cancel --state queued --tenant studio --dry-run
        extend-video cancel --label campaign=spring --since 2h --yes --json

    """
    from worker.stages.cancel import CANCELLABLE

    wanted = JobFilter(state, tenant, label, since, until, text)
    check_choice(job_id, wanted)
    runtime = build_runtime()
    if job_id is not None and not dry_run:
        job = cancel_one(runtime, job_id)
        is_done = job.state is JobState.CANCELLED
        at_fal = "cancellation requested at fal; a result that still comes is archived"
        output.report("cancelled" if is_done else at_fal, job, as_json=as_json)
        return
    found = read_chosen(runtime, job_id, wanted, CANCELLABLE)
    plan = {job.id: f"in_{job.state}" for job in found if job.state in CANCELLABLE}
    agree(plan, Counter(), "cancel", dry_run=dry_run, yes=yes, as_json=as_json)

    def cancel_next(next_id: UUID) -> str:
        is_done = cancel_one(runtime, next_id).state is JobState.CANCELLED
        return "cancelled" if is_done else "cancellation_requested_at_fal"

    carry_out(plan, cancel_next, as_json=as_json)


def redrive(
    job_id: options.MaybeJobId = None,
    state: options.State = None,
    tenant: options.Tenant = None,
    label: options.Label = None,
    since: options.Since = None,
    until: options.Until = None,
    text: options.Text = None,
    pay_again: Annotated[
        bool, typer.Option("--pay-again", help="Agree to new paid runs where they help.")
    ] = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Restart jobs that failed, were cancelled or are held.

    From the latest step that is still good.

    By a filter, new runs are bought only for jobs of which nothing paid can be used, and never more
    than were counted.

    Examples:
        extend-video redrive 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69
        extend-video redrive --state failed --since 24h --dry-run
        extend-video redrive --state failed --tenant studio --pay-again

    """
    from worker.stages.redrive import REDRIVABLE

    wanted = JobFilter(state, tenant, label, since, until, text)
    check_choice(job_id, wanted)
    runtime = build_runtime()
    if job_id is not None and not dry_run:
        job = redrive_one(runtime, job_id, pay_again=pay_again)
        output.report(f"{job.state} again: extend-video show {job.id}", job, as_json=as_json)
        return
    plan, left_out = dict[UUID, str](), Counter[str]()
    for job in read_chosen(runtime, job_id, wanted, REDRIVABLE):
        kind = plan_restart(runtime, job, pay_again=pay_again, is_chosen=job_id is not None)
        if kind in LEFT_OUT:
            left_out[kind] += 1
        elif kind is not None:
            plan[job.id] = kind
    agree(plan, left_out, "redrive", dry_run=dry_run, yes=yes, as_json=as_json)

    def redrive_next(next_id: UUID) -> str:
        redrive_one(runtime, next_id, pay_again=plan[next_id] == NEW_PAID_RUN)
        return plan[next_id]

    carry_out(plan, redrive_next, as_json=as_json)


def check_choice(job_id: UUID | None, wanted: JobFilter) -> None:
    """One or the other: a command without options never means all jobs."""
    if (job_id is None) == (wanted == JobFilter()):
        raise typer.BadParameter("give one ID, or select jobs by --state, --tenant, --label, ...")


def read_chosen(
    runtime: Runtime, job_id: UUID | None, wanted: JobFilter, states: frozenset[JobState]
) -> list[Job]:
    """The job with the id, or all that match. Raises JobNotFoundError for an unknown id."""
    if job_id is None:
        lines = walk_lines(replace(wanted, states=states), db=runtime.db)
        return read_jobs([line.id for line in lines], db=runtime.db)
    found = read_jobs([job_id], db=runtime.db)
    if not found:
        raise JobNotFoundError(f"no job has the id {job_id}")
    return found


def plan_restart(runtime: Runtime, job: Job, *, pay_again: bool, is_chosen: bool) -> str | None:
    """What the job would restart from, or why it is left out; None if nothing can restart it.

    Left alone are submissions whose outcome is still unknown, and, unless the job's own id was
    given (`is_chosen`), those whose input would fail again.
    """
    from worker.ops.timeline import fails_again, foresee_restart
    from worker.stages.redrive import REDRIVABLE

    is_open = job.state is JobState.SUBMISSION_UNKNOWN and not job.is_held
    if job.state not in REDRIVABLE or is_open:
        return None
    event = foresee_restart(job, db=runtime.db)
    if event is not None:
        return RESTARTS[event]
    if not pay_again:
        return "left_out"
    return "failing_again" if not is_chosen and fails_again(job, db=runtime.db) else NEW_PAID_RUN


def agree(
    plan: Mapping[UUID, str],
    left_out: Counter[str],
    verb: str,
    *,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Say what will be done; return only with `--yes` or the right count."""
    count, counts = len(plan), Counter(plan.values())
    if dry_run and as_json:
        planned = {"dry_run": True, "matched": count, **counts, "left_out": 0, **left_out}
        output.print_json(planned)
    else:
        sentences = [f"{count} jobs to {verb}: {describe_counts(counts)}"]
        sentences += [f"{left_out[kind]} {why}" for kind, why in LEFT_OUT.items() if left_out[kind]]
        output.err.print("; ".join(sentences))
    if dry_run or not count:
        if as_json and not dry_run:
            output.print_json({"matched": 0})
        raise typer.Exit(options.OK)
    runs = counts[NEW_PAID_RUN]
    cost = f", and buy {runs} new paid runs" if runs else ""
    if not yes and not options.confirm_count(count, f"{verb} {count} jobs{cost}"):
        raise typer.Exit(options.FAILED)


def carry_out(plan: Mapping[UUID, str], order: Callable[[UUID], str], *, as_json: bool) -> NoReturn:
    """One job after the other, and a summary; a failure does not stop the rest.

    A job that has moved on meanwhile is no failure. Exit code 1 if a job failed or was not tried.
    """
    done: Counter[str] = Counter()
    failures_in_a_row = 0
    with output.show_progress(output.err, doing="working", of_jobs=True) as on_progress:
        for place, job_id in enumerate(plan, 1):
            if failures_in_a_row == MOST_FAILURES:
                done["not_tried"] = len(plan) - place + 1
                break
            try:
                done[order(job_id)] += 1
                failures_in_a_row = 0
            except (TooLateError, PaysAgainError, JobNotFoundError) as error:
                done["moved_on"] += 1
                output.err.print(f"{error.code}: {error}", markup=False)
            except ExtendVideoError as error:
                done["failed"] += 1
                output.err.print(f"job {job_id}: {error.code}: {error}", markup=False)
            except SQLAlchemyError as error:
                done["failed"] += 1
                failures_in_a_row += 1
                output.err.print(f"job {job_id}: {describe_database_error(error)}", markup=False)
            if on_progress is not None:
                on_progress(place, len(plan))
    output.report(describe_counts(done), {"matched": len(plan), **done}, as_json=as_json)
    raise typer.Exit(options.FAILED if done["failed"] or done["not_tried"] else options.OK)


def describe_counts(counts: Mapping[str, int]) -> str:
    """`2 cancelled, 1 failed`."""
    words = (f"{count} {WORDS.get(kind, kind.replace('_', ' '))}" for kind, count in counts.items())
    return ", ".join(words) or "none"


def cancel_one(runtime: Runtime, job_id: UUID) -> Job:
    from worker.stages.cancel import cancel_job

    cancelled = cancel_job(job_id, db=runtime.db)
    runtime.dispatcher.publish(cancelled.doorbell)
    return cancelled.job


def redrive_one(runtime: Runtime, job_id: UUID, *, pay_again: bool) -> Job:
    from worker.stages.redrive import redrive_job

    dispatch_timeout = runtime.settings.lease_seconds
    job = redrive_job(job_id, db=runtime.db, pay_again=pay_again, dispatch_timeout=dispatch_timeout)
    runtime.dispatcher.publish(job.doorbell)
    return job
