"""`extend-video schema`: compare our model with what fal publishes, and print the difference."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from worker.cli import output
from worker.ground.errors import SchemaUnreadableError
from worker.ground.settings import load_settings

SAME, DRIFTED, NOTHING_TO_COMPARE = 0, 1, 2


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

    Examples:
        extend-video schema
        extend-video schema --file openapi.json --strict-defaults

    """
    # Other commands do without an HTTP client and start sooner.
    from worker.fal.platform import fetch_openapi
    from worker.fal.schema import Change, Drift, compare_document

    def describe(one: Drift) -> str:
        words = {
            Change.ADDED: f"{one.theirs}",
            Change.REMOVED: f"was {one.ours}",
            Change.CHANGED: f"{one.aspect}: ours {one.ours}, fal's {one.theirs}",
        }
        return output.escape(f"{one.field}: {words[one.change]}")

    settings = load_settings()
    endpoint = settings.fal_endpoint
    try:
        document = (
            fetch_openapi(settings.fal_platform_url, settings.fal_credentials, endpoint)
            if file is None
            else read_document(file)
        )
        found = compare_document(document, endpoint)
    except SchemaUnreadableError as error:
        output.err.print(f"{error.code}: {error}", markup=False)
        raise typer.Exit(NOTHING_TO_COMPARE) from None
    defaults = [one for one in found if one.is_default]
    drift = [one for one in found if not one.is_default]
    if as_json:
        rows = {"drift": [*map(asdict, drift)], "defaults": [*map(asdict, defaults)]}
        output.print_json({"endpoint": endpoint, **rows})
    else:
        marks = {Change.ADDED: "+", Change.REMOVED: "-", Change.CHANGED: "~"}
        for one in drift:
            output.out.print(f"{marks[one.change]} {describe(one)}")
        if not drift:
            name = output.escape(endpoint)
            output.out.print(
                f"fields, types, ranges and values of {name} are as our model has them"
            )
        if defaults:
            output.out.print(
                "defaults that differ (ours are the model page's, and every field is sent: ADR 6):"
            )
        for one in defaults:
            output.out.print(f"  {describe(one)}")
    raise typer.Exit(DRIFTED if drift or (strict_defaults and defaults) else SAME)


def read_document(file: Path) -> JsonValue:
    """Raises SchemaUnreadableError."""
    try:
        document: JsonValue = json.loads(file.read_bytes())
    except OSError as error:
        raise SchemaUnreadableError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise SchemaUnreadableError(f"{file} is not JSON") from None
    return document
