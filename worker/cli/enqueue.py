"""`extend-video enqueue` and `replay`: make jobs, one or many, and follow one to its end."""

import json
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, NoReturn
from uuid import UUID

import typer
from sqlalchemy.exc import SQLAlchemyError

from worker.cli import output
from worker.cli.options import (
    FAILED,
    INTERRUPTED,
    OK,
    Json,
    SetFields,
    Wait,
    read_fields,
    read_file,
    read_pairs,
    split_pairs,
)
from worker.fal.options import parse_option
from worker.ground.clock import read_clock
from worker.ground.errors import (
    InvalidInputError,
    InvalidSettingsError,
    InvalidSidecarError,
    JobNotFoundError,
    Violation,
)
from worker.ground.validation import show_value
from worker.jobs.states import JobState
from worker.jobs.values import Attempt, Event
from worker.media.sidecar import Sidecar, parse_sidecar
from worker.ops.timeline import (
    Story,
    find_newest_attempt,
    follow_events,
    pause_between_reads,
    read_story,
)
from worker.producer import place_request, place_requests
from worker.runtime import Runtime, build_runtime
from worker.stages.archive import list_markers, restore_input
from worker.stages.enqueue import DEFAULT_TENANT, JobRequest, parse_job_request
from worker.stages.poll import Follower

STANDARD_INPUT = "-"
# What some editors begin a UTF-8 file with.
BOM = "\ufeff"
FILE_FIELDS = ("video_url", "end_image_url")
FOLLOW_TIMEOUT = timedelta(days=1)
# How often the last poll waits for its turn.
LAST_POLLS = 20
# Far above any sidecar: a video given by mistake is not read whole.
MOST_SIDECAR_BYTES = 32 * 1024 * 1024
REPLAY_LABEL = "replay_of"

Key = Annotated[str | None, typer.Option(help="Same key, same job.")]


# ------------------------------------------------------------------ enqueue


def enqueue(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Option(help="What the new part should show.")] = None,
    video: Annotated[
        str | None, typer.Option(metavar="FILE_OR_URL", help="The video to extend.")
    ] = None,
    end_image: Annotated[
        str | None,
        typer.Option(metavar="FILE_OR_URL", help="A picture on which the new part ends."),
    ] = None,
    set_fields: SetFields = [],
    job_id: Annotated[str | None, typer.Option(help="A UUID of your choice.")] = None,
    idempotency_key: Key = None,
    tenant: Annotated[str, typer.Option(help="Whose job it is.")] = DEFAULT_TENANT,
    priority: Annotated[int, typer.Option(help="-100 to 100; higher goes first.")] = 0,
    label: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="May be repeated.")] = [],
    fal_option: Annotated[
        list[str], typer.Option(metavar="NAME=VALUE", help="An option of the request to fal.")
    ] = [],
    lines: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Many jobs: on each line an object of fields, as JSON; - for stdin.",
        ),
    ] = None,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Enqueue a video, or many, and print the job's id."""
    if lines is not None:
        check_alone(context, {"lines", "as_json"})
        place_lines(build_runtime(), lines, as_json=as_json)
        return
    if prompt is None or video is None:
        raise typer.BadParameter("give --prompt and --video, or --from")
    fields, wrong = read_fields(set_fields)
    labels, wrong_labels = split_pairs("--label", label)
    fal_options, wrong_options = read_pairs("--fal-option", fal_option, parse_option)
    fields |= {} if end_image is None else {"end_image_url": read_file(end_image)}
    fields |= {"prompt": prompt, "video_url": read_file(video)}
    options: dict[str, object] = {
        "job_id": job_id,
        "idempotency_key": idempotency_key,
        "tenant": tenant,
        "priority": priority,
        "labels": labels,
        "fal_options": fal_options,
    }
    wrong += [*wrong_labels, *wrong_options]
    place_one(build_runtime(), {**fields, **options}, wrong, wait=wait, as_json=as_json)


