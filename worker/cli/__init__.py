"""`extend-video`, the shell's surface.

Exit codes: 0 ok, 1 the command's subject failed, 2 wrong usage. A command's module is imported when
the command runs, so that `--help` and `list` start without what other commands need.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup
from typing_extensions import override

FAILED, WRONG_USAGE = 1, 2
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
JOB = "0190c9f4-7e3a-7c61-9b5e-1f2d3c4b5a69"


class Command(NamedTuple):
    """Where a command is, and what the help says of it; `summary` begins its docstring, too."""

    function: str
    summary: str
    examples: tuple[str, ...]


COMMANDS = {
    "enqueue": Command(
        "enqueue.enqueue",
        "Enqueue a video, or many, and print the job's id.",
        (
            'extend-video enqueue --prompt "The camera rises" --video my.mp4 --wait',
            'extend-video enqueue --prompt "Dawn" --video a.mp4 --set fps=30 --label env=prod',
            'extend-video enqueue --prompt "Dusk" --video a.mp4 --idempotency-key order-7 --json',
            "extend-video enqueue --from requests.jsonl",
        ),
    ),
    "list": Command(
        "jobs.list_",
        "List jobs, the newest first.",
        (
            "extend-video list --state failed --since 24h",
            "extend-video list --tenant studio --label env=prod --watch",
            "extend-video list --text order-7 --json",
        ),
    ),
    "show": Command(
        "jobs.show",
        "Show what a job waits for, and its whole story.",
        (
            f"extend-video show {JOB}",
            f"extend-video show {JOB} --wait",
            f"extend-video show {JOB} --logs --json",
        ),
    ),
    "cancel": Command(
        "jobs.cancel",
        "Cancel a job, or many.",
        (
            f"extend-video cancel {JOB}",
            "extend-video cancel --state queued --tenant studio --dry-run",
            "extend-video cancel --label campaign=spring --since 2h --yes --json",
        ),
    ),
    "redrive": Command(
        "jobs.redrive",
        "Restart jobs that failed, were cancelled or are held.",
        (
            f"extend-video redrive {JOB}",
            "extend-video redrive --state failed --since 24h --dry-run",
            "extend-video redrive --state failed --tenant studio --pay-again",
        ),
    ),
    "replay": Command(
        "enqueue.replay",
        "Run an archived video's input and seed again, as a new paid job.",
        (
            f"extend-video replay {JOB}.json --wait",
            'extend-video replay my.json --set "prompt=Dusk falls" --set seed=8 --dry-run',
            "extend-video replay - --json",
        ),
    ),
    "refused": Command(
        "system.refused",
        "List requests that were refused, the newest first.",
        ("extend-video refused --limit 10", "extend-video refused --tenant studio --json"),
    ),
    "status": Command(
        "system.status",
        "Show whether workers, queues and sweeps do their work.",
        ("extend-video status", "extend-video status --json"),
    ),
    "sweep": Command(
        "system.sweep",
        "Dispatch every overdue job once, as the scheduler does.",
        ("extend-video sweep", "extend-video sweep --json"),
    ),
    "doctor": Command(
        "system.doctor",
        "Look for inconsistencies; change nothing.",
        ("extend-video doctor", "extend-video doctor --all --hours 48 --json"),
    ),
    "verify": Command(
        "archive.verify",
        "Read every archived video and compare it with its row.",
        (
            "extend-video verify",
            "extend-video verify --sample 500 --tenant studio --json",
            "extend-video verify --resume-from 2026-11-24T18:30:00Z",
            "extend-video verify --orphans",
        ),
    ),
    "rearchive": Command(
        "archive.rearchive",
        "Fetch archived videos again from fal, while it has them.",
        (f"extend-video rearchive {JOB}", f"extend-video rearchive {JOB} --force --json"),
    ),
    "prune": Command(
        "archive.prune",
        "Delete jobs that ended long ago, with their files.",
        (
            "extend-video prune --older-than 90d --dry-run",
            "extend-video prune --older-than 30d --tenant studio --label env=test --files-only",
            "extend-video prune --older-than 12h --state failed --state cancelled --yes --json",
        ),
    ),
    "migrate": Command(
        "system.migrate",
        "Create the job table, or bring it up to date.",
        ("extend-video migrate", "extend-video migrate --json"),
    ),
    "restore": Command(
        "system.restore",
        "Run this on a restored job table, before any worker starts.",
        (
            "extend-video restore --since 2026-11-24T18:30 --dry-run",
            "extend-video restore --since 2026-11-24T18:30 --json",
        ),
    ),
    "schema": Command(
        "schema.schema",
        "Compare our model with fal's OpenAPI.",
        ("extend-video schema", "extend-video schema --file openapi.json --strict-defaults"),
    ),
    "up": Command(
        "run.up",
        "Run receiver, workers and scheduler on this machine.",
        ("extend-video up", "extend-video up --host 0.0.0.0 --port 8080"),
    ),
    "demo": Command(
        "run.demo",
        "Extend a real video end to end on this machine.",
        ("extend-video demo", 'extend-video demo --video my.mp4 --prompt "The camera rises"'),
    ),
    "emulator": Command(
        "run.emulator",
        "Run the emulator of fal on loopback; --help shows its options.",
        ("extend-video emulator --port 9000", "extend-video emulator --help"),
    ),
}
# Their arguments are another program's.
PASSING = {"allow_extra_args": True, "ignore_unknown_options": True}


class LazyGroup(TyperGroup):
    """The commands of COMMANDS, each built from its function when it is named."""

    @override
    def list_commands(self, ctx: Any) -> list[str]:
        return [*COMMANDS]

    @override
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return build_command(cmd_name) if cmd_name in COMMANDS else None

    @override
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """As its base does, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.summary) for name, one in COMMANDS.items()])


