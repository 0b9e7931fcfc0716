"""`extend-video`, the shell's surface.

Exit codes: 0 ok, 1 the thing asked about failed, 2 wrong usage.
"""

import contextlib
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from worker.cli import display
from worker.cli.arguments import (
    FAILED,
    OK,
    WRONG_USAGE,
    Json,
    SetFields,
    read_fields,
    read_file,
    read_options,
    split_pairs,
)
from worker.cli.care import rearchive, verify
from worker.cli.contract import schema
from worker.cli.daemons import (
    MARGIN,
    Crew,
    bind_listener,
    receiver_daemon,
    termination_as_interrupt,
    worker_daemons,
)
from worker.cli.examples import show_examples
from worker.cli.findings import print_diagnosis
from worker.cli.listing import list_
from worker.cli.order import follow_job, place_lines, place_request
from worker.cli.orders import cancel, redrive
from worker.cli.progress import show_progress
from worker.cli.pruning import prune
from worker.cli.refused import refused
from worker.cli.replay import replay
from worker.cli.restoring import restore
from worker.cli.shell import JobId
from worker.cli.status import status
from worker.cli.trial import demo, emulator
from worker.cli.watch import refresh_logs
from worker.ground.db import describe_database_error
from worker.ground.errors import DaemonError, ExtendVideoError, ViolationsError
from worker.ground.log import mask_url
from worker.ground.settings import load_settings
from worker.ops.timeline import read_story
from worker.runtime import build_runtime
from worker.stages.enqueue import DEFAULT_TENANT

__all__ = ["app", "build_runtime", "main"]

log = structlog.stdlib.get_logger(__name__)

app = typer.Typer(
    help="Extend videos on fal: pay once, lose nothing.",
    epilog="extend-video COMMAND --help has examples; --install-completion helps your shell.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Prompt = Annotated[str | None, typer.Option(help="What the new part should show.")]
FileOrUrl = Annotated[str | None, typer.Option(metavar="FILE_OR_URL", help="The video to extend.")]
Lines = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="Many at once: an object of fields on each line, as JSON; - for stdin.",
    ),
]
EndImage = Annotated[
    str | None, typer.Option(metavar="FILE_OR_URL", help="A picture on which the new part ends.")
]
FalOptions = Annotated[
    list[str], typer.Option(metavar="NAME=VALUE", help="What fal is told besides the input.")
]


