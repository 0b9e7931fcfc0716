"""`extend-video refused`: requests that became no job, and why."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Column, Table

from worker.cli import display
from worker.cli.arguments import Json, Tenant
from worker.jobs.job_requests import StoredRequest, list_refused
from worker.runtime import build_runtime


def refused(
    tenant: Tenant = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 50,
    as_json: Json = False,
) -> None:
    """List requests that were refused, the newest first.

    With every wrong field; what they held is cut, without secrets and data URIs.
    """
    with build_runtime().db.reading() as connection:
        found = list_refused(connection, limit, tenant)
    if as_json:
        display.print_json([asdict(request) for request in found])
    else:
        display.print_wide(build_refused_table(found))


def build_refused_table(requests: Sequence[StoredRequest]) -> Table:
    names = ("door", "tenant", "code", "message id", "wrong")
    table = Table(Column("received (UTC)", min_width=19), *names, box=None, pad_edge=False)
    for request in requests:
        texts = (
            request.door,
            request.tenant or "",
            request.error_code or "",
            request.message_id or "",
            describe_errors(request),
        )
        table.add_row(display.show_time(request.received_at), *map(display.escape, texts))
    return table


def describe_errors(request: StoredRequest) -> str:
    return "; ".join(
        error["message"] if error["field"] is None else f"{error['field']}: {error['message']}"
        for error in request.errors or []
    )
