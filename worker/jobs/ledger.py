"""What must hold of all attempts together: caps, the ledger's totals, budgets.

As in `checks.py`, each statement only reads. What rows no longer tell is decided in favour of
admission: a slot counts as free from the earliest moment at which it may have been.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, Uuid, case, func, select, text, tuple_

from worker.ground.db import Database
from worker.ground.money import format_usd
from worker.jobs.admission import ACCOUNT, TENANT, name_day
from worker.jobs.base import UtcDateTime
from worker.jobs.checks import Check, Finding
from worker.jobs.models import AttemptRow, ChargeRow
from worker.jobs.rows import table_of

SLICE = 2000
# Ends are written by the clocks of receivers and workers, admissions by the database's.
CLOCK_MARGIN = timedelta(seconds=5)
# Bills may come for so long; what is older does not change any more.
OLDEST = timedelta(days=92)

_ATTEMPTS, _CHARGES = table_of(AttemptRow), table_of(ChargeRow)
_SPEND = """
    SELECT scope, day, sum(spent) AS spent, sum(charged) AS charged
    FROM (SELECT scope, day, nano_usd AS spent, 0 AS charged FROM spend WHERE day >= :since
        UNION ALL SELECT 'account', day, 0, counted_nano_usd FROM charges WHERE day >= :since
        UNION ALL SELECT 'tenant:' || tenant, day, 0, counted_nano_usd
        FROM charges WHERE day >= :since) AS amounts
    GROUP BY scope, day HAVING sum(spent) <> sum(charged) ORDER BY day, scope
"""
# Of what was admitted until then, at the most its estimate: a dearer bill is the estimate's error.
_BUDGETS = """
    SELECT job_id, attempt_id, tenant, account_total, tenant_total, account_budget_nano_usd,
        tenant_budget_nano_usd
    FROM (SELECT kept.*, sum(amount) OVER (PARTITION BY day ORDER BY admitted_at, attempt_id)
                AS account_total,
            sum(amount) OVER (PARTITION BY tenant, day ORDER BY admitted_at, attempt_id)
                AS tenant_total
        FROM (SELECT charges.*, CASE WHEN void_reason IS NOT NULL THEN 0
                WHEN counted_nano_usd < coalesce(estimated_nano_usd, 0) THEN counted_nano_usd
                ELSE coalesce(estimated_nano_usd, 0) END AS amount
            FROM charges WHERE day >= :since) AS kept) AS summed
    WHERE account_total > account_budget_nano_usd OR tenant_total > tenant_budget_nano_usd
"""


@dataclass(frozen=True, slots=True)
class Admission:
    """An attempt as admission has counted it: from when, and until when at the earliest."""

    attempt_id: UUID
    job_id: UUID
    started_at: datetime
    slot_end: datetime
    cap: int


def check_caps(db: Database) -> Iterator[Finding]:
    """Attempts with which more were in flight than the cap of their time allowed."""
    yield from find_over_cap(walk_admissions(db))


def find_over_cap(admissions: Iterable[Admission]) -> Iterator[Finding]:
    """In the order of their admission; pure."""
    flying: list[tuple[datetime, UUID]] = []
    for one in admissions:
        while flying and flying[0][0] <= one.started_at:
            heapq.heappop(flying)
        heapq.heappush(flying, (max(one.slot_end, one.started_at), one.attempt_id))
        if len(flying) > one.cap:
            detail = (
                f"with it {len(flying)} attempts were in flight, and {one.cap} were allowed "
                f"at {one.started_at:%Y-%m-%d %H:%M:%S} UTC"
            )
            yield Finding(Check.OVER_CAP, one.job_id, detail, one.attempt_id)


def walk_admissions(db: Database) -> Iterator[Admission]:
    """In the order of time, in short statements."""
    place: tuple[datetime, UUID] | None = None
    while True:
        with db.reading() as connection:
            part = _list_admissions(connection, place)
        yield from part
        if len(part) < SLICE:
            return
        place = part[-1].started_at, part[-1].attempt_id


def _list_admissions(
    connection: Connection, after: tuple[datetime, UUID] | None
) -> Sequence[Admission]:
    """Attempts that were admitted under a cap; adopted and rebuilt ones were not."""
    is_refused = _ATTEMPTS.c.outcome.in_(["rejected", "postponed", "dead"])
    end = case(
        (_ATTEMPTS.c.completed_at.is_not(None), _ATTEMPTS.c.completed_at),
        (is_refused, _ATTEMPTS.c.ended_at),
        else_=_ATTEMPTS.c.slot_until,
    )
    place = tuple_(_CHARGES.c.admitted_at, _CHARGES.c.attempt_id)
    statement = (
        select(
            _ATTEMPTS.c.id.label("attempt_id"),
            _ATTEMPTS.c.job_id,
            _CHARGES.c.admitted_at.label("started_at"),
            func.coalesce(
                end, _ATTEMPTS.c.ended_at, _ATTEMPTS.c.started_at, type_=UtcDateTime()
            ).label("slot_end"),
            _ATTEMPTS.c.admitted_cap.label("cap"),
        )
        .join(_CHARGES, _CHARGES.c.attempt_id == _ATTEMPTS.c.id)
        .where(_ATTEMPTS.c.admitted_cap.is_not(None))
        .order_by(_CHARGES.c.admitted_at, _CHARGES.c.attempt_id)
        .limit(SLICE)
    )
    if after is not None:
        statement = statement.where(place > after)
    return [
        Admission(**{**row, "slot_end": row["slot_end"] - CLOCK_MARGIN})
        for row in connection.execute(statement).mappings()
    ]


def check_ledger(connection: Connection, now: datetime) -> Iterator[Finding]:
    """Totals that are not the sum of their charges, and admissions that their budget forbade."""
    since = {"since": name_day(now - OLDEST)}
    for row in connection.execute(text(_SPEND), since).mappings():
        detail = (
            f"{row['scope']} on {row['day']}: spend has {format_usd(int(row['spent']))} USD, its "
            f"charges add up to {format_usd(int(row['charged']))}"
        )
        yield Finding(Check.SPEND_DIFFERS, None, detail)
    budgets = text(_BUDGETS).columns(job_id=Uuid(), attempt_id=Uuid())
    for row in connection.execute(budgets, since).mappings():
        scopes = (
            (ACCOUNT, row["account_total"], row["account_budget_nano_usd"]),
            (f"{TENANT}{row['tenant']}", row["tenant_total"], row["tenant_budget_nano_usd"]),
        )
        for scope, total, budget in scopes:
            if budget is not None and total > budget:
                detail = (
                    f"with it {format_usd(int(total))} USD were spent of {scope}, whose budget of "
                    f"the day was {format_usd(int(budget))}"
                )
                ids = row["job_id"], detail, row["attempt_id"]
                yield Finding(Check.OVER_BUDGET, *ids)
