"""`extend-video schema`: compare our model with what fal publishes, and print the difference."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from worker.cli import output
from worker.fal.catalog import CatalogClient
from worker.fal.schema_drift import Change, Drift, compare_document
from worker.ground.errors import SchemaUnreadableError
from worker.ground.settings import Settings, load_settings

SAME, DRIFTED, NOTHING_TO_COMPARE = 0, 1, 2
MARKS = {Change.ADDED: "+", Change.REMOVED: "-", Change.CHANGED: "~"}


def schema(
    file: Annotated[
        Path | None, typer.Option(help="An OpenAPI document, instead of the published one.")
    ] = None,
    strict_defaults: Annotated[
        bool, typer.Option("--strict-defaults", help="Let other defaults count as drift.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Compare our model with fal's OpenAPI.

    Exit codes: 0 same, 1 drift, 2 nothing to compare.

    Our defaults are the model page's by decision, and always sent: other ones are listed only.
    """
    try:
        code = check_schema(load_settings(), file, is_strict=strict_defaults, as_json=as_json)
    except SchemaUnreadableError as error:
        output.err.print(f"{error.code}: {error}", markup=False)
        code = NOTHING_TO_COMPARE
    raise typer.Exit(code)


def check_schema(settings: Settings, file: Path | None, *, is_strict: bool, as_json: bool) -> int:
    """Print what differs; the exit code. Raises SchemaUnreadableError."""
    endpoint = settings.fal_endpoint
    document = fetch_document(settings) if file is None else read_document(file)
    found = compare_document(document, endpoint)
    defaults = [one for one in found if one.is_default]
    drift = [one for one in found if not one.is_default]
    if as_json:
        rows = {"drift": drift, "defaults": defaults}
        output.print_json(
            {"endpoint": endpoint, **{name: [*map(asdict, one)] for name, one in rows.items()}}
        )
    else:
        for line in show_drift(endpoint, drift, defaults):
            output.out.print(line)
    return DRIFTED if drift or (is_strict and defaults) else SAME


def fetch_document(settings: Settings) -> JsonValue:
    client = CatalogClient(settings.fal_platform_url, settings.fal_credentials)
    try:
        return client.read_model(settings.fal_endpoint)
    finally:
        client.close()


def read_document(file: Path) -> JsonValue:
    """Raises SchemaUnreadableError."""
    try:
        document: JsonValue = json.loads(file.read_bytes())
    except OSError as error:
        raise SchemaUnreadableError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise SchemaUnreadableError(f"{file} is not JSON") from None
    return document


def show_drift(endpoint: str, drift: list[Drift], defaults: list[Drift]) -> Iterator[str]:
    for one in drift:
        yield f"{MARKS[one.change]} {output.escape(describe_drift(one))}"
    if not drift:
        name = output.escape(endpoint)
        yield f"fields, types, ranges and values of {name} are as our model has them"
    if defaults:
        yield "defaults that differ (ours are the model page's, and every field is sent: ADR 6):"
    for one in defaults:
        yield f"  {output.escape(describe_drift(one))}"


def describe_drift(one: Drift) -> str:
    match one.change:
        case Change.ADDED:
            return f"{one.field}: {one.theirs}"
        case Change.REMOVED:
            return f"{one.field}: was {one.ours}"
        case Change.CHANGED:
            return f"{one.field}: {one.aspect}: ours {one.ours}, fal's {one.theirs}"
