"""The shell's commands to try it out: a demo of everything, and the emulator of fal."""

import os
import sys
from typing import Annotated, NoReturn

import typer

from worker.cli import display
from worker.cli.arguments import FAILED, INTERRUPTED, OK, SetFields, read_fields, read_file
from worker.cli.daemons import require_emulator
from worker.ground.errors import InvalidInputError
from worker.jobs.states import JobState


def demo(
    video: Annotated[
        str | None, typer.Option(metavar="FILE_OR_URL", help="What to extend.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What the new part should show.")] = None,
    set_fields: SetFields = [],
) -> None:
    """Extend a real video end to end on this machine.

    On the emulator; with FAL_KEY and WEBHOOK_BASE_URL on fal itself, which costs money.
    """
    from worker.cli.demo import DemoPlan, name_directory, run_demo

    fields, wrong = read_fields(set_fields)
    if wrong:
        raise InvalidInputError(tuple(wrong))
    fields |= {} if prompt is None else {"prompt": prompt}
    source = None if video is None else read_file(video)
    try:
        job = run_demo(DemoPlan(source, fields, name_directory()))
    except KeyboardInterrupt:
        display.err.print("interrupted: every process has ended")
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(OK if job.state is JobState.ARCHIVED else FAILED)


def emulator(context: typer.Context) -> NoReturn:
    """Run the emulator of fal on loopback; --help shows its options."""
    require_emulator()
    command = [sys.executable, "-m", "emulator", *context.args]
    os.execv(sys.executable, command)  # noqa: S606 - it takes this process's place
