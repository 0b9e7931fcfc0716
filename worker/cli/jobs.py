"""`extend-video list`, `show`, `cancel` and `redrive`: one job by its id, or many by a filter."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Annotated, NoReturn
from uuid import UUID

import typer
from sqlalchemy.exc import SQLAlchemyError

from worker.cli import output
from worker.cli.options import (
    FAILED,
    OK,
    DryRun,
    JobId,
    Json,
    Label,
    Limit,
    MaybeJobId,
    Since,
    State,
    Tenant,
    Text,
    Until,
    Yes,
    confirm_count,
    read_filter,
)
from worker.ground.db import describe_database_error
from worker.ground.errors import ExtendVideoError, JobNotFoundError, PaysAgainError, TooLateError
from worker.jobs.queries import JobFilter, list_jobs, list_lines, read_jobs, walk_lines
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Job
from worker.runtime import Runtime, build_runtime

# After so many database errors in a row the rest is not tried.
MOST_FAILURES = 3
NEW_PAID_RUN = "new_paid_run"
RESTARTS = {
    JobEvent.ARCHIVE_REDRIVEN: "archived_again",
    JobEvent.POLL_REDRIVEN: "polled_again",
    JobEvent.SUBMIT_REDRIVEN: "submitted_nothing_paid_yet",
}
WORDS = {"submitted_nothing_paid_yet": "submitted (nothing paid yet)"}


# ------------------------------------------------------------------ list


def list_(
    state: State = None,
    tenant: Tenant = None,
    label: Label = None,
    since: Since = None,
    until: Until = None,
    text: Text = None,
    limit: Limit = 50,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh the list until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between refreshes.")] = 2,
    as_json: Json = False,
) -> None:
    """List jobs, the newest first."""
    wanted = read_filter(state, tenant, label, since, until, text)
    db = build_runtime().db

    def show() -> None:
        if as_json:
            jobs = list_jobs(wanted, db=db, limit=limit)
            output.print_json([output.job_to_json(job) for job in jobs])
        else:
            output.print_wide(output.build_job_table(list_lines(wanted, db=db, limit=limit)))

    if not watch:
        show()
        return
    with suppress(KeyboardInterrupt):  # the way out
        if as_json or not output.out.is_terminal:
            repeat(show, every)
        from rich.live import Live

        # On a screen of its own, which holds only so many.
        fitting = min(limit, max(output.out.height - 2, 1))
        with Live(console=output.out, screen=True, auto_refresh=False) as live:
            repeat(
                lambda: live.update(
                    output.build_job_table(list_lines(wanted, db=db, limit=fitting)), refresh=True
                ),
                every,
            )


def repeat(show: Callable[[], object], every: float) -> NoReturn:
    while True:
        show()
        time.sleep(every)


# ------------------------------------------------------------------ show


def show(
    job_id: JobId,
    logs: Annotated[bool, typer.Option("--logs", help="With the log of fal's run.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", "--follow", help="Follow the job to its end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a job waits for, and its whole story.

    States, attempts, deliveries and events, in their order.
    """
    from worker.cli.enqueue import build_follower, follow_job
    from worker.ops.timeline import read_story

    runtime = build_runtime()
    if wait:
        follow_job(runtime, job_id, as_json=as_json)
    if logs:
        follower = build_follower(runtime)
        if follower is not None:
            follower.ask_in_turn(job_id, is_last=True)
    story = read_story(job_id, db=runtime.db, policy=runtime.resolve_policy)
    if as_json:
        output.print_json(output.story_to_json(story))
        return
    output.print_story(story)
    if logs:
        output.print_logs(story)


# ------------------------------------------------------------------ cancel, redrive


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command is going to do, by job, and what it leaves out."""

    kinds: Mapping[UUID, str]
    left_out: int = 0
    """Jobs that only a new paid run would help, without `--pay-again`."""
    failing_again: int = 0
    """Jobs left out with `--pay-again`: fal says that the same input would fail again."""

    def count(self) -> dict[str, int]:
        return dict(Counter(self.kinds.values()))

    def describe(self, verb: str) -> str:
        sentences = [f"{len(self.kinds)} jobs to {verb}: {describe_counts(self.count())}"]
        if self.left_out:
            sentences.append(f"{self.left_out} more need a new paid run: --pay-again")
        if self.failing_again:
            sentences.append(
                f"{self.failing_again} are left out: fal says that the same input would fail again "
                "(extend-video redrive ID --pay-again buys a run all the same)"
            )
        return "; ".join(sentences)


def cancel(
    job_id: MaybeJobId = None,
    state: State = None,
    tenant: Tenant = None,
    label: Label = None,
    since: Since = None,
    until: Until = None,
    text: Text = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Cancel a job, or many.

    Free before the submission; afterwards fal is asked to cancel its request.
    """
    from worker.stages.cancel import CANCELLABLE

    wanted = read_filter(state, tenant, label, since, until, text)
    check_choice(job_id, wanted)
    runtime = build_runtime()
    if job_id is not None and not dry_run:
        job = cancel_one(runtime, job_id)
        if as_json:
            output.print_json(output.job_to_json(job))
        elif job.state is JobState.CANCELLED:
            output.out.print("cancelled")
        else:
            output.out.print("cancellation requested at fal; a result that still comes is archived")
        return
    found = read_chosen(runtime, job_id, wanted, CANCELLABLE)
    plan = Plan({job.id: f"in_{job.state}" for job in found if job.state in CANCELLABLE})
    agree(plan, "cancel", dry_run=dry_run, yes=yes, as_json=as_json)

    def cancel_next(next_id: UUID) -> str:
        is_done = cancel_one(runtime, next_id).state is JobState.CANCELLED
        return "cancelled" if is_done else "cancellation_requested_at_fal"

    carry_out(plan, cancel_next, as_json=as_json)


