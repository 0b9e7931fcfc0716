"""What commands share: exit codes, options, and text from the shell read as values."""

import os
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes, urlsplit
from uuid import UUID

import typer

from worker.ground.clock import read_clock, read_moment
from worker.ground.data_uri import is_data_uri
from worker.ground.errors import InvalidInputError, Violation
from worker.jobs.queries import parse_label
from worker.jobs.states import JobState

OK, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
OWN_OPTIONS = ("prompt", "video_url")

# ------------------------------------------------------------------ text as values


def read_file(text: str) -> str | Path:
    """A URL or a data URI as it is; other text, and a `file:` URL, as a path."""
    if text.lower().startswith("file:"):
        parts = urlsplit(text)
        is_local = parts.netloc in {"", "localhost"} and not parts.query and not parts.fragment
        # On another machine: the field's own type says what it takes.
        return Path(os.fsdecode(unquote_to_bytes(parts.path))) if is_local else text
    return text if "://" in text or is_data_uri(text) or not text else Path(text)


def read_input(name: str) -> bytes:
    """The content of a file, or of standard input for `-`. Raises typer.BadParameter."""
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{name} cannot be read: {error.strerror}") from None


def read_pairs(
    option: str, pairs: Sequence[str], parse: Callable[[str, str], object] = lambda _, text: text
) -> tuple[dict[str, Any], list[Violation]]:
    """NAME=VALUE texts as values of their own types, and the texts of another form.

    Text of the wrong type is kept as text: `parse_job_request` says what the field allows.
    """
    values = dict[str, Any]()
    for pair in pairs:
        name, mark, text = pair.partition("=")
        if mark:
            values[name] = text
            with suppress(InvalidInputError):
                values[name] = parse(name, text)
    return values, [Violation(option, pair, "NAME=VALUE") for pair in pairs if "=" not in pair]


def read_fields(
    pairs: Sequence[str], own_options: Collection[str] = OWN_OPTIONS
) -> tuple[dict[str, Any], list[Violation]]:
    """As `read_pairs`, of the model's input, without fields that have options of their own."""
    from worker.fal.model import parse_field

    values, wrong = read_pairs("--set", pairs, parse_field)
    for name in values.keys() & set(own_options):
        allowed = "given by the option of its own"
        wrong.append(Violation(f"--set {name}", str(values.pop(name)), allowed))
    return values, wrong


def read_time(text: str) -> datetime:
    """A time or an age, as `read_moment` takes them. Raises typer.BadParameter."""
    try:
        return read_moment(text, read_clock())
    except ValueError as error:
        raise typer.BadParameter(f"invalid time {text!r}; expected {error}") from None


def read_past(text: str) -> datetime:
    """As `read_time`, but the present and the future are refused: `0d`, or a slip of the year."""
    now = read_clock()
    moment = read_time(text)
    if moment >= now:
        raise typer.BadParameter(f"{text!r} is not in the past")
    return moment


def read_label(text: str) -> tuple[str, str | None]:
    """A label's name, with its value if one is meant. Raises typer.BadParameter."""
    try:
        return parse_label(text)
    except ValueError as error:
        raise typer.BadParameter(f"invalid label {text!r}; expected {error}") from None


def confirm_count(count: int, question: str) -> bool:
    """Whether the operator types the count."""
    try:
        answer = str(typer.prompt(f"Type {count} to {question}", err=True))
    except typer.Abort:
        typer.echo("\nno confirmation: in scripts, give --yes", err=True)
        answer = ""
    is_meant = answer.strip() == str(count)
    if not is_meant:
        typer.echo("nothing was changed", err=True)
    return is_meant


# ------------------------------------------------------------------ options

JobId = Annotated[UUID, typer.Argument(metavar="ID", help="The job's id.")]
MaybeJobId = Annotated[
    UUID | None, typer.Argument(metavar="ID", help="The job's id; or select jobs by options.")
]
State = Annotated[JobState | None, typer.Option(help="Only jobs in this state.")]
Tenant = Annotated[str | None, typer.Option(help="Only this tenant's.")]
Label = Annotated[
    Any,
    typer.Option(parser=read_label, metavar="NAME[=VALUE]", help="Only jobs with this label."),
]
Since = Annotated[
    datetime | None,
    typer.Option(
        parser=read_time,
        metavar="TIME",
        help="Enqueued at or after: 2026-11-24T18:30 (UTC), or 2h ago.",
    ),
]
Until = Annotated[
    datetime | None, typer.Option(parser=read_time, metavar="TIME", help="Enqueued before.")
]
Text = Annotated[
    str | None,
    typer.Option(
        help="A job id or its first 8 digits, an idempotency key, fal's request id, "
        "or words of the prompt."
    ),
]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")]
Prompt = Annotated[str | None, typer.Option(help="What the new part should show.")]
Video = Annotated[str | None, typer.Option(metavar="FILE_OR_URL", help="The video to extend.")]
SetFields = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the model's input.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation: for scripts.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the job to its end.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
