"""The shell's commands that look after the archive: verify, rearchive."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import typer

from worker.cli import display
from worker.cli.arguments import (
    FAILED,
    INTERRUPTED,
    OK,
    Json,
    Tenant,
    read_time,
)
from worker.cli.progress import MIB, show_progress
from worker.ground.db import AWAY
from worker.ground.errors import ExtendVideoError, StoreUnavailableError
from worker.jobs.archives import Scope
from worker.media.layout import ListedObject
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
        int | None, typer.Option(min=1, metavar="N", help="Only N copies, drawn at random.")
    ] = None,
    not_since: Annotated[
        datetime | None,
        typer.Option(
            parser=read_time,
            metavar="TIME",
            help="Go on with the run that began then: what was read since is not read again.",
        ),
    ] = None,
    tenant: Tenant = None,
    orphans: Annotated[
        bool, typer.Option("--orphans", help="Instead, list objects that no row names.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read every archived video and compare it with its row. Exit code 1: damage was found."""
    if orphans and (sample, not_since, tenant) != (None, None, None):
        raise typer.BadParameter("--orphans takes no other option but --json")
    runtime = build_runtime()
    require_own_archive(db=runtime.db, store=runtime.store)
    if orphans:
        raise typer.Exit(report_orphans(runtime, as_json=as_json))
    scope = start_scope(tenant, not_since)
    verification = Verification()
    with resumable(scope, sample, verification):
        run_verifier(runtime, scope, sample, verification, as_json=as_json)
    print_verification(scope, verification, as_json=as_json)
    raise typer.Exit(OK if is_fine(verification) else FAILED)


def run_verifier(
    runtime: Runtime,
    scope: Scope,
    sample: int | None,
    verification: Verification,
    *,
    as_json: bool,
) -> None:
    """Damage is told as it is found, so that an interruption loses none of it."""
    db = runtime.db
    count, total = (0, 0) if sample is not None else measure_copies(db, scope)
    if not as_json and sample is None:
        display.err.print(f"{count} copies, {total / MIB:.1f} MiB")
    with show_progress(
        display.err, quiet=as_json or total == 0, doing="verifying", done="verified"
    ) as on_progress:
        read = 0

        def count_bytes(more: int) -> None:
            nonlocal read
            read += more
            if on_progress is not None:
                on_progress(min(read, total), total)

        on_damage = _ignore_damage if as_json else print_damage
        verifier = Verifier(db, runtime.store, count_bytes, on_damage)
        if sample is None:
            verifier.verify(scope, verification)
        else:
            verifier.verify_sample(scope, sample, verification)


@contextmanager
def resumable(scope: Scope, sample: int | None, verification: Verification) -> Iterator[None]:
    """Whatever interrupts the run, say how to go on with it."""
    try:
        yield
    except KeyboardInterrupt:
        print_resumption(scope, sample, verification)
        raise typer.Exit(INTERRUPTED) from None
    except (StoreUnavailableError, *AWAY):
        if verification.checked:
            print_resumption(scope, sample, verification)
        raise


def print_resumption(scope: Scope, sample: int | None, verification: Verification) -> None:
    left = None if sample is None else max(sample - verification.checked, 1)
    command = ["extend-video", "verify", "--not-since", scope.not_since.isoformat()]
    command += [] if scope.tenant is None else ["--tenant", scope.tenant]
    command += [] if left is None else ["--sample", str(left)]
    display.err.print(f"{verification.checked} copies were read; to go on:", markup=False)
    display.err.print(shlex.join(command), markup=False)


def print_damage(damaged: DamagedCopy) -> None:
    display.out.print(f"{damaged.job_id}  {display.escape(damaged.reason)}")


def _ignore_damage(_damaged: DamagedCopy) -> None:
    """It is in the report."""


def print_verification(scope: Scope, verification: Verification, *, as_json: bool) -> None:
    if as_json:
        told = asdict(verification)
        display.print_json({"fine": is_fine(verification), "began_at": scope.not_since, **told})
        return
    if verification.elsewhere:
        display.out.print(
            f"[yellow]note[/yellow]  {verification.elsewhere} copies are in another archive than "
            "ARCHIVE_URL, and were not read"
        )
    read = f"{verification.checked} copies, {verification.bytes / MIB:.1f} MiB"
    damaged = f"[red]{verification.damages} damaged[/red]" if verification.damages else "all fine"
    display.out.print(f"verified {read}: {damaged}")


def report_orphans(runtime: Runtime, *, as_json: bool) -> int:
    """List them; the exit code."""
    inventory = Inventory()
    listed: list[ListedObject] = []
    for one in find_orphans(inventory, db=runtime.db, store=runtime.store):
        if not as_json:
            display.out.print(f"{display.escape(one.name)}  {one.bytes}  {one.modified_at:%F %T}")
        elif len(listed) < MOST_LISTED:
            listed.append(one)
    if as_json:
        names = [asdict(one) for one in listed]
        display.print_json({"counts": asdict(inventory), "orphans": names})
    else:
        hours = ORPHAN_AGE.total_seconds() / 3600
        display.out.print(
            f"{inventory.objects} objects, {inventory.orphans} of no row "
            f"({inventory.orphan_bytes / MIB:.1f} MiB); {inventory.young} younger than "
            f"{hours:g} hours were not judged"
        )
    return FAILED if inventory.orphans else OK


# ------------------------------------------------------------------ rearchive


def rearchive(
    job_ids: Annotated[list[UUID], typer.Argument(metavar="ID...", help="Archived jobs.")],
    force: Annotated[bool, typer.Option("--force", help="Also where the copy is intact.")] = False,
    as_json: Json = False,
) -> None:
    """Fetch archived videos again from fal, while it has them. Intact copies are left alone."""
    runtime = build_runtime()
    require_own_archive(db=runtime.db, store=runtime.store)
    rearchiver = runtime.rearchiver
    told: list[dict[str, Any]] = []
    for job_id in job_ids:
        try:
            done = rearchiver.rearchive_job(job_id, force=force)
        except ExtendVideoError as error:
            told.append({"id": job_id, "outcome": "failed", "code": error.code, "why": str(error)})
        else:
            outcome = "replaced" if done.is_replaced else "intact"
            told.append({"id": job_id, "outcome": outcome, "code": None, "why": None})
        if not as_json:
            print_rearchived(**told[-1])
    if as_json:
        display.print_json(told)
    raise typer.Exit(FAILED if any(one["code"] for one in told) else OK)


def print_rearchived(*, id: UUID, outcome: str, code: str | None, why: str | None) -> None:  # noqa: A002 - as printed
    reason = "" if code is None else f"  {code}: {display.escape(str(why))}"
    display.out.print(f"{id}  {outcome}{reason}")
