"""What commands share: exit codes, options, and text from the shell read as values."""

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote_to_bytes, urlsplit
from uuid import UUID

import typer

from worker.ground.clock import read_clock, read_moment
from worker.ground.data_uri import is_data_uri
from worker.ground.errors import InvalidInputError, Violation
from worker.jobs.queries import JobFilter, parse_filter
from worker.jobs.states import JobState

OK, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

JobId = Annotated[UUID, typer.Argument(metavar="ID", help="The job's id.")]
MaybeJobId = Annotated[
    UUID | None, typer.Argument(metavar="ID", help="The job's id; or select jobs by options.")
]
State = Annotated[JobState | None, typer.Option(help="Only jobs in this state.")]
Tenant = Annotated[str | None, typer.Option(help="Only this tenant's.")]
Label = Annotated[
    str | None, typer.Option(metavar="NAME[=VALUE]", help="Only jobs with this label.")
]
Since = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Enqueued at or after: 2026-11-24T18:30 (UTC), or 2h ago."),
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Enqueued before.")]
Text = Annotated[
    str | None,
    typer.Option(
        help="A job id or its first 8 digits, an idempotency key, fal's request id, "
        "or words of the prompt."
    ),
]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")]
SetFields = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the model's input.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation: for scripts.")]
Wait = Annotated[bool, typer.Option("--wait", help="Follow the job to its end.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

OWN_OPTIONS = {"prompt": "--prompt", "video_url": "--video"}


def read_file(text: str) -> str | Path:
    """A URL or a data URI as it is; other text, and a `file:` URL, as a path."""
    if text.lower().startswith("file:"):
        parts = urlsplit(text)
        is_local = parts.netloc in {"", "localhost"} and not parts.query and not parts.fragment
        # On another machine: the field's own type says what it takes.
        return Path(os.fsdecode(unquote_to_bytes(parts.path))) if is_local else text
    return text if "://" in text or is_data_uri(text) or not text else Path(text)


def split_pairs(option: str, pairs: Sequence[str]) -> tuple[dict[str, str], list[Violation]]:
    """NAME=VALUE texts by name, and the texts of another form."""
    wrong = [Violation(option, pair, "NAME=VALUE") for pair in pairs if "=" not in pair]
    parts = [pair.partition("=") for pair in pairs if "=" in pair]
    return {name: value for name, _, value in parts}, wrong


def read_pairs(
    option: str, pairs: Sequence[str], parse: Callable[[str, str], object]
) -> tuple[dict[str, object], list[Violation]]:
    """NAME=VALUE texts as values of their own types, and the texts of another form.

    Text of the wrong type is kept as text: `parse_job_request` says what the field allows.
    """
    texts, wrong = split_pairs(option, pairs)
    values: dict[str, object] = {}
    for name, text in texts.items():
        try:
            values[name] = parse(name, text)
        except InvalidInputError:
            values[name] = text
    return values, wrong


def read_fields(
    pairs: Sequence[str], own_options: Mapping[str, str] = OWN_OPTIONS
) -> tuple[dict[str, object], list[Violation]]:
    """As `read_pairs`, of the model's input; `own_options` are fields with options of their own."""
    from worker.fal.model import parse_field

    values, wrong = read_pairs("--set", pairs, parse_field)
    for name in values.keys() & own_options.keys():
        wrong.append(
            Violation(f"--set {name}", str(values.pop(name)), f"give it as {own_options[name]}")
        )
    return values, wrong


def read_time(text: str, now: datetime | None = None) -> datetime:
    """A time or an age, as `read_moment` takes them. Raises typer.BadParameter."""
    try:
        return read_moment(text, now or read_clock())
    except ValueError as error:
        raise typer.BadParameter(f"invalid time {text!r}; expected {error}") from None


def read_past(text: str) -> datetime:
    """As `read_time`, but the present and the future are refused."""
    now = read_clock()
    moment = read_time(text, now)
    if moment >= now:
        raise typer.BadParameter(f"{text!r} is not in the past")
    return moment


def read_filter(
    state: JobState | None,
    tenant: str | None,
    label: str | None,
    since: str | None,
    until: str | None,
    text: str | None,
) -> JobFilter:
    """Raises InvalidInputError, which names every option with an invalid value."""
    given = {
        "state": state,
        "tenant": tenant,
        "label": label,
        "since": since,
        "until": until,
        "text": text,
    }
    texts = {name: value for name, value in given.items() if value is not None}
    wanted, wrong = parse_filter(texts, read_clock())
    if wrong:
        raise InvalidInputError(
            tuple(
                Violation(f"--{name}", texts[name], f"expected {allowed}")
                for name, allowed in wrong.items()
            )
        )
    return wanted


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
