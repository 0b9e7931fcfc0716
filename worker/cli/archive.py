"""`extend-video verify`, `rearchive` and `prune`: the commands that look after the archive."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from enum import Enum
from typing import Annotated
from uuid import UUID

import typer

from worker.cli import output
from worker.cli.options import (
    FAILED,
    INTERRUPTED,
    OK,
    DryRun,
    Json,
    Tenant,
    Yes,
    confirm_count,
    read_past,
    read_time,
    split_pairs,
)
from worker.cli.output import MIB
from worker.ground.db import TRANSIENT_DB_ERRORS
from worker.ground.errors import ExtendVideoError, InvalidInputError, StoreUnavailableError
from worker.jobs.archives import Retention, Scope
from worker.jobs.states import ENDED, JobState
from worker.media.layout import ListedObject
from worker.ops.retention import Pruning, prune_jobs, survey_jobs
from worker.ops.verify import (
    MOST_LISTED,
    ORPHAN_AGE,
    DamagedCopy,
    Inventory,
    Verification,
    Verifier,
    find_orphans,
    is_fine,
    measure_copies,
    require_own_archive,
    start_scope,
)
from worker.runtime import Runtime, build_runtime

# ------------------------------------------------------------------ verify


def verify(
    sample: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only N objects, drawn at random.")
    ] = None,
    resume_from: Annotated[
        datetime | None,
        typer.Option(
            "--resume-from",
            "--not-since",
            parser=read_time,
            metavar="TIME",
            help="Resume the run started at TIME; skip objects verified since.",
        ),
    ] = None,
    tenant: Tenant = None,
    orphans: Annotated[
        bool, typer.Option("--orphans", help="Instead, list objects that no row names.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every archived video and compare it with its row.

    Exit code 1: damage was found.
    """
    if orphans and (sample, resume_from, tenant) != (None, None, None):
        raise typer.BadParameter("--orphans takes no other option but --json")
    runtime = build_runtime()
    require_own_archive(db=runtime.db, store=runtime.store)
    if orphans:
        raise typer.Exit(report_orphans(runtime, as_json=as_json))
    scope = start_scope(tenant, resume_from)
    verification = Verification()
    with resumable(scope, sample, verification):
        run_verifier(runtime, scope, sample, verification, as_json=as_json)
    if as_json:
        found = {"fine": is_fine(verification), "began_at": scope.not_since}
        output.print_json({**found, **asdict(verification)})
    else:
        print_verification(verification)
    raise typer.Exit(OK if is_fine(verification) else FAILED)


def run_verifier(
    runtime: Runtime,
    scope: Scope,
    sample: int | None,
    verification: Verification,
    *,
    as_json: bool,
) -> None:
    """Damage is printed as it is found, so that an interruption loses none of it."""
    db = runtime.db
    count, total = (0, 0) if sample is not None else measure_copies(db, scope)
    if not as_json and sample is None:
        output.err.print(f"{count} objects, {total / MIB:.1f} MiB")
    with output.show_progress(
        output.err, quiet=as_json or total == 0, doing="verifying", done="verified"
    ) as on_progress:
        read = 0

        def on_read(more: int) -> None:
            nonlocal read
            read += more
            if on_progress is not None:
                on_progress(min(read, total), total)

        def on_damage(damaged: DamagedCopy) -> None:
            if not as_json:
                output.out.print(f"{damaged.job_id}  {output.escape(damaged.reason)}")

        verifier = Verifier(db, runtime.store, on_read, on_damage)
        verifier.verify(scope, verification, sample=sample)


@contextmanager
def resumable(scope: Scope, sample: int | None, verification: Verification) -> Iterator[None]:
    """If the run is interrupted, print the command that resumes it."""

    def print_resumption() -> None:
        command = ["extend-video", "verify", "--resume-from", scope.not_since.isoformat()]
        command += [] if scope.tenant is None else ["--tenant", scope.tenant]
        if sample is not None:
            command += ["--sample", str(max(sample - verification.checked, 1))]
        output.err.print(f"{verification.checked} objects were verified; to resume:", markup=False)
        output.err.print(shlex.join(command), markup=False)

    try:
        yield
    except KeyboardInterrupt:
        print_resumption()
        raise typer.Exit(INTERRUPTED) from None
    except (StoreUnavailableError, *TRANSIENT_DB_ERRORS):
        if verification.checked:
            print_resumption()
        raise


def print_verification(verification: Verification) -> None:
    if verification.elsewhere:
        output.out.print(
            f"[yellow]note[/yellow]  {verification.elsewhere} objects are in an archive other than "
            "ARCHIVE_URL, and were not read"
        )
    read = f"{verification.checked} objects, {verification.bytes / MIB:.1f} MiB"
    damaged = f"[red]{verification.damages} damaged[/red]" if verification.damages else "all fine"
    output.out.print(f"verified {read}: {damaged}")


