"""`extend-video schema`: compare our model with what fal publishes, and print the difference."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import JsonValue

from worker.cli import options, output
from worker.ground.errors import SchemaUnreadableError
from worker.ground.settings import load_settings

if TYPE_CHECKING:
    from worker.fal.schema import Drift

SAME, DRIFTED, NOTHING_TO_COMPARE = 0, 1, 2


def schema(
    file: Annotated[
        Path | None, typer.Option(help="An OpenAPI document, instead of the published one.")
    ] = None,
    strict_defaults: Annotated[
        bool, typer.Option("--strict-defaults", help="Let other defaults count as drift.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Compare our model with fal's OpenAPI.

    Exit codes: 0 same, 1 drift, 2 nothing to compare.

    Our defaults are the model page's by decision, and always sent: other ones are listed only.

    Examples:
        extend-video schema
        extend-video schema --file openapi.json --strict-defaults

    """
    from worker.fal.platform import fetch_openapi
    from worker.fal.schema import compare_document

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
        output.print_json({"endpoint": endpoint, "drift": drift, "defaults": defaults})
    else:
        same = f"fields, types, ranges and values of {endpoint} are as our model has them"
        if not drift:
            output.out.print(same, markup=False)
        for one in drift:
            output.out.print(describe_drift(one), markup=False)
        if defaults:
            output.print_section(
                "defaults that differ (ours are the model page's, and every field is sent: ADR 6):",
                [output.escape(describe_drift(one)[2:]) for one in defaults],
            )
    raise typer.Exit(DRIFTED if drift or (strict_defaults and defaults) else SAME)


def describe_drift(one: "Drift") -> str:
    """`+` a new field, `-` one that is gone, `~` one that has changed."""
    return {
        "added": f"+ {one.field}: {one.theirs}",
        "removed": f"- {one.field}: was {one.ours}",
        "changed": f"~ {one.field}: {one.aspect}: ours {one.ours}, fal's {one.theirs}",
    }[one.change.value]


def read_document(file: Path) -> JsonValue:
    """Raises SchemaUnreadableError."""
    try:
        document: JsonValue = json.loads(file.read_bytes())
    except OSError as error:
        raise SchemaUnreadableError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise SchemaUnreadableError(f"{file} is not JSON") from None
    return document