def build_command(name: str) -> Any:  # noqa: ANN401 - a command of the click that typer has chosen
    """The command, with its examples below the help."""
    command = COMMANDS[name]
    module, _, function = command.function.partition(".")
    examples = "\n".join(f"  {line}" for line in command.examples)
    single = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    is_passing = name == "emulator"
    single.command(
        name,
        # The mark keeps the lines apart.
        epilog=f"\b\nExamples:\n{examples}",
        context_settings=PASSING if is_passing else None,
        add_help_option=not is_passing,
    )(getattr(import_module(f"worker.cli.{module}"), function))
    return typer.main.get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    help="Extend videos on fal: pay once, lose nothing.",
    epilog="extend-video COMMAND --help has examples; --install-completion helps your shell.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def extend_video() -> None:
    """Extend videos on fal: pay once, lose nothing."""


def main() -> NoReturn:
    """Run a command. An error is reported in a line or two, never as a traceback."""
    try:
        with termination_as_interrupt():
            app()
    except Exception as error:  # noqa: BLE001 - the outermost edge
        sys.exit(report_error(error))
    sys.exit(FAILED)


def report_error(error: Exception) -> int:
    """Print what went wrong; the exit code."""
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    from worker.cli import output
    from worker.ground.db import describe_database_error
    from worker.ground.errors import ExtendVideoError, ViolationsError

    match error:
        case ViolationsError():
            output.print_violations(error)
            return WRONG_USAGE
        case ExtendVideoError():
            line = f"{error.code}: {error}"
        case TimeoutError():
            line = f"timeout: {error}"
        case DBAPIError():
            from worker.ground.log import mask_url
            from worker.ground.schema import explain_database_error
            from worker.ground.settings import load_settings

            url = mask_url(load_settings().database_url)
            line = f"{explain_database_error(error)} (DATABASE_URL={url})"
        case SQLAlchemyError():
            line = f"database_unavailable: {describe_database_error(error)}"
        case OSError():
            reason = error.strerror or str(error) or type(error).__name__
            where = "" if error.filename is None else f"{error.filename}: "
            line = f"os_error: {where}{reason}"
        case _:
            # A fault of ours, or of a library: the log has where it happened, for a report.
            import structlog

            structlog.stdlib.get_logger(__name__).debug("command_failed", exc_info=error)
            name = type(error).__name__
            line = f"internal_error: {name}: {error} (LOG_LEVEL=debug shows where)"
    output.err.print(line, markup=False)
    return FAILED


# ------------------------------------------------------------------ signals


Handler = Callable[[int, FrameType | None], object] | signal.Handlers


@contextmanager
def handling(handler: Handler, *numbers: int) -> Iterator[None]:
    """Let the handler have these signals, or all that end us."""
    before = {number: signal.signal(number, handler) for number in numbers or ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind this process as Ctrl-C does, so that nothing is left behind."""

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    with handling(interrupt, signal.SIGTERM, signal.SIGHUP):
        yield
