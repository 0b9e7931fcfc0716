"""Beside the path. refuse: keep each request that becomes no job, and why.

What is kept of its fields is short and holds no secret: its sender knows the rest. A message that
comes again is the same request.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

from uuid_utils.compat import uuid7

from worker.fal.completion import make_storable
from worker.ground.clock import Clock, read_clock
from worker.ground.data_uri import is_data_uri
from worker.ground.db import Database
from worker.ground.errors import ExtendVideoError, ViolationsError, WorkersLostError
from worker.ground.log import MASK, mask_text, mask_value
from worker.ground.validation import show_name, show_value
from worker.jobs import job_requests as sql
from worker.jobs.archives import Retention
from worker.jobs.job_requests import Door, RequestState, StoredRequest
from worker.jobs.states import ENDED
from worker.stages.enqueue import DEFAULT_TENANT

MOST_CLAIMS = 3
"""So often a message may be the end of its worker."""
MOST_FIELDS = 50
MOST_ERRORS = 50
LONGEST_TEXT = 200
LONGEST_ID = 200
# Masks see more than is kept: a secret must not be cut in two before it is recognised.
SEEN_TEXT = 2000
DEEPEST = 3
BATCH = 5000
_TENANT = re.compile(r"[^\s\x00\ud800-\udfff]{1,128}")
# A signed URL is as good as a key.
_QUERY = re.compile(r"(?i)(\bhttps?://[^\s?#\"'\\]*)[?#][^\s\"'\\]*")


def keep_refusal(  # noqa: PLR0913 - a row's parts
    door: Door,
    message_id: str | None,
    fields: Mapping[str, object],
    *,
    code: str,
    errors: Sequence[tuple[str | None, str]],
    db: Database,
    clock: Clock = read_clock,
) -> bool:
    """Write the refused request; False if this message was refused before.

    `errors` are fields with what is wrong about them; None is the request as a whole.
    """
    shown = [
        {
            "field": None if field is None else _describe(field),
            "code": code,
            "message": _describe(words),
        }
        for field, words in errors
    ]
    refused = _build(door, message_id, fields, clock(), (code, shown))
    with db.statement() as connection:
        return sql.keep_refused(connection, refused)


def list_errors(error: ExtendVideoError) -> list[tuple[str | None, str]]:
    """What is wrong with each field. What they hold is not said here: `fields` has it, cut."""
    if isinstance(error, ViolationsError):
        return [(one.field, one.allowed) for one in error.violations[:MOST_ERRORS]]
    return [(None, str(error))]


def claim_request(
    door: Door,
    message_id: str,
    fields: Mapping[str, object],
    *,
    db: Database,
    clock: Clock = read_clock,
) -> bool:
    """Count the beginning of an inspection that may end the worker; False: it was refused before.

    Raises WorkersLostError if that has ended MOST_CLAIMS workers.
    """
    pending = _build(door, message_id, fields, clock())
    with db.statement() as connection:
        claims = sql.count_claim(connection, pending)
    if claims is not None and claims > MOST_CLAIMS:
        raise WorkersLostError(
            f"{MOST_CLAIMS} workers have ended while they inspected it: no other one tries"
        )
    return claims is not None


def release_request(door: Door, message_id: str, *, db: Database) -> None:
    """Its worker is well: its files are decoded, or it is given back in an orderly way.

    An upload may outlast the lease of a message, so that others take it meanwhile: their refusal
    (WorkersLostError) is taken back.
    """
    with db.statement() as connection:
        sql.forget_claims(connection, door, message_id, WorkersLostError.code)


def count_old_requests(retention: Retention, *, db: Database) -> int:
    """How many `prune_requests` would delete."""
    if not _covers_requests(retention):
        return 0
    with db.reading() as connection:
        return sql.count_old(connection, retention.before, retention.tenant)


def prune_requests(retention: Retention, *, db: Database) -> int:
    """Delete requests as old as the jobs that are pruned, batch by batch; how many."""
    total = 0
    while _covers_requests(retention):
        with db.transaction() as connection:
            gone = sql.delete_old(connection, retention.before, retention.tenant, BATCH)
        total += gone
        if gone < BATCH:
            break
    return total


def _covers_requests(retention: Retention) -> bool:
    """Requests have neither labels, nor an end in one of a job's states, nor files."""
    return not (retention.labels or retention.files_only) and retention.states == ENDED


def _build(
    door: Door,
    message_id: str | None,
    fields: Mapping[str, object],
    now: datetime,
    refusal: tuple[str, list[dict[str, Any]]] | None = None,
) -> StoredRequest:
    """A row to be written: refused with code and errors, or pending and claimed once."""
    is_known = message_id is not None and 0 < len(message_id) <= LONGEST_ID
    code, errors = refusal or (None, None)
    return StoredRequest(
        id=uuid7(),
        state=RequestState.PENDING if refusal is None else RequestState.REFUSED,
        door=door,
        message_id=message_id if is_known and make_storable(message_id) == message_id else None,
        tenant=_read_tenant(fields),
        received_at=now,
        fields=trim_fields(fields),
        error_code=code,
        errors=errors,
        claims=int(refusal is None),
    )


def _read_tenant(fields: Mapping[str, object]) -> str | None:
    tenant = fields.get("tenant", DEFAULT_TENANT)
    return tenant if isinstance(tenant, str) and _TENANT.fullmatch(tenant) else None


def trim_fields(fields: Mapping[str, object]) -> dict[str, Any]:
    """What is kept of a request's fields: short values, without secrets and data URIs; pure."""
    some = islice(fields.items(), MOST_FIELDS)
    masked: Any = mask_value({show_name(name): _trim(value) for name, value in some})
    storable: Any = make_storable(masked)
    return {
        name: value if isinstance(value, bool | int | float | None) else _cut(value)
        for name, value in storable.items()
    }


def _cut(value: object) -> str:
    """As text; lists and objects as JSON."""
    text = value if isinstance(value, str) else show_value(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def _trim(value: object, depth: int = 0) -> object:
    """The value without what is long: neither masks nor JSON have to walk through it."""
    match value:
        case str():
            return _trim_text(value)
        case bool() | float() | None:
            return value
        case int():
            return value if abs(value) < 2**63 else show_value(value)
        case Mapping() if depth < DEEPEST:
            some = islice(value.items(), MOST_FIELDS)
            return {show_name(name): _trim(inner, depth + 1) for name, inner in some}
        case list() | tuple() if depth < DEEPEST:
            return [_trim(inner, depth + 1) for inner in value[:MOST_FIELDS]]
        case _:
            return f"<{type(value).__name__}>"


def _trim_text(text: str) -> str:
    if is_data_uri(text):
        return f"{text[:LONGEST_TEXT].partition(',')[0][:60]} ({len(text)} characters)"
    return _QUERY.sub(rf"\1?{MASK}", text[:SEEN_TEXT])


def _describe(text: str) -> str:
    """Words about a field, which may quote it."""
    return _cut(make_storable(mask_text(_trim_text(text))))
