"""`extend-video cancel` and `redrive`: one job by its id, or many by a filter and their count."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, NoReturn
from uuid import UUID

import typer
from rich.progress import track
from sqlalchemy.exc import SQLAlchemyError

from worker.cli import display
from worker.cli.arguments import FAILED, OK, Json, Tenant
from worker.cli.shell import (
    DryRun,
    Label,
    MaybeJobId,
    Since,
    State,
    Text,
    Until,
    Yes,
    read_filter,
)
from worker.ground.db import describe_database_error
from worker.ground.errors import ExtendVideoError, JobNotFoundError, PaysAgainError, TooLateError
from worker.jobs.queries import JobFilter, read_jobs, walk_lines
from worker.jobs.states import JobEvent, JobState
from worker.jobs.values import Job
from worker.ops.timeline import fails_again, foresee_restart
from worker.runtime import Runtime, build_runtime
from worker.stages.cancel import CANCELLABLE, cancel_job
from worker.stages.redrive import REDRIVABLE, redrive_job

PAYS = "new_paid_run"
# So many failures of the database in a row are an outage: the rest is not tried.
MOST_FAILURES = 3
RESTARTS = {
    JobEvent.ARCHIVE_REDRIVEN: "archived_again",
    JobEvent.POLL_REDRIVEN: "asked_again",
    JobEvent.SUBMIT_REDRIVEN: "submitted_for_the_first_money",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, by job; and what would be, were money agreed to."""

    kinds: Mapping[UUID, str]
    left_out: int = 0
    ending_alike: int = 0
    """How many are left out although money was agreed to: fal says that they would fail again."""

    def describe(self, verb: str) -> str:
        words = [f"{count} {name.replace('_', ' ')}" for name, count in self.count().items()]
        told = f"{len(self.kinds)} jobs to {verb}: {', '.join(words) or 'none'}"
        paid = f"; {self.left_out} more would take new money: --pay-again" if self.left_out else ""
        alike = (
            f"; {self.ending_alike} are left out, for fal says that the same input fails again: "
            "extend-video redrive ID --pay-again buys one all the same"
        )
        return told + paid + (alike if self.ending_alike else "")

    def count(self) -> dict[str, int]:
        return dict(Counter(self.kinds.values()))


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
    """Give a job up, or many.

    Free before the submission; afterwards fal is asked to stop it.
    """
    wanted = read_filter(state, tenant, label, since, until, text)
    check_choice(job_id, wanted)
    runtime = build_runtime()
    if job_id is not None and not dry_run:
        print_cancelled(cancel_one(runtime, job_id), as_json=as_json)
        return
    found = read_chosen(runtime, job_id, wanted, CANCELLABLE)
    jobs = [job for job in found if job.state in CANCELLABLE]
    plan = Plan({job.id: f"in_{job.state.value}" for job in jobs})
    agree(plan, "cancel", dry_run=dry_run, yes=yes, as_json=as_json)
    carry_out(plan, lambda one: name_cancelled(cancel_one(runtime, one)), as_json=as_json)


