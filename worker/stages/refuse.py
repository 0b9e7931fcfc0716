"""Beside the path. refuse: keep each request that becomes no job, and why.

What is kept of its fields is short and holds no secret: its sender knows the rest. A message that
comes again is the same request.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
        {"field": field and _describe(field), "code": code, "message": _describe(words)}
        for field, words in errors
    ]
    refused = replace(
        _build(door, message_id, fields, clock()),
        state=RequestState.REFUSED,
        error_code=code,
        errors=shown,
        claims=0,
    )
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
    if _excludes_requests(retention):
        return 0
    with db.reading() as connection:
        return sql.count_old(connection, retention.before, retention.tenant)


def prune_requests(retention: Retention, *, db: Database) -> int:
    """Delete requests as old as the jobs that are pruned, batch by batch; how many."""
    total, has_more = 0, not _excludes_requests(retention)
    while has_more:
        with db.transaction() as connection:
            gone = sql.delete_old(connection, retention.before, retention.tenant, BATCH)
        total += gone
        has_more = gone == BATCH
    return total


def _excludes_requests(retention: Retention) -> bool:
    """Requests have neither labels, nor an end in one of a job's states, nor files."""
    return bool(retention.labels or retention.files_only or retention.states != ENDED)


def _build(
    door: Door, message_id: str | None, fields: Mapping[str, object], now: datetime
) -> StoredRequest:
    """A row to be written: pending and claimed once."""
    is_known = bool(message_id) and make_storable(message_id) == message_id
    tenant = fields.get("tenant", DEFAULT_TENANT)
    return StoredRequest(
        id=uuid7(),
        state=RequestState.PENDING,
        door=door,
        message_id=message_id if is_known and len(message_id or "") <= LONGEST_ID else None,
        tenant=tenant if isinstance(tenant, str) and _TENANT.fullmatch(tenant) else None,
        received_at=now,
        fields=trim_fields(fields),
        error_code=None,
        errors=None,
        claims=1,
    )


def trim_fields(fields: Mapping[str, object]) -> dict[str, Any]:
    """What is kept of a request's fields: short values, without secrets and data URIs; pure."""
    masked: Any = mask_value(_trim(fields))
    kept: Any = make_storable(masked)
    for name, value in kept.items():
        if not isinstance(value, bool | int | float | None):
            kept[name] = _cut(value if isinstance(value, str) else show_value(value))
    return dict(kept)


def _trim(value: object, depth: int = 0) -> object:
    """The value without what is long: neither masks nor JSON have to walk through it."""
    if isinstance(value, str):
        return _trim_text(value)
    if isinstance(value, int) and abs(value) >= 2**63:
        return show_value(value)
    if isinstance(value, bool | int | float | None):
        return value
    if isinstance(value, Mapping) and depth <= DEEPEST:
        some = islice(value.items(), MOST_FIELDS)
        return {show_name(name): _trim(inner, depth + 1) for name, inner in some}
    if isinstance(value, list | tuple) and depth <= DEEPEST:
        return [_trim(inner, depth + 1) for inner in value[:MOST_FIELDS]]
    return f"<{type(value).__name__}>"


def _trim_text(text: str) -> str:
    if is_data_uri(text):
        return f"{text[:60].partition(',')[0]} ({len(text)} characters)"
    return _QUERY.sub(rf"\1?{MASK}", text[:SEEN_TEXT])


def _describe(text: str) -> str:
    """Words about a field, which may quote it."""
    return _cut(str(make_storable(mask_text(_trim_text(text)))))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