def check_alone(context: typer.Context, names: Collection[str]) -> None:
    """Other options beside `--from` would contradict its lines."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in names and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--from takes {name} from its lines, and follows no job")


def place_one(
    runtime: Runtime,
    fields: Mapping[str, object],
    wrong: list[Violation],
    *,
    wait: bool,
    as_json: bool,
) -> None:
    """Upload, enqueue, print the id, and follow the job to its end if asked to."""
    with output.show_progress(output.err, quiet=as_json) as on_progress:
        job_request = runtime.make_job_request(fields, wrong, on_progress=on_progress)
    job = place_request(runtime, job_request)
    if job.state is JobState.QUEUED:
        warn_without_workers(runtime)
    if as_json and not wait:
        output.print_json({"id": job.id})
    elif not as_json:
        output.out.print(str(job.id))
    if wait:
        follow_job(runtime, job.id, as_json=as_json)


def place_lines(runtime: Runtime, file: Path, *, as_json: bool) -> None:
    """Enqueue a job for each line, all or none if any line is wrong; print the ids in order.

    Files are named as for `--video`. Raises InvalidInputError and IdempotencyConflictError, which
    name the lines.
    """
    try:
        is_stdin = str(file) == STANDARD_INPUT
        text = sys.stdin.read().removeprefix(BOM) if is_stdin else file.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}") from None
    requested, wrong = list[dict[str, object]](), list[Violation]()
    for place, line in enumerate(StringIO(text)):
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        if isinstance(fields, dict):
            named = {name: fields[name] for name in FILE_FIELDS if name in fields}
            files = {name: read_file(one) for name, one in named.items() if isinstance(one, str)}
            requested.append({**fields, **files})
        else:
            allowed = "an object with a value for each field, as JSON"
            wrong.append(Violation(name_line(place), show_value(line.strip()), allowed))
    if wrong:
        raise InvalidInputError(tuple(wrong))
    jobs = place_requests(runtime, requested, name_line)
    warn_without_workers(runtime)
    if as_json:
        output.print_json({"ids": [job.id for job in jobs]})
        return
    for job in jobs:
        output.out.print(str(job.id))


def name_line(place: int) -> str:
    return f"line {place + 1}"


def warn_without_workers(runtime: Runtime) -> None:
    """The job has been enqueued all the same."""
    with suppress(SQLAlchemyError):  # only a hint
        if not runtime.list_workers():
            output.err.print(
                "no worker has been seen within the last minute: the job waits for one "
                "(extend-video up, or celery -A worker worker)",
                markup=False,
            )


# ------------------------------------------------------------------ follow a job


def follow_job(runtime: Runtime, job_id: UUID, *, as_json: bool) -> NoReturn:
    """Show the job until it ends; the exit code says whether its video is archived."""
    try:
        story = watch_job(runtime, job_id, is_quiet=as_json)
    except KeyboardInterrupt:
        output.err.print(f"the job goes on: extend-video show {job_id}")
        raise typer.Exit(INTERRUPTED) from None
    job = story.job
    is_archived = job.state is JobState.ARCHIVED
    if as_json:
        output.print_json(output.story_to_json(story))
    elif is_archived:
        output.out.print(f"archived at {job.archive_uri}", markup=False)
    else:
        output.err.print(f"{job.error_code}: {job.error_message}", markup=False)
    raise typer.Exit(OK if is_archived else FAILED)


def watch_job(runtime: Runtime, job_id: UUID, *, is_quiet: bool) -> Story:
    """Print each event and fal's progress as they come; the story once the job has ended.

    Raises TimeoutError.
    """
    follower = build_follower(runtime)
    shown: Attempt | None = None

    def check(*, is_last: bool = False) -> bool:
        """Poll fal when it is this process's turn, and print what has changed in the table."""
        nonlocal shown
        is_done = follower is None or follower.ask_in_turn(job_id, is_last=is_last)
        attempt = find_newest_attempt(job_id, db=runtime.db)
        if attempt is not None:
            before = shown if shown and shown.id == attempt.id else None
            shown = attempt
            if not is_quiet:
                for line in output.show_request_progress(attempt, before):
                    output.out.print(line)
        return is_done

    last: Event | None = None
    for event in follow_events(
        job_id, db=runtime.db, patience=FOLLOW_TIMEOUT, on_read_events=check
    ):
        if not is_quiet:
            output.out.print(output.show_event(event, last))
        last = event
    # fal's last log entries often come after the webhook.
    for _ in range(LAST_POLLS):
        if check(is_last=True):
            break
        pause_between_reads()
    return read_story(job_id, db=runtime.db)