def redrive(
    job_id: MaybeJobId = None,
    state: State = None,
    tenant: Tenant = None,
    label: Label = None,
    since: Since = None,
    until: Until = None,
    text: Text = None,
    pay_again: Annotated[
        bool, typer.Option("--pay-again", help="Agree to new paid submissions, where they help.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Restart what failed, was cancelled or is held.

    From the latest step that is still good.

    By a filter money is spent only where nothing that was paid for can be used, and only on the
    runs that were counted.
    """
    wanted = read_filter(state, tenant, label, since, until, text)
    check_choice(job_id, wanted)
    runtime = build_runtime()
    if job_id is not None and not dry_run:
        print_redriven(redrive_one(runtime, job_id, pay_again=pay_again), as_json=as_json)
        return
    found = read_chosen(runtime, job_id, wanted, REDRIVABLE)
    plan = plan_redrive(runtime, found, pay_again=pay_again, is_chosen=job_id is not None)
    agree(plan, "redrive", dry_run=dry_run, yes=yes, as_json=as_json)

    def restart(one: UUID) -> str:
        pays = plan.kinds[one] == PAYS
        redrive_one(runtime, one, pay_again=pays)
        return plan.kinds[one]

    carry_out(plan, restart, as_json=as_json)


def check_choice(job_id: UUID | None, wanted: JobFilter) -> None:
    """One way of choosing, for `all jobs` is never meant by saying nothing."""
    if (job_id is None) == (wanted == JobFilter()):
        raise typer.BadParameter("give one ID, or choose jobs by --state, --tenant, --label, ...")


def read_chosen(
    runtime: Runtime, job_id: UUID | None, wanted: JobFilter, states: frozenset[JobState]
) -> list[Job]:
    """The job with the id, or all that match. Raises JobNotFoundError for an id of none."""
    if job_id is None:
        return read_jobs(select_ids(runtime, wanted, states), db=runtime.db)
    found = read_jobs([job_id], db=runtime.db)
    if not found:
        raise JobNotFoundError(f"no job has the id {job_id}")
    return found


def select_ids(runtime: Runtime, wanted: JobFilter, states: frozenset[JobState]) -> list[UUID]:
    narrowed = replace(wanted, states=states)
    return [line.id for line in walk_lines(narrowed, db=runtime.db)]


def plan_redrive(
    runtime: Runtime, jobs: Iterable[Job], *, pay_again: bool, is_chosen: bool = False
) -> Plan:
    """What each job would restart from. A submission that may still turn up is left alone.

    So is one whose input fails again, as fal says, unless its id was given (`is_chosen`).
    """
    kinds, left_out, ending_alike = dict[UUID, str](), 0, 0
    for job in jobs:
        if job.state not in REDRIVABLE:
            continue
        if job.state is JobState.SUBMISSION_UNKNOWN and not job.is_held:
            continue
        event = foresee_restart(job, db=runtime.db)
        if event is not None:
            kinds[job.id] = RESTARTS[event]
        elif not pay_again:
            left_out += 1
        elif not is_chosen and fails_again(job, db=runtime.db):
            ending_alike += 1
        else:
            kinds[job.id] = PAYS
    return Plan(kinds, left_out, ending_alike)


def agree(plan: Plan, verb: str, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Say what is to be done; go on only with `--yes`, or the right count."""
    count, runs = len(plan.kinds), plan.count().get(PAYS, 0)
    if dry_run and as_json:
        told = {"dry_run": True, "matched": count, **plan.count(), "left_out": plan.left_out}
        if plan.ending_alike:
            told["ending_alike"] = plan.ending_alike
        display.print_json(told)
    else:
        display.err.print(plan.describe(verb))
    if dry_run or not count:
        if as_json and not dry_run:
            display.print_json({"matched": 0})
        raise typer.Exit(OK)
    if yes:
        return
    cost = f", and buy {runs} new paid runs" if runs else ""
    if not is_typed(count, f"Type {count} to {verb} {count} jobs{cost}"):
        display.err.print("nothing was changed")
        raise typer.Exit(FAILED)


def is_typed(count: int, question: str) -> bool:
    try:
        return str(typer.prompt(question, err=True)).strip() == str(count)
    except typer.Abort:
        display.err.print("\nnobody answered: scripts give --yes")
        return False


def carry_out(plan: Plan, order: Callable[[UUID], str], *, as_json: bool) -> NoReturn:
    """One job after the other, and a summary: one that fails does not keep the rest from theirs.

    A job that has moved on meanwhile is no failure. Exit code 1 if a job failed or was not tried.
    """
    done: Counter[str] = Counter()
    in_a_row = 0
    for job_id in track(
        plan.kinds, console=display.err, transient=True, disable=not display.err.is_terminal
    ):
        if in_a_row == MOST_FAILURES:
            done["not_tried"] += 1
            continue
        try:
            done[order(job_id)] += 1
            in_a_row = 0
        except (TooLateError, PaysAgainError, JobNotFoundError) as error:
            done["moved_on"] += 1
            display.err.print(f"{error.code}: {error}", markup=False)
        except ExtendVideoError as error:
            done["failed"] += 1
            display.err.print(f"job {job_id}: {error.code}: {error}", markup=False)
        except SQLAlchemyError as error:
            done["failed"] += 1
            in_a_row += 1
            display.err.print(f"job {job_id}: {describe_database_error(error)}", markup=False)
    if as_json:
        display.print_json({"matched": len(plan.kinds), **done})
    else:
        words = (f"{count} {name.replace('_', ' ')}" for name, count in done.items())
        display.out.print(", ".join(words))
    raise typer.Exit(FAILED if done["failed"] or done["not_tried"] else OK)


def cancel_one(runtime: Runtime, job_id: UUID) -> Job:
    cancelled = cancel_job(job_id, db=runtime.db)
    runtime.dispatcher.publish(cancelled.doorbell)
    return cancelled.job


def redrive_one(runtime: Runtime, job_id: UUID, *, pay_again: bool) -> Job:
    grace = runtime.settings.lease_seconds
    job = redrive_job(job_id, db=runtime.db, pay_again=pay_again, grace=grace)
    runtime.dispatcher.publish(job.doorbell)
    return job


def name_cancelled(job: Job) -> str:
    return "cancelled" if job.state is JobState.CANCELLED else "asked_to_cancel_at_fal"


def print_cancelled(job: Job, *, as_json: bool) -> None:
    if as_json:
        display.print_json(display.job_to_json(job))
    elif job.state is JobState.CANCELLED:
        display.out.print("cancelled")
    else:
        display.out.print("fal is asked to cancel it; a result that comes anyway is archived")


def print_redriven(job: Job, *, as_json: bool) -> None:
    if as_json:
        display.print_json(display.job_to_json(job))
    else:
        display.out.print(f"it is {job.state.value} again: extend-video show {job.id}")
