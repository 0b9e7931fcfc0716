"""What a shell gives as text, as values of the fields' own types; and how commands end."""

import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote_to_bytes, urlsplit

import typer

from worker.fal.model import parse_field
from worker.fal.options import parse_option
from worker.ground.clock import read_clock, read_moment
from worker.ground.data_uri import is_data_uri
from worker.ground.errors import InvalidInputError, Violation

OK, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

SetFields = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Any field of the model's input.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Tenant = Annotated[str | None, typer.Option(help="Only jobs of this tenant.")]


OWN_OPTIONS = {"prompt": "--prompt", "video_url": "--video"}


def read_file(text: str) -> str | Path:
    """A URL or a data URI as it is; whatever else, and a `file:` URL, as a path."""
    if text.lower().startswith("file:"):
        parts = urlsplit(text)
        is_local = parts.netloc in {"", "localhost"} and not parts.query and not parts.fragment
        # Of another machine: the field's own type says what it takes.
        return Path(os.fsdecode(unquote_to_bytes(parts.path))) if is_local else text
    return text if "://" in text or is_data_uri(text) or not text else Path(text)


def read_fields(
    pairs: Sequence[str], own_options: Mapping[str, str] = OWN_OPTIONS
) -> tuple[dict[str, object], list[Violation]]:
    """`field=value` texts as values of the fields' own types, and those that are none.

    `own_options` are fields that the command takes by an option of their own.
    Text of the wrong type is kept as it is: `parse_job_request` says what the field allows.
    """
    texts, wrong = split_pairs("--set", pairs)
    values: dict[str, object] = {}
    for name, text in texts.items():
        if name in own_options:
            wrong.append(Violation(f"--set {name}", text, f"give it as {own_options[name]}"))
            continue
        try:
            values[name] = parse_field(name, text)
        except InvalidInputError:
            values[name] = text
    return values, wrong


def read_options(pairs: Sequence[str]) -> tuple[dict[str, object], list[Violation]]:
    """As `read_fields`, for what fal is told besides the input."""
    texts, wrong = split_pairs("--fal-option", pairs)
    values: dict[str, object] = {}
    for name, text in texts.items():
        try:
            values[name] = parse_option(name, text)
        except InvalidInputError:
            values[name] = text
    return values, wrong


UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
MOST_DAYS = 36_500


def read_duration(text: str) -> timedelta:
    """A whole number and a unit; nothing is guessed. Raises typer.BadParameter."""
    found = re.fullmatch(r"([1-9][0-9]{0,9})([smhd])", text)
    if found is not None:
        try:
            duration = timedelta(**{UNITS[found[2]]: int(found[1])})
        except OverflowError:
            duration = timedelta.max
        if duration <= timedelta(days=MOST_DAYS):
            return duration
    raise typer.BadParameter(
        f"{text!r} is no duration: a whole number and a unit, as 90d, 12h, 30m or 45s, "
        f"of at most {MOST_DAYS} days"
    )


def read_time(text: str) -> datetime:
    """A time or an age, as `read_moment` takes them. Raises typer.BadParameter."""
    try:
        return read_moment(text, read_clock())
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is none: {error}") from None


def split_pairs(option: str, pairs: Sequence[str]) -> tuple[dict[str, str], list[Violation]]:
    """NAME=VALUE texts by name, and the texts that have another form."""
    wrong = [Violation(option, pair, "NAME=VALUE") for pair in pairs if "=" not in pair]
    parts = [pair.partition("=") for pair in pairs if "=" in pair]
    return {name: value for name, _, value in parts}, wrong