@app.command(epilog=show_examples("enqueue"))
def enqueue(
    context: typer.Context,
    prompt: Prompt = None,
    video: FileOrUrl = None,
    end_image: EndImage = None,
    set_fields: SetFields = [],
    job_id: Annotated[str | None, typer.Option(help="A UUID of your choice.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="Same key, same job.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose job it is.")] = DEFAULT_TENANT,
    priority: Annotated[int, typer.Option(help="-100 to 100; higher is swept first.")] = 0,
    label: Annotated[list[str], typer.Option(metavar="NAME=VALUE", help="May be repeated.")] = [],
    fal_option: FalOptions = [],
    lines: Lines = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end.")] = False,
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
    fal_options, wrong_options = read_options(fal_option)
    options = {
        "job_id": job_id,
        "idempotency_key": idempotency_key,
        "tenant": tenant,
        "priority": priority,
        "labels": labels,
        "fal_options": fal_options,
    }
    if end_image is not None:
        fields["end_image_url"] = read_file(end_image)
    wished = {**fields, "prompt": prompt, "video_url": read_file(video), **options}
    runtime = build_runtime()
    with show_progress(display.err, quiet=as_json) as on_progress:
        job_request = runtime.make_job_request(
            wished, [*wrong, *wrong_labels, *wrong_options], on_progress=on_progress
        )
    place_request(runtime, job_request, wait=wait, as_json=as_json)


def check_alone(context: typer.Context, names: Collection[str]) -> None:
    """Options beside `--from` would say of every line what the lines say themselves."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in names and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"--from takes {name} from its lines, and follows no job")


app.command("list", epilog=show_examples("list"))(list_)


@app.command(epilog=show_examples("show"))
def show(
    job_id: JobId,
    logs: Annotated[bool, typer.Option("--logs", help="What fal has logged, too.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", "--follow", help="Follow the job to its end.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a job waits for, and its whole story.

    States, attempts, deliveries and events, as they came.
    """
    runtime = build_runtime()
    if wait:
        follow_job(runtime, job_id, as_json=as_json)
    if logs:
        refresh_logs(runtime, job_id)
    story = read_story(job_id, db=runtime.db, policy=runtime.resolve_policy)
    if as_json:
        display.print_json(display.story_to_json(story))
        return
    display.print_story(story)
    if logs:
        display.print_logs(story)


app.command(epilog=show_examples("cancel"))(cancel)
app.command(epilog=show_examples("redrive"))(redrive)


@app.command(epilog=show_examples("sweep"))
def sweep(as_json: Json = False) -> None:
    """Ring once for every overdue job, as the scheduler does."""
    overdue, published = build_runtime().publish_overdue() or (0, 0)
    if as_json:
        display.print_json({"overdue": overdue, "rung": published})
    else:
        display.out.print(f"{overdue} overdue, rung for {published}")
    raise typer.Exit(OK if published == overdue else FAILED)


@app.command(epilog=show_examples("doctor"))
def doctor(
    every_file: Annotated[bool, typer.Option("--all", help="Look at every archived file.")] = False,
    hours: Annotated[int, typer.Option(min=1, max=2160, help="How far back at fal.")] = 24,
    as_json: Json = False,
) -> None:
    """Look for what must not be; change nothing.

    In rows, in the archive and, with a key, in fal's list of requests. Exit code 1: violations.
    """
    diagnosis = build_runtime().examine(every_file=every_file, hours=hours)
    print_diagnosis(diagnosis, as_json=as_json)
    raise typer.Exit(OK if diagnosis.is_clean else FAILED)


@app.command(epilog=show_examples("migrate"))
def migrate(as_json: Json = False) -> None:
    """Create the job table, or bring it up to date."""
    from worker.ground.schema import upgrade_schema

    revision = upgrade_schema(build_runtime().settings.database_url)
    if as_json:
        display.print_json({"revision": revision})
    else:
        display.out.print(f"the job table is at revision {revision}")


for command in (refused, schema, verify, rearchive, prune, replay, restore, status):
    app.command(epilog=show_examples(command.__name__))(command)


@app.command(epilog=show_examples("up"))
def up(
    host: Annotated[str, typer.Option(help="Where the receiver listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
) -> None:
    """Run receiver, workers and scheduler on this machine.

    Until Ctrl-C or SIGTERM, which ends all of them.
    """
    from worker.ground.schema import upgrade_schema

    runtime = build_runtime()
    runtime.check_worker()
    if not runtime.dispatcher.ping():
        raise DaemonError("no broker answers at BROKER_URL: start Redis, or set the variable")
    upgrade_schema(runtime.settings.database_url)
    patience = runtime.settings.drain_seconds + MARGIN
    with bind_listener(host, port) as listener, Crew(os.environ, patience=patience) as crew:
        display.err.print(f"receiver on http://{host}:{listener.getsockname()[1]}")
        for daemon in (receiver_daemon(listener), *worker_daemons()):
            crew.start(daemon)
        # Being told to end is what it waits for.
        with contextlib.suppress(KeyboardInterrupt):
            crew.watch()


app.command(epilog=show_examples("demo"))(demo)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
    epilog=show_examples("emulator"),
)(emulator)


def main() -> NoReturn:
    """Run a command. Whatever goes wrong is told in a line or two, never as a traceback."""
    try:
        with termination_as_interrupt():
            app()
    except ViolationsError as error:
        display.print_violations(error)
        sys.exit(WRONG_USAGE)
    except ExtendVideoError as error:
        display.err.print(f"{error.code}: {error}", markup=False)
    except TimeoutError as error:
        display.err.print(f"timeout: {error}", markup=False)
    except DBAPIError as error:
        from worker.ground.schema import explain_database_error

        where = f"(DATABASE_URL={mask_url(load_settings().database_url)})"
        display.err.print(explain_database_error(error), where, markup=False)
    except SQLAlchemyError as error:
        reason = describe_database_error(error)
        display.err.print(f"database_unavailable: {reason}", markup=False)
    except OSError as error:
        display.err.print(f"os_error: {describe_os_error(error)}", markup=False)
    except Exception as error:
        # A fault of ours, or of a library: the log has where it happened, for a report.
        log.debug("command_failed", exc_info=True)
        name = type(error).__name__
        display.err.print(
            f"internal_error: {name}: {error} (LOG_LEVEL=debug shows where)", markup=False
        )
    sys.exit(FAILED)


def describe_os_error(error: OSError) -> str:
    """The system's reason, and the file if it is about one."""
    reason = error.strerror or str(error) or type(error).__name__
    return reason if error.filename is None else f"{error.filename}: {reason}"
