"""`extend-video restore`: what to run before the daemons start on a restored job table."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from worker.cli import display
from worker.cli.arguments import Json
from worker.cli.shell import DryRun
from worker.ground.clock import read_clock, read_moment
from worker.runtime import build_runtime
from worker.stages.restore import Restored

NO_MOMENT = "the back-up's own time, such as 2026-11-24T18:30 (UTC)"


def read_past(text: str) -> datetime:
    """A moment that is over. No age: the same time again has to be the same restore."""
    now = read_clock()
    try:
        moment = read_moment(text, now)
        is_age = moment != read_moment(text, moment)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is none: give {NO_MOMENT}") from None
    if is_age:
        raise typer.BadParameter(f"{text!r} is another time each time: give {NO_MOMENT}")
    if moment > now:
        raise typer.BadParameter(f"{text!r} is still to come: give {NO_MOMENT}")
    return moment


def restore(
    since: Annotated[
        datetime,
        typer.Option(
            parser=read_past,
            metavar="TIME",
            help="When the back-up was taken, or the last commit that is left: better a minute "
            "early than late.",
        ),
    ],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run this on a restored job table, before any worker starts.

    What is queued may have been paid for since the back-up. It becomes unknown, is searched for at
    fal first, and is bought only once it is proven that fal does not have it. The same time again
    goes on where it was interrupted, and does nothing twice.
    """
    restored = build_runtime().restore(since, dry_run=dry_run)
    if as_json:
        display.print_json({"dry_run": dry_run, **asdict(restored)})
    else:
        print_restored(restored)


def print_restored(restored: Restored) -> None:
    """What was done, and what to do next; or what would be done."""
    is_done = restored.epoch is not None
    again = ", which was restored before" if restored.is_repeated else ""
    display.out.print(f"lost since {restored.lost_since:%Y-%m-%d %H:%M:%S} UTC{again}")
    verb = "" if is_done else "would be "
    display.out.print(f"{restored.doubted} queued jobs {verb}put in doubt")
    display.out.print(f"{restored.taken_over} jobs {verb}taken from workers that are gone")
    display.out.print(f"{restored.unknown} jobs {verb}searched for at fal at once")
    if restored.strays:
        display.out.print(f"{restored.strays} webhooks of jobs without a row: extend-video doctor")
    if is_done:
        display.out.print("next: extend-video doctor, then start the daemons")