def build_follower(runtime: Runtime) -> Follower | None:
    """None where this process has no key: then the table alone is followed."""
    with suppress(InvalidSettingsError):
        return Follower(runtime.db, runtime.requests, read_clock)
    return None


# ------------------------------------------------------------------ replay


def replay(
    sidecar: Annotated[
        str, typer.Argument(metavar="SIDECAR", help="The JSON beside a video; - for stdin.")
    ],
    set_fields: SetFields = [],
    idempotency_key: Key = None,
    tenant: Annotated[str | None, typer.Option(help="Whose job it is; else as before.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be enqueued, as JSON.")
    ] = False,
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Run an archived video's input and seed again, as a new paid job."""
    source = parse_sidecar(read_sidecar(sidecar))
    runtime = build_runtime()
    endpoint = runtime.settings.fal_endpoint
    if source.endpoint != endpoint:
        # A sidecar decides what is sent, but not to which model: that is the deployment's affair.
        allowed = f"the endpoint of this deployment, {endpoint} (FAL_ENDPOINT)"
        raise InvalidSidecarError((Violation("endpoint", source.endpoint, allowed),))
    changes, wrong = read_fields(set_fields, own_options={})
    fields = {
        **restore_files(source, changes, runtime),
        "seed": source.seed,
        **changes,
        "tenant": source.tenant if tenant is None else tenant,
        "idempotency_key": idempotency_key,
        "labels": {REPLAY_LABEL: str(source.job_id)},
        "fal_options": source.options,
    }
    if wrong:
        raise InvalidInputError(tuple(wrong))
    job_request = parse_job_request(fields)
    if dry_run:
        output.print_json({"endpoint": source.endpoint, **show_job_request(job_request)})
        return
    seed = "a new seed" if job_request.seed_drawn else f"seed {job_request.input['seed']}"
    changed = f", with other {', '.join(sorted(changes))}" if changes else ""
    output.err.print(
        f"replaying job {source.job_id} by a new paid run of {source.endpoint}, {seed}, "
        f"for tenant {job_request.options.tenant}{changed}",
        markup=False,
    )
    place_one(runtime, fields, [], wait=wait, as_json=as_json)


def read_sidecar(name: str) -> bytes:
    """Raises InvalidSidecarError if it cannot be read."""
    try:
        if name == STANDARD_INPUT:
            return sys.stdin.buffer.read(MOST_SIDECAR_BYTES)
        with Path(name).open("rb") as file:
            return file.read(MOST_SIDECAR_BYTES)
    except OSError as error:
        allowed = f"a file that can be read: {error.strerror}"
        raise InvalidSidecarError((Violation("sidecar", show_value(name), allowed),)) from None


def restore_files(
    source: Sidecar, changes: Mapping[str, object], runtime: Runtime
) -> Mapping[str, Any]:
    """The input, with data URIs instead of the sidecar's markers: from the old job's row."""
    if not list_markers(source.input, changes):
        return source.input
    try:
        row = read_story(source.job_id, db=runtime.db).job
    except JobNotFoundError:
        given: Mapping[str, Any] = source.input
    else:
        given = restore_input(source.input, row.input)
    missing = list_markers(given, changes)
    if missing:
        allowed = "not in the sidecar, and its job is not in the table: give it by --set"
        wrong = (Violation(f"input.{name}", show_value(given[name]), allowed) for name in missing)
        raise InvalidSidecarError(tuple(wrong))
    return given


def show_job_request(job_request: JobRequest) -> dict[str, object]:
    """As it would be enqueued; a seed that is still to be drawn is null."""
    options = job_request.options
    seed = {"seed": None} if job_request.seed_drawn else {}
    return {
        "tenant": options.tenant,
        "idempotency_key": options.idempotency_key,
        "labels": options.labels,
        "fal_options": options.fal_options.to_json(),
        "input": {**job_request.input, **seed},
    }