def report_orphans(runtime: Runtime, *, as_json: bool) -> int:
    """List them; the exit code."""
    inventory = Inventory()
    listed: list[ListedObject] = []
    for one in find_orphans(inventory, db=runtime.db, store=runtime.store):
        if not as_json:
            output.out.print(f"{output.escape(one.name)}  {one.bytes}  {one.modified_at:%F %T}")
        elif len(listed) < MOST_LISTED:
            listed.append(one)
    if as_json:
        names = [asdict(one) for one in listed]
        output.print_json({"counts": asdict(inventory), "orphans": names})
    else:
        hours = ORPHAN_AGE.total_seconds() / 3600
        output.out.print(
            f"{inventory.objects} objects, {inventory.orphans} without a row "
            f"({inventory.orphan_bytes / MIB:.1f} MiB); {inventory.young} younger than "
            f"{hours:g} hours were not judged"
        )
    return FAILED if inventory.orphans else OK


# ------------------------------------------------------------------ rearchive


def rearchive(
    job_ids: Annotated[list[UUID], typer.Argument(metavar="ID...", help="Archived jobs.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also where the object is intact.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch archived videos again from fal, while it has them.

    Intact objects are left alone.
    """
    runtime = build_runtime()
    require_own_archive(db=runtime.db, store=runtime.store)
    rearchiver = runtime.rearchiver
    report: list[dict[str, object]] = []
    for job_id in job_ids:
        code, why = None, None
        try:
            done = rearchiver.rearchive_job(job_id, force=force)
            outcome = "replaced" if done.is_replaced else "intact"
        except ExtendVideoError as error:
            outcome, code, why = "failed", error.code, str(error)
        report.append({"id": job_id, "outcome": outcome, "code": code, "why": why})
        if not as_json:
            reason = "" if why is None else f"  {code}: {output.escape(why)}"
            output.out.print(f"{job_id}  {outcome}{reason}")
    if as_json:
        output.print_json(report)
    raise typer.Exit(FAILED if any(one["code"] for one in report) else OK)


# ------------------------------------------------------------------ prune


class End(Enum):
    """The states that a job does not leave by itself."""

    ARCHIVED = JobState.ARCHIVED.value
    FAILED = JobState.FAILED.value
    CANCELLED = JobState.CANCELLED.value


def prune(
    older_than: Annotated[
        datetime,
        typer.Option(
            parser=read_past,
            metavar="AGE",
            help="Delete jobs that ended more than AGE ago: 90d, 12h, 30m.",
        ),
    ],
    tenant: Tenant = None,
    label: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="May be repeated.")] = [],
    state: Annotated[list[End], typer.Option(help="May be repeated; all three if not given.")] = [],
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Delete the files, and keep the rows.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete jobs that ended long ago, with their files.

    Live jobs are never touched.
    """
    labels, wrong = split_pairs("--label", label)
    if wrong:
        raise InvalidInputError(tuple(wrong))
    states = frozenset(JobState(end.value) for end in state)
    retention = Retention(older_than, states or ENDED, tenant, labels, files_only)
    runtime, total = build_runtime(), None
    if not dry_run:
        require_own_archive(db=runtime.db, store=runtime.store)
    if dry_run or not yes:
        found = survey_jobs(retention, db=runtime.db, store=runtime.store)
        print_pruning(found, retention, "to be pruned", as_json=as_json and dry_run)
        count = found.jobs + found.requests
        if dry_run or not count:
            raise typer.Exit(OK)
        if not files_only:
            output.err.print(
                "Idempotency keys are deleted with their rows: the same key buys a new run then. "
                "--files-only keeps rows and keys."
            )
        what = "files of these jobs" if files_only else "jobs with their files, and requests"
        if not confirm_count(count, f"delete the {what}"):
            raise typer.Exit(FAILED)
        total = found.jobs
    run_pruning(runtime, retention, total, as_json=as_json)


def run_pruning(
    runtime: Runtime, retention: Retention, total: int | None, *, as_json: bool
) -> None:
    pruning = Pruning()
    try:
        with output.show_progress(
            output.err, quiet=as_json, doing="pruning", done="pruned", of_jobs=True
        ) as on_progress:
            prune_jobs(
                retention,
                pruning,
                db=runtime.db,
                store=runtime.store,
                on_progress=None if on_progress is None else lambda jobs: on_progress(jobs, total),
            )
    except KeyboardInterrupt:
        print_pruning(pruning, retention, "pruned; run it again for the rest", as_json=as_json)
        raise typer.Exit(INTERRUPTED) from None
    print_pruning(pruning, retention, "pruned", as_json=as_json)


def print_pruning(pruning: Pruning, retention: Retention, done: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"files_only": retention.files_only, **asdict(pruning)})
        return
    kind = "jobs' files" if retention.files_only else "jobs"
    ends = f", ended {pruning.oldest:%F %T} to {pruning.newest:%F %T} UTC" if pruning.jobs else ""
    output.out.print(f"{pruning.jobs} {kind}, {pruning.bytes} bytes of video{ends}: {done}")
    if pruning.requests:
        output.out.print(f"{pruning.requests} refused requests: {done}")
    if pruning.elsewhere:
        output.out.print(f"{pruning.elsewhere} jobs have files in another archive: left alone")
    if pruning.moved:
        output.out.print(f"{pruning.moved} jobs have changed meanwhile: left alone")