def redrive(
    job_id: MaybeJobId = None,
    state: State = None,
    tenant: Tenant = None,
    label: Label = None,
    since: Since = None,
    until: Until = None,
    text: Text = None,
    pay_again: Annotated[
        bool, typer.Option("--pay-again", help="Agree to new paid runs where they help.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Restart jobs that failed, were cancelled or are held.

    From the latest step that is still good.

    By a filter, new runs are bought only for jobs of which nothing paid can be used, and never more
    than were counted.
    """
    from worker.stages.redrive import REDRIVABLE

    wanted = read_filter(state, tenant, label, since, until, text)
    check_choice(job_id, wanted)
    runtime = build_runtime()
    if job_id is not None and not dry_run:
        job = redrive_one(runtime, job_id, pay_again=pay_again)
        if as_json:
            output.print_json(output.job_to_json(job))
        else:
            output.out.print(f"{job.state} again: extend-video show {job.id}")
        return
    found = read_chosen(runtime, job_id, wanted, REDRIVABLE)
    plan = plan_redrive(runtime, found, pay_again=pay_again, is_chosen=job_id is not None)
    agree(plan, "redrive", dry_run=dry_run, yes=yes, as_json=as_json)

    def redrive_next(next_id: UUID) -> str:
        kind = plan.kinds[next_id]
        redrive_one(runtime, next_id, pay_again=kind == NEW_PAID_RUN)
        return kind

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


def plan_redrive(
    runtime: Runtime, jobs: Iterable[Job], *, pay_again: bool, is_chosen: bool = False
) -> Plan:
    """What each job would restart from.

    Left alone are submissions whose outcome is still unknown, and, unless the job's own id was
    given (`is_chosen`), those whose input would fail again.
    """
    from worker.ops.timeline import fails_again, foresee_restart
    from worker.stages.redrive import REDRIVABLE

    kinds, left_out, failing_again = dict[UUID, str](), 0, 0
    for job in jobs:
        is_open = job.state is JobState.SUBMISSION_UNKNOWN and not job.is_held
        if job.state not in REDRIVABLE or is_open:
            continue
        event = foresee_restart(job, db=runtime.db)
        if event is not None:
            kinds[job.id] = RESTARTS[event]
        elif not pay_again:
            left_out += 1
        elif not is_chosen and fails_again(job, db=runtime.db):
            failing_again += 1
        else:
            kinds[job.id] = NEW_PAID_RUN
    return Plan(kinds, left_out, failing_again)


def agree(plan: Plan, verb: str, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Say what will be done; return only with `--yes` or the right count."""
    count, runs = len(plan.kinds), plan.count().get(NEW_PAID_RUN, 0)
    if dry_run and as_json:
        planned = {"dry_run": True, "matched": count, **plan.count(), "left_out": plan.left_out}
        again = {"failing_again": plan.failing_again} if plan.failing_again else {}
        output.print_json(planned | again)
    else:
        output.err.print(plan.describe(verb))
    if dry_run or not count:
        if as_json and not dry_run:
            output.print_json({"matched": 0})
        raise typer.Exit(OK)
    cost = f", and buy {runs} new paid runs" if runs else ""
    if not yes and not confirm_count(count, f"{verb} {count} jobs{cost}"):
        raise typer.Exit(FAILED)


def carry_out(plan: Plan, order: Callable[[UUID], str], *, as_json: bool) -> NoReturn:
    """One job after the other, and a summary; a failure does not stop the rest.

    A job that has moved on meanwhile is no failure. Exit code 1 if a job failed or was not tried.
    """
    done: Counter[str] = Counter()
    failures_in_a_row = 0
    with output.show_progress(
        output.err, quiet=not output.err.is_terminal, doing="working", of_jobs=True
    ) as on_progress:
        for place, job_id in enumerate(plan.kinds, 1):
            if failures_in_a_row == MOST_FAILURES:
                done["not_tried"] += 1
                continue
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
                on_progress(place, len(plan.kinds))
    if as_json:
        output.print_json({"matched": len(plan.kinds), **done})
    else:
        output.out.print(describe_counts(done))
    raise typer.Exit(FAILED if done["failed"] or done["not_tried"] else OK)


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

    grace = runtime.settings.lease_seconds
    job = redrive_job(job_id, db=runtime.db, pay_again=pay_again, grace=grace)
    runtime.dispatcher.publish(job.doorbell)
    return job
