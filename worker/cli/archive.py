"""`extend-video verify`, `rearchive` and `prune`: the commands that look after the archive."""

import shlex
from dataclasses import asdict
from datetime import datetime
from enum import Enum
from typing import Annotated, NoReturn
from uuid import UUID

import typer

from worker.cli import options, output
from worker.cli.output import MIB
from worker.ground.db import TRANSIENT_DB_ERRORS
from worker.ground.errors import ExtendVideoError, InvalidInputError, StoreUnavailableError
from worker.jobs.archives import Retention, Scope
from worker.jobs.states import ENDED, JobState
from worker.media.layout import ListedObject
from worker.ops import verify as copies
from worker.ops.retention import Pruning, prune_jobs, survey_jobs
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
            parser=options.read_time,
            metavar="TIME",
            help="Resume the run started at TIME; skip objects verified since.",
        ),
    ] = None,
    tenant: options.Tenant = None,
    orphans: Annotated[
        bool, typer.Option("--orphans", help="Instead, list objects that no row names.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Read every archived video and compare it with its row.

    Exit code 1: damage was found.

    Examples:
        extend-video verify
        extend-video verify --sample 500 --tenant studio --json
        extend-video verify --resume-from 2026-11-24T18:30:00Z
        extend-video verify --orphans

    """
    if orphans and (sample, resume_from, tenant) != (None, None, None):
        raise typer.BadParameter("--orphans takes no other option but --json")
    runtime = build_runtime()
    copies.require_own_archive(db=runtime.db, store=runtime.store)
    if orphans:
        report_orphans(runtime, as_json=as_json)
    scope, done = copies.start_scope(tenant, resume_from), copies.Verification()
    try:
        run_verifier(runtime, scope, sample, done, as_json=as_json)
    except KeyboardInterrupt:
        print_resumption(scope, sample, done)
        raise typer.Exit(options.INTERRUPTED) from None
    except (StoreUnavailableError, *TRANSIENT_DB_ERRORS):
        print_resumption(scope, sample, done)
        raise
    if as_json:
        output.print_json(
            {"fine": copies.is_fine(done), "began_at": scope.not_since, **asdict(done)}
        )
    else:
        if done.elsewhere:
            output.out.print(
                f"[yellow]note[/yellow]  {done.elsewhere} objects are in an archive other than "
                "ARCHIVE_URL, and were not read"
            )
        damaged = f"[red]{done.damages} damaged[/red]" if done.damages else "all fine"
        read = f"{done.checked} objects, {done.bytes / MIB:.1f} MiB"
        output.out.print(f"verified {read}: {damaged}")
    raise typer.Exit(options.OK if copies.is_fine(done) else options.FAILED)


def run_verifier(
    runtime: Runtime, scope: Scope, sample: int | None, done: copies.Verification, *, as_json: bool
) -> None:
    """Damage is printed as it is found, so that an interruption loses none of it."""
    count, total = (0, 0) if sample is not None else copies.measure_copies(runtime.db, scope)
    if not as_json and sample is None:
        output.err.print(f"{count} objects, {total / MIB:.1f} MiB")
    quiet, read = as_json or total == 0, 0
    with output.show_progress(output.err, quiet=quiet, doing="verifying") as on_progress:

        def on_read(more: int) -> None:
            nonlocal read
            read += more
            if on_progress is not None:
                on_progress(min(read, total), total)

        def on_damage(damaged: copies.DamagedCopy) -> None:
            if not as_json:
                output.out.print(f"{damaged.job_id}  {output.escape(damaged.reason)}")

        verifier = copies.Verifier(runtime.db, runtime.store, on_read, on_damage)
        verifier.verify(scope, done, sample=sample)


def print_resumption(scope: Scope, sample: int | None, done: copies.Verification) -> None:
    """The command that resumes an interrupted run."""
    command = ["extend-video", "verify", "--resume-from", scope.not_since.isoformat()]
    command += [] if scope.tenant is None else ["--tenant", scope.tenant]
    command += [] if sample is None else ["--sample", str(max(sample - done.checked, 1))]
    output.err.print(f"{done.checked} objects were verified; to resume:", markup=False)
    output.err.print(shlex.join(command), markup=False)


def report_orphans(runtime: Runtime, *, as_json: bool) -> NoReturn:
    inventory, listed = copies.Inventory(), list[ListedObject]()
    for one in copies.find_orphans(inventory, db=runtime.db, store=runtime.store):
        if not as_json:
            output.out.print(f"{output.escape(one.name)}  {one.bytes}  {one.modified_at:%F %T}")
        elif len(listed) < copies.MOST_LISTED:
            listed.append(one)
    if as_json:
        output.print_json({"counts": inventory, "orphans": listed})
    else:
        output.out.print(
            f"{inventory.objects} objects, {inventory.orphans} without a row "
            f"({inventory.orphan_bytes / MIB:.1f} MiB); {inventory.young} younger than "
            f"{copies.ORPHAN_AGE.total_seconds() / 3600:g} hours were not judged"
        )
    raise typer.Exit(options.FAILED if inventory.orphans else options.OK)


# ------------------------------------------------------------------ rearchive


def rearchive(
    job_ids: Annotated[list[UUID], typer.Argument(metavar="ID...", help="Archived jobs.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also where the object is intact.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Fetch archived videos again from fal, while it has them.

    Intact objects are left alone.

    Examples:
        extend-video rearchive 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69
        extend-video rearchive 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69 --force --json

    """
    runtime = build_runtime()
    copies.require_own_archive(db=runtime.db, store=runtime.store)
    report: list[dict[str, object]] = []
    for job_id in job_ids:
        code, why = None, None
        try:
            done = runtime.rearchiver.rearchive_job(job_id, force=force)
            outcome = "replaced" if done.is_replaced else "intact"
        except ExtendVideoError as error:
            outcome, code, why = "failed", error.code, str(error)
        report.append({"id": job_id, "outcome": outcome, "code": code, "why": why})
        if not as_json:
            reason = "" if why is None else f"  {code}: {output.escape(why)}"
            output.out.print(f"{job_id}  {outcome}{reason}")
    if as_json:
        output.print_json(report)
    raise typer.Exit(options.FAILED if any(one["code"] for one in report) else options.OK)


# ------------------------------------------------------------------ prune


class End(Enum):
    """The states that a job does not leave by itself."""

    ARCHIVED = "archived"
    FAILED = "failed"
    CANCELLED = "cancelled"


def prune(
    older_than: Annotated[
        datetime,
        typer.Option(
            parser=options.read_past,
            metavar="AGE",
            help="Delete jobs that ended more than AGE ago: 90d, 12h, 30m.",
        ),
    ],
    tenant: options.Tenant = None,
    label: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="May be repeated.")] = [],
    state: Annotated[list[End], typer.Option(help="May be repeated; all three if not given.")] = [],
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Delete the files, and keep the rows.")
    ] = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Delete jobs that ended long ago, with their files.

    Live jobs are never touched.

    Examples:
        extend-video prune --older-than 90d --dry-run
        extend-video prune --older-than 30d --tenant studio --label env=test --files-only
        extend-video prune --older-than 12h --state failed --state cancelled --yes --json

    """
    labels, wrong = options.read_pairs("--label", label)
    if wrong:
        raise InvalidInputError(tuple(wrong))
    states = frozenset(JobState(end.value) for end in state) or ENDED
    retention = Retention(older_than, states, tenant, labels, files_only)
    runtime, total = build_runtime(), None
    if not dry_run:
        copies.require_own_archive(db=runtime.db, store=runtime.store)
    if dry_run or not yes:
        found = survey_jobs(retention, db=runtime.db, store=runtime.store)
        print_pruning(found, retention, "to be pruned", as_json=as_json and dry_run)
        total = found.jobs
        if dry_run or not total + found.requests:
            raise typer.Exit(options.OK)
        what = "delete the files of these jobs"
        if not files_only:
            what = "delete the jobs with their files, and requests"
            output.err.print(
                "Idempotency keys are deleted with their rows: the same key buys a new run then. "
                "--files-only keeps rows and keys."
            )
        if not options.confirm_count(total + found.requests, what):
            raise typer.Exit(options.FAILED)
    run_pruning(runtime, retention, total, as_json=as_json)


def run_pruning(
    runtime: Runtime, retention: Retention, total: int | None, *, as_json: bool
) -> None:
    pruning, code, done = Pruning(), options.OK, "pruned"
    with output.show_progress(
        output.err, quiet=as_json, doing="pruning", of_jobs=True
    ) as on_progress:

        def on_jobs(jobs: int) -> None:
            if on_progress is not None:
                on_progress(jobs, total)

        try:
            db, store = runtime.db, runtime.store
            prune_jobs(retention, pruning, db=db, store=store, on_progress=on_jobs)
        except KeyboardInterrupt:
            code, done = options.INTERRUPTED, "pruned; run it again for the rest"
    print_pruning(pruning, retention, done, as_json=as_json)
    raise typer.Exit(code)


def print_pruning(pruning: Pruning, retention: Retention, done: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"files_only": retention.files_only, **asdict(pruning)})
        return
    kind = "jobs' files" if retention.files_only else "jobs"
    ends = f", ended {pruning.oldest:%F %T} to {pruning.newest:%F %T} UTC" if pruning.jobs else ""
    output.out.print(f"{pruning.jobs} {kind}, {pruning.bytes} bytes of video{ends}: {done}")
    for count, what in (
        (pruning.requests, f"refused requests: {done}"),
        (pruning.elsewhere, "jobs have files in another archive: left alone"),
        (pruning.moved, "jobs have changed meanwhile: left alone"),
    ):
        if count:
            output.out.print(f"{count} {what}")
