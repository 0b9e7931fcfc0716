"""`extend-video enqueue` and `replay`: make jobs, one or many, and follow one to its end."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from io import StringIO
from typing import Annotated, Any, NoReturn
from uuid import UUID

import typer
from sqlalchemy.exc import SQLAlchemyError

from worker.cli import options, output
from worker.fal.options import parse_option
from worker.ground import errors
from worker.ground.clock import read_clock
from worker.ground.validation import show_value
from worker.jobs.states import JobState
from worker.jobs.values import Attempt, Event
from worker.media.sidecar import Sidecar, parse_sidecar
from worker.ops.timeline import (
    find_newest_attempt,
    follow_events,
    pause_between_reads,
    read_story,
)
from worker.producer import place_request, place_requests
from worker.runtime import Runtime, build_runtime
from worker.stages.archive import list_markers, restore_input
from worker.stages.enqueue import DEFAULT_TENANT, parse_job_request
from worker.stages.poll import Follower

FOLLOW_TIMEOUT = timedelta(days=1)
# How often the last poll waits for its turn.
LAST_POLLS = 20
REPLAY_LABEL = "replay_of"

Key = Annotated[str | None, typer.Option(help="Same key, same job.")]


# ------------------------------------------------------------------ enqueue


def enqueue(
    context: typer.Context,
    prompt: options.Prompt = None,
    video: options.Video = None,
    end_image: Annotated[
        str | None,
        typer.Option(metavar="FILE_OR_URL", help="A picture on which the new part ends."),
    ] = None,
    set_fields: options.SetFields = [],
    job_id: Annotated[str | None, typer.Option(help="A UUID of your choice.")] = None,
    idempotency_key: Key = None,
    tenant: Annotated[str, typer.Option(help="Whose job it is.")] = DEFAULT_TENANT,
    priority: Annotated[int, typer.Option(help="-100 to 100; higher goes first.")] = 0,
    label: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="May be repeated.")] = [],
    fal_option: Annotated[
        list[str], typer.Option(metavar="NAME=VALUE", help="An option of the request to fal.")
    ] = [],
    not_before: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Not submitted before: 2026-12-01T18:30:00Z."),
    ] = None,
    expires_at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Not submitted by then, the job fails; nothing is paid."),
    ] = None,
    lines: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Many jobs: on each line an object of fields, as JSON; - for stdin.",
        ),
    ] = None,
    wait: options.Wait = False,
    as_json: options.Json = False,
) -> None:
    """Enqueue a video, or many, and print the job's id.

    Examples:
        extend-video enqueue --prompt "The camera rises" --video my.mp4 --wait
        extend-video enqueue --prompt "Dawn" --video a.mp4 --set fps=30 --label env=prod
        extend-video enqueue --prompt "Dusk" --video a.mp4 --idempotency-key order-7 --json
        extend-video enqueue --from requests.jsonl

    """
    if lines is not None:
        check_alone(context)
        place_lines(build_runtime(), lines, as_json=as_json)
        return
    if prompt is None or video is None:
        raise typer.BadParameter("give --prompt and --video, or --from")
    fields, wrong = options.read_fields(set_fields)
    labels, wrong_labels = options.read_pairs("--label", label)
    fal_options, wrong_options = options.read_pairs("--fal-option", fal_option, parse_option)
    fields |= {} if end_image is None else {"end_image_url": options.read_file(end_image)}
    fields |= {
        "prompt": prompt,
        "video_url": options.read_file(video),
        "job_id": job_id,
        "idempotency_key": idempotency_key,
        "tenant": tenant,
        "priority": priority,
        "labels": labels,
        "fal_options": fal_options,
        "not_before": not_before,
        "expires_at": expires_at,
    }
    wrong += [*wrong_labels, *wrong_options]
    place_one(build_runtime(), fields, wrong, wait=wait, as_json=as_json)


def check_alone(context: typer.Context) -> None:
    """Other options beside `--from` would contradict its lines."""
    for name in context.params.keys() - {"lines", "as_json"}:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--from takes {name} from its lines, and follows no job")


def place_one(
    runtime: Runtime,
    fields: Mapping[str, object],
    wrong: list[errors.Violation],
    *,
    wait: bool,
    as_json: bool,
) -> None:
    """Upload, enqueue, print the id, and with `wait` follow the job to its end."""
    with output.show_progress(output.err, quiet=as_json) as on_progress:
        job_request = runtime.make_job_request(fields, wrong, on_progress=on_progress)
    job = place_request(runtime, job_request).job
    if job.state is JobState.QUEUED:
        warn_without_workers(runtime)
    if not (wait and as_json):
        output.report(str(job.id), {"id": job.id}, as_json=as_json)
    if wait:
        follow_job(runtime, job.id, as_json=as_json)


def place_lines(runtime: Runtime, file: str, *, as_json: bool) -> None:
    """Enqueue a job for each line, all or none if any line is wrong; print the ids in order.

    Files are named as for `--video`. Raises InvalidInputError and IdempotencyConflictError, which
    name the lines.
    """
    try:
        text = options.read_input(file).decode("utf-8-sig")
    except ValueError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}") from None
    requested, wrong = list[dict[str, object]](), list[errors.Violation]()
    for place, line in enumerate(StringIO(text)):
        fields = None
        with suppress(ValueError):
            fields = json.loads(line)
        if not isinstance(fields, dict):
            allowed = "an object with a value for each field, as JSON"
            wrong.append(errors.Violation(name_line(place), show_value(line.strip()), allowed))
            continue
        for name in ("video_url", "end_image_url"):
            if isinstance(fields.get(name), str):
                fields[name] = options.read_file(fields[name])
        requested.append(fields)
    if wrong:
        raise errors.InvalidInputError(tuple(wrong))
    jobs = place_requests(runtime, requested, name_line)
    warn_without_workers(runtime)
    ids = [job.id for job in jobs]
    if as_json or ids:
        output.report("\n".join(map(str, ids)), {"ids": ids}, as_json=as_json)


def name_line(place: int) -> str:
    return f"line {place + 1}"


def warn_without_workers(runtime: Runtime) -> None:
    """The job has been enqueued all the same."""
    with suppress(SQLAlchemyError):
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
        watch_job(runtime, job_id, is_quiet=as_json)
    except KeyboardInterrupt:
        output.err.print(f"the job goes on: extend-video show {job_id}")
        raise typer.Exit(options.INTERRUPTED) from None
    story = read_story(job_id, db=runtime.db)
    job = story.job
    is_archived = job.state is JobState.ARCHIVED
    if as_json:
        output.print_json(output.story_to_json(story))
    elif is_archived:
        output.out.print(f"archived at {job.archive_uri}", markup=False)
    else:
        output.err.print(f"{job.error_code}: {job.error_message}", markup=False)
    raise typer.Exit(options.OK if is_archived else options.FAILED)


def watch_job(
    runtime: Runtime,
    job_id: UUID,
    *,
    is_quiet: bool = False,
    timeout: timedelta | None = None,
    on_read: Callable[[], object] = lambda: None,
) -> None:
    """Print each event and fal's progress as they come, until the job has ended.

    `on_read` is called between reads of the table. Raises TimeoutError.
    """
    db, follower = runtime.db, build_follower(runtime)
    shown: Attempt | None = None

    def poll(*, is_last: bool = False) -> bool:
        """Poll fal when it is this process's turn, and print what has changed in the table."""
        nonlocal shown
        on_read()
        is_done = follower is None or follower.ask_in_turn(job_id, is_last=is_last)
        attempt = find_newest_attempt(job_id, db=db)
        if attempt is not None and not is_quiet:
            before = shown if shown and shown.id == attempt.id else None
            for line in output.show_request_progress(attempt, before):
                output.out.print(f"  {line}")
        shown = attempt
        return is_done

    last: Event | None = None
    within = timeout or FOLLOW_TIMEOUT
    for event in follow_events(job_id, db=db, timeout=within, on_read_events=poll):
        if not is_quiet:
            output.out.print(f"  {output.show_event(event, last)}")
        last = event
    # fal's last log entries often come after the webhook.
    for _ in range(LAST_POLLS):
        if poll(is_last=True):
            break
        pause_between_reads()


