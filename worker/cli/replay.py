"""`extend-video replay`: run what a sidecar tells of once more, as a new job."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from worker.cli import display
from worker.cli.arguments import Json, SetFields, read_fields
from worker.cli.order import place_request
from worker.cli.progress import show_progress
from worker.ground.errors import InvalidInputError, InvalidSidecarError, JobNotFoundError, Violation
from worker.ground.validation import show_value
from worker.media.sidecar import Sidecar, parse_sidecar
from worker.ops.timeline import read_story
from worker.runtime import Runtime, build_runtime
from worker.stages.enqueue import JobRequest, parse_job_request
from worker.stages.fetch import list_markers, restore_input

DASH = "-"
# Far above any sidecar: whoever names a video by mistake waits no longer than for this.
MOST_BYTES = 32 * 1024 * 1024
REPLAY_LABEL = "replay_of"


def replay(
    sidecar: Annotated[
        str, typer.Argument(metavar="SIDECAR", help="The JSON beside a video; - for stdin.")
    ],
    set_fields: SetFields = [],
    idempotency_key: Annotated[str | None, typer.Option(help="Same key, same job.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose job it is; else as before.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be enqueued, as JSON.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end.")] = False,
    as_json: Json = False,
) -> None:
    """Enqueue a new job with an archived video's input and seed. It costs money again."""
    recipe = parse_sidecar(read_sidecar(sidecar))
    runtime = build_runtime()
    changes, wrong = read_fields(set_fields, own_options={})
    check_endpoint(recipe, runtime.settings.fal_endpoint)
    wished = {
        **restore_files(recipe, changes, runtime),
        "seed": recipe.seed,
        **changes,
        "tenant": recipe.tenant if tenant is None else tenant,
        "idempotency_key": idempotency_key,
        "labels": {REPLAY_LABEL: str(recipe.job_id)},
        "fal_options": recipe.options,
    }
    if wrong:
        raise InvalidInputError(tuple(wrong))
    if dry_run:
        display.print_json(
            {"endpoint": recipe.endpoint, **show_job_request(parse_job_request(wished))}
        )
        return
    display.err.print(describe_replay(recipe, parse_job_request(wished), changes), markup=False)
    with show_progress(display.err, quiet=as_json) as on_progress:
        job_request = runtime.make_job_request(wished, on_progress=on_progress)
    place_request(runtime, job_request, wait=wait, as_json=as_json)


def read_sidecar(name: str) -> bytes:
    """Raises InvalidSidecarError if there is nothing to read."""
    try:
        if name == DASH:
            return sys.stdin.buffer.read(MOST_BYTES)
        with Path(name).open("rb") as file:
            return file.read(MOST_BYTES)
    except OSError as error:
        allowed = f"a file that can be read: {error.strerror}"
        raise InvalidSidecarError((Violation("sidecar", show_value(name), allowed),)) from None


def check_endpoint(recipe: Sidecar, endpoint: str) -> None:
    """A sidecar decides what is sent, but not to which model: that is the deployment's affair."""
    if recipe.endpoint != endpoint:
        allowed = f"the endpoint of this deployment, {endpoint} (FAL_ENDPOINT)"
        raise InvalidSidecarError((Violation("endpoint", recipe.endpoint, allowed),))


def restore_files(
    recipe: Sidecar, changes: Mapping[str, object], runtime: Runtime
) -> Mapping[str, Any]:
    """The input, with data URIs again where the sidecar has markers: from the old job's row."""
    if not list_markers(recipe.input, changes):
        return recipe.input
    try:
        row = read_story(recipe.job_id, db=runtime.db).job
    except JobNotFoundError:
        given: Mapping[str, Any] = recipe.input
    else:
        given = restore_input(recipe.input, row.input)
    lacking = list_markers(given, changes)
    if lacking:
        allowed = "not in the sidecar, and its job is not in the table: give it by --set"
        wrong = (Violation(f"input.{name}", show_value(given[name]), allowed) for name in lacking)
        raise InvalidSidecarError(tuple(wrong))
    return given


def show_job_request(job_request: JobRequest) -> dict[str, object]:
    """As it would be enqueued; a seed that is to be drawn is none yet."""
    options = job_request.options
    return {
        "tenant": options.tenant,
        "idempotency_key": options.idempotency_key,
        "labels": options.labels,
        "fal_options": options.fal_options.to_json(),
        "input": {**job_request.input, "seed": None}
        if job_request.seed_drawn
        else job_request.input,
    }


def describe_replay(recipe: Sidecar, job_request: JobRequest, changes: Mapping[str, object]) -> str:
    seed = "a new seed" if job_request.seed_drawn else f"seed {job_request.input['seed']}"
    changed = f", with other {', '.join(sorted(changes))}" if changes else ""
    return (
        f"replaying job {recipe.job_id} by a new paid run of {recipe.endpoint}, {seed}, "
        f"for tenant {job_request.options.tenant}{changed}"
    )
