"""`extend-video`, the shell's surface.

Exit codes: 0 ok, 1 the command's subject failed, 2 wrong usage. A command's module is imported when
the command runs, so that `--help` and `list` start without what other commands need.
"""

import inspect
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


class Command(NamedTuple):
    """A command's function, and the first line of its docstring: `--help` imports neither."""

    function: str
    summary: str


COMMANDS = {
    "enqueue": Command("enqueue.enqueue", "Enqueue a video, or many, and print the job's id."),
    "list": Command("jobs.list_", "List jobs, the newest first."),
    "show": Command("jobs.show", "Show what a job waits for, and its whole story."),
    "cancel": Command("jobs.cancel", "Cancel a job, or many."),
    "redrive": Command("jobs.redrive", "Restart jobs that failed, were cancelled or are held."),
    "replay": Command(
        "enqueue.replay", "Run an archived video's input and seed again, as a new paid job."
    ),
    "refused": Command("system.refused", "List requests that were refused, the newest first."),
    "limits": Command("limits.limits", "Show or set what may be submitted, pause and resume it."),
    "costs": Command("limits.costs", "Show what was spent, settled by fal's bills or reserved."),
    "status": Command("system.status", "Show whether workers, queues and sweeps do their work."),
    "sweep": Command("system.sweep", "Dispatch every overdue job once, as the scheduler does."),
    "doctor": Command("system.doctor", "Look for inconsistencies; change nothing."),
    "verify": Command("archive.verify", "Read every archived video and compare it with its row."),
    "rearchive": Command(
        "archive.rearchive", "Fetch archived videos again from fal, while it has them."
    ),
    "prune": Command("archive.prune", "Delete jobs that ended long ago, with their files."),
    "migrate": Command("system.migrate", "Create the job table, or bring it up to date."),
    "restore": Command(
        "system.restore", "Run this on a restored job table, before any worker starts."
    ),
    "schema": Command("schema.schema", "Compare our model with fal's OpenAPI."),
    "up": Command("run.up", "Run receiver, workers and scheduler on this machine."),
    "demo": Command("run.demo", "Extend a real video end to end on this machine."),
    "emulator": Command(
        "run.emulator", "Run the emulator of fal on loopback; --help shows its options."
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
    """The command; its help is its docstring, of which the examples keep their lines."""
    module, _, function_name = COMMANDS[name].function.partition(".")
    function = getattr(import_module(f"worker.cli.{module}"), function_name)
    text, _, examples = inspect.cleandoc(function.__doc__).partition("\n\nExamples:\n")
    single = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    is_passing = name == "emulator"
    single.command(
        name,
        help=text,
        # The mark keeps the lines apart.
        epilog=f"\b\nExamples:\n{examples.replace('    ', '  ')}",
        context_settings=PASSING if is_passing else None,
        add_help_option=not is_passing,
    )(function)
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
    from worker.cli import output
    from worker.ground.errors import ViolationsError

    if isinstance(error, ViolationsError):
        output.print_violations(error)
        return WRONG_USAGE
    output.err.print(describe_error(error), markup=False)
    return FAILED


def describe_error(error: Exception) -> str:
    """The error's code and what it says, on a line."""
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError

    from worker.ground.db import describe_database_error
    from worker.ground.errors import ExtendVideoError

    match error:
        case ExtendVideoError():
            return f"{error.code}: {error}"
        case DBAPIError():
            from worker.ground.log import mask_url
            from worker.ground.schema import explain_database_error
            from worker.ground.settings import load_settings

            url = mask_url(load_settings().database_url)
            return f"{explain_database_error(error)} (DATABASE_URL={url})"
        case SQLAlchemyError():
            return f"database_unavailable: {describe_database_error(error)}"
        case TimeoutError():
            return f"timeout: {error}"
        case OSError():
            return f"os_error: {error}"
        case _:
            # A fault of ours, or of a library: the log has where it happened, for a report.
            import structlog

            structlog.stdlib.get_logger(__name__).debug("command_failed", exc_info=error)
            name = type(error).__name__
            return f"internal_error: {name}: {error} (LOG_LEVEL=debug shows where)"


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