def build_follower(runtime: Runtime) -> Follower | None:
    """None where this process has no key: then the table alone is followed."""
    with suppress(errors.InvalidSettingsError):
        return Follower(runtime.db, runtime.requests, read_clock)
    return None


# ------------------------------------------------------------------ replay


def replay(
    sidecar: Annotated[
        str, typer.Argument(metavar="SIDECAR", help="The JSON beside a video; - for stdin.")
    ],
    set_fields: options.SetFields = [],
    idempotency_key: Key = None,
    tenant: Annotated[str | None, typer.Option(help="Whose job it is; else as before.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be enqueued, as JSON.")
    ] = False,
    wait: options.Wait = False,
    as_json: options.Json = False,
) -> None:
    """Run an archived video's input and seed again, as a new paid job.

    Examples:
        extend-video replay 0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69.json --wait
        extend-video replay my.json --set "prompt=Dusk falls" --set seed=8 --dry-run
        extend-video replay - --json

    """
    source = parse_sidecar(options.read_input(sidecar))
    runtime = build_runtime()
    endpoint = runtime.settings.fal_endpoint
    if source.endpoint != endpoint:
        # A sidecar decides what is sent, but not to which model: that is the deployment's affair.
        allowed = f"the endpoint of this deployment, {endpoint} (FAL_ENDPOINT)"
        raise errors.InvalidSidecarError((errors.Violation("endpoint", source.endpoint, allowed),))
    changes, wrong = options.read_fields(set_fields, own_options=())
    if wrong:
        raise errors.InvalidInputError(tuple(wrong))
    chosen = {
        "tenant": source.tenant if tenant is None else tenant,
        "idempotency_key": idempotency_key,
        "labels": {REPLAY_LABEL: str(source.job_id)},
        "fal_options": source.options,
    }
    fields = {**restore_files(source, changes, runtime), "seed": source.seed, **changes, **chosen}
    checked = parse_job_request(fields)
    seed = None if checked.seed_drawn else checked.input["seed"]
    if dry_run:
        sent = {**checked.input, "seed": seed}
        output.print_json({"endpoint": endpoint, **chosen, "input": sent})
        return
    changed = f", with other {', '.join(sorted(changes))}" if changes else ""
    output.err.print(
        f"replaying job {source.job_id} by a new paid run of {endpoint}, "
        f"{'a new seed' if seed is None else f'seed {seed}'}, "
        f"for tenant {chosen['tenant']}{changed}",
        markup=False,
    )
    place_one(runtime, fields, [], wait=wait, as_json=as_json)


def restore_files(
    source: Sidecar, changes: Mapping[str, object], runtime: Runtime
) -> Mapping[str, Any]:
    """The input, with data URIs instead of the sidecar's markers: from the old job's row."""
    given: Mapping[str, Any] = source.input
    if list_markers(given, changes):
        with suppress(errors.JobNotFoundError):
            row = read_story(source.job_id, db=runtime.db).job
            given = restore_input(given, row.input)
    allowed = "not in the sidecar, and its job is not in the table: give it by --set"
    missing = tuple(
        errors.Violation(f"input.{name}", show_value(given[name]), allowed)
        for name in list_markers(given, changes)
    )
    if missing:
        raise errors.InvalidSidecarError(missing)
    return given
