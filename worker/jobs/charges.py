"""SQL on `charges`, `spend` and `prices`: what attempts cost, in integer nano-USD.

A charge is reserved at admission, by its estimate. What is learnt later is noted on it without the
account's lock, and makes it due (`due_at`); `settle_due` then writes the difference into the totals
of its scopes and day, under that lock. So completion never waits for admission (ADR 25).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Select, case, func, or_, select, update

from worker.ground.money import MOST_USD, NANO, price_units
from worker.jobs.admission import ACCOUNT, name_day, name_scope
from worker.jobs.models import AttemptRow, ChargeRow, JobRow, PriceRow, SpendRow
from worker.jobs.rows import fetch_all, fetch_one, insert_for, name_values, table_of

# Without a bill by then, the estimate counts as the charge.
SETTLE_AFTER = timedelta(days=7)

# A charge that is settled otherwise is compared with a bill for so long.
ASK_FOR = timedelta(days=1)
# Of a query by ids.
MOST_IDS = 500
PRUNED = "(pruned)"

_ATTEMPTS, _JOBS = table_of(AttemptRow), table_of(JobRow)
_CHARGES, _SPEND, _PRICES = table_of(ChargeRow), table_of(SpendRow), table_of(PriceRow)


class Source(StrEnum):
    """Where the amount of a settled charge comes from, the best first."""

    BILLING_EVENTS = "billing_events"
    UNITS = "units"
    ESTIMATE = "estimate"


class VoidReason(StrEnum):
    """Why an attempt costs nothing: the only reasons there are."""

    REFUSED = "refused"
    ABSENT = "never_accepted"
    NEVER_STARTED = "never_started"
    REMOVED = "removed_from_queue"
    SERVER_ERROR = "server_error"


@dataclass(frozen=True, slots=True)
class NewCharge:
    """An attempt's reservation; without a known price the amounts are None.

    The budgets are those that it was admitted under.
    """

    attempt_id: UUID
    job_id: UUID
    tenant: str
    admitted_at: datetime
    units: int
    assumed: str | None
    unit_price_nano_usd: int | None
    estimated_nano_usd: int | None
    account_budget_nano_usd: int | None = None
    tenant_budget_nano_usd: int | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """A row of `charges`."""

    attempt_id: UUID
    job_id: UUID
    tenant: str
    day: str
    admitted_at: datetime
    units: int
    assumed: str | None
    unit_price_nano_usd: int | None
    estimated_nano_usd: int | None
    counted_nano_usd: int
    account_budget_nano_usd: int | None
    tenant_budget_nano_usd: int | None
    billed_units: str | None
    billed_nano_usd: int | None
    source: str | None
    void_reason: str | None
    due_at: datetime | None
    settled_at: datetime | None
    voided_at: datetime | None

    @property
    def has_bill(self) -> bool:
        """Whether fal itself has said what it costs; an estimate that has come true is no bill."""
        return self.source is not None and self.source != Source.ESTIMATE

    @property
    def amount(self) -> int:
        """What it counts for now: the bill, nothing if it is void, else the estimate."""
        if self.has_bill and self.billed_nano_usd is not None:
            return self.billed_nano_usd
        return 0 if self.void_reason is not None else self.estimated_nano_usd or 0


class CostKey(StrEnum):
    """By what costs are summed."""

    TENANT = "tenant"
    DAY = "day"
    LABEL = "label"
    STATE = "state"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a group of attempts costs, in nano-USD.

    `reserved` are estimates without a bill yet; `extra` is the part paid besides a job's own run.
    """

    key: str
    attempts: int
    voided: int
    unpriced: int
    settled_nano_usd: int
    reserved_nano_usd: int
    extra_nano_usd: int

    @property
    def total_nano_usd(self) -> int:
        return self.settled_nano_usd + self.reserved_nano_usd


@dataclass(frozen=True, slots=True)
class Price:
    """A row of `prices`."""

    endpoint: str
    unit: str
    unit_price_nano_usd: int
    read_at: datetime


# ------------------------------------------------------------------ reserve


def reserve(connection: Connection, new: NewCharge) -> None:
    """Write the attempt's charge and add it to the totals; the account's row is locked."""
    day, counted = name_day(new.admitted_at), new.estimated_nano_usd or 0
    connection.execute(
        insert_for(connection, ChargeRow).values(
            **name_values(new),
            day=day,
            counted_nano_usd=counted,
            due_at=new.admitted_at + SETTLE_AFTER,
        )
    )
    add_spent(connection, new.tenant, day, counted)


def note_unreserved(connection: Connection, new: NewCharge) -> None:
    """The charge of an attempt whose own row was lost: it counts from the next settling on."""
    connection.execute(
        insert_for(connection, ChargeRow)
        .values(**name_values(new), day=name_day(new.admitted_at), due_at=new.admitted_at)
        .on_conflict_do_nothing()
    )


def add_spent(connection: Connection, tenant: str, day: str, nano_usd: int) -> None:
    """Change the day's totals of the account and the tenant."""
    rows = [
        {"scope": scope, "day": day, "nano_usd": nano_usd}
        for scope in (ACCOUNT, name_scope(tenant))
    ]
    statement = insert_for(connection, SpendRow).values(rows)
    total = {"nano_usd": _SPEND.c.nano_usd + statement.excluded.nano_usd}
    connection.execute(statement.on_conflict_do_update(index_elements=["scope", "day"], set_=total))


def alarm_budget(connection: Connection, scope: str, now: datetime) -> bool:
    """Note that the scope's budget of the day is spent; False if that was noted before."""
    statement = (
        insert_for(connection, SpendRow)
        .values(scope=scope, day=name_day(now), nano_usd=0, alarmed_at=now)
        .on_conflict_do_update(
            index_elements=["scope", "day"],
            set_={"alarmed_at": now},
            where=_SPEND.c.alarmed_at.is_(None),
        )
        .returning(_SPEND.c.scope)
    )
    return connection.execute(statement).one_or_none() is not None


# ------------------------------------------------------------------ what is learnt later


def void(connection: Connection, attempt_id: UUID, reason: VoidReason, now: datetime) -> None:
    """The attempt costs nothing, unless a bill says otherwise."""
    connection.execute(
        update(_CHARGES)
        .where(_CHARGES.c.attempt_id == attempt_id, _CHARGES.c.void_reason.is_(None))
        .values(void_reason=reason.value, due_at=now)
    )


def unvoid(connection: Connection, attempt_id: UUID, now: datetime) -> None:
    """It has run all the same."""
    connection.execute(
        update(_CHARGES)
        .where(_CHARGES.c.attempt_id == attempt_id, _CHARGES.c.void_reason.is_not(None))
        .values(void_reason=None, due_at=now)
    )


def note_units(
    connection: Connection, attempt_id: UUID, units: str, nano_usd: int, now: datetime
) -> None:
    """Fal's own number of units, at the price of the admission; a bill is worth more."""
    may_replace = or_(_CHARGES.c.source.is_(None), _CHARGES.c.source == Source.ESTIMATE.value)
    connection.execute(
        update(_CHARGES)
        .where(_CHARGES.c.attempt_id == attempt_id, may_replace)
        .values(billed_units=units, billed_nano_usd=nano_usd, source=Source.UNITS.value, due_at=now)
    )


def note_result_units(
    connection: Connection, attempt_id: UUID, units: Decimal, now: datetime
) -> bool:
    """As `note_units`, at the charge's own price; False if it has none, or a bill already."""
    charge = find_charge(connection, attempt_id)
    if charge is None or charge.has_bill or charge.unit_price_nano_usd is None:
        return False
    nano_usd = price_units(units, charge.unit_price_nano_usd)
    if nano_usd > MOST_USD * NANO:
        return False
    note_units(connection, attempt_id, str(units), nano_usd, now)
    return True


def note_bill(
    connection: Connection, attempt_id: UUID, units: str | None, nano_usd: int, now: datetime
) -> None:
    """The sum of the billing events of the attempt's request: the last word, also if void."""
    values: dict[str, Any] = {
        "billed_nano_usd": nano_usd,
        "source": Source.BILLING_EVENTS.value,
        "due_at": now,
    }
    if units is not None:
        values["billed_units"] = units
    connection.execute(update(_CHARGES).where(_CHARGES.c.attempt_id == attempt_id).values(values))


def settle_due(connection: Connection, now: datetime, limit: int) -> int:
    """Bring the totals up to what is known of the charges that are due; how many there were.

    Under the account's lock. A charge counts on the day of its admission. An amount above the
    reservation is recorded like any other.
    """
    due = select(_CHARGES).where(_CHARGES.c.due_at <= now).order_by(_CHARGES.c.due_at)
    charges = fetch_all(connection, Charge, due.limit(limit).with_for_update())
    for charge in charges:
        own = _CHARGES.c.attempt_id == charge.attempt_id
        connection.execute(update(_CHARGES).where(own).values(_settle(charge, now)))
        if charge.amount != charge.counted_nano_usd:
            difference = charge.amount - charge.counted_nano_usd
            add_spent(connection, charge.tenant, charge.day, difference)
    return len(charges)


def _settle(charge: Charge, now: datetime) -> dict[str, Any]:
    """The columns of a charge that is due, by what is known of it; pure."""
    values: dict[str, Any] = {
        "counted_nano_usd": charge.amount,
        "voided_at": None,
        "settled_at": None,
        "due_at": None,
    }
    if charge.has_bill:
        return values | {"settled_at": charge.settled_at or now}
    # What an estimate stood for is open again where the charge has become void, or no longer is.
    values |= {"source": None, "billed_nano_usd": None}
    if charge.void_reason is not None:
        return values | {"voided_at": charge.voided_at or now}
    if now - charge.admitted_at >= SETTLE_AFTER:
        estimate = {"source": Source.ESTIMATE.value, "billed_nano_usd": charge.amount}
        return values | estimate | {"settled_at": charge.settled_at or now}
    return values | {"due_at": charge.admitted_at + SETTLE_AFTER}  # a bill may still come


# ------------------------------------------------------------------ reading


def find_charge(connection: Connection, attempt_id: UUID) -> Charge | None:
    own = _CHARGES.c.attempt_id == attempt_id
    return fetch_one(connection, Charge, select(_CHARGES).where(own))


def list_charges(connection: Connection, job_id: UUID) -> list[Charge]:
    of_job = select(_CHARGES).where(_CHARGES.c.job_id == job_id)
    return fetch_all(connection, Charge, of_job.order_by(_CHARGES.c.admitted_at))


def read_spent(connection: Connection, day: str) -> Mapping[str, int]:
    """What each scope has spent on the day, reserved amounts included."""
    statement = select(_SPEND.c.scope, _SPEND.c.nano_usd).where(_SPEND.c.day == day)
    return {str(scope): int(spent) for scope, spent in connection.execute(statement)}


def sum_days(connection: Connection, tenant: str | None = None) -> Sequence[tuple[str, int]]:
    """By day, what the charges themselves add up to: what `spend` has to agree with."""
    statement = select(_CHARGES.c.day, func.sum(_CHARGES.c.counted_nano_usd))
    if tenant is not None:
        statement = statement.where(_CHARGES.c.tenant == tenant)
    grouped = statement.group_by(_CHARGES.c.day).order_by(_CHARGES.c.day)
    return [(str(day), int(total)) for day, total in connection.execute(grouped)]


def find_price(connection: Connection, endpoint: str) -> Price | None:
    return fetch_one(connection, Price, select(_PRICES).where(_PRICES.c.endpoint == endpoint))


def keep_price(connection: Connection, price: Price) -> None:
    values = {
        "unit": price.unit,
        "unit_price_nano_usd": price.unit_price_nano_usd,
        "read_at": price.read_at,
    }
    connection.execute(
        insert_for(connection, PriceRow)
        .values(endpoint=price.endpoint, **values)
        .on_conflict_do_update(index_elements=["endpoint"], set_=values)
    )


def list_prices(connection: Connection) -> Mapping[str, Price]:
    """By endpoint."""
    return {price.endpoint: price for price in fetch_all(connection, Price, select(_PRICES))}


def list_unbilled(
    connection: Connection, since: datetime, until: datetime, limit: int
) -> Sequence[tuple[str, UUID]]:
    """Requests that fal has finished between these times, and that no billing event was seen of.

    Those of which least is known come first, of these the newest: an event may never come.
    """
    statement = (
        select(_ATTEMPTS.c.fal_request_id, _CHARGES.c.attempt_id)
        .join(_ATTEMPTS, _ATTEMPTS.c.id == _CHARGES.c.attempt_id)
        .where(
            _CHARGES.c.admitted_at > since,
            _ATTEMPTS.c.completed_at <= until,
            _ATTEMPTS.c.fal_request_id.is_not(None),
            or_(_CHARGES.c.due_at.is_not(None), _ATTEMPTS.c.completed_at > until - ASK_FOR),
            or_(_CHARGES.c.source.is_(None), _CHARGES.c.source != Source.BILLING_EVENTS.value),
        )
        .order_by(_CHARGES.c.admitted_at.desc())
        .limit(limit)
    )
    return [
        (str(request_id), attempt_id) for request_id, attempt_id in connection.execute(statement)
    ]


def list_unconfirmed(
    connection: Connection, since: datetime, until: datetime
) -> Mapping[str, Charge]:
    """Charges settled without a bill, by request: admitted since, their runs over by `until`."""
    statement = _select_by_request().where(
        _CHARGES.c.admitted_at >= since,
        _ATTEMPTS.c.completed_at <= until,
        _ATTEMPTS.c.fal_request_id.is_not(None),
        _CHARGES.c.settled_at.is_not(None),
        _CHARGES.c.source != Source.BILLING_EVENTS.value,
    )
    return _fetch_by_request(connection, statement)


def find_by_requests(
    connection: Connection, fal_request_ids: Sequence[str]
) -> Mapping[str, Charge]:
    """The charges of these requests of fal's, by their ids."""
    found: dict[str, Charge] = {}
    for start in range(0, len(fal_request_ids), MOST_IDS):
        ids = fal_request_ids[start : start + MOST_IDS]
        statement = _select_by_request().where(_ATTEMPTS.c.fal_request_id.in_(ids))
        found |= _fetch_by_request(connection, statement)
    return found


def _select_by_request() -> Select[Any]:
    return select(_ATTEMPTS.c.fal_request_id, *_CHARGES.c).join(
        _ATTEMPTS, _ATTEMPTS.c.id == _CHARGES.c.attempt_id
    )


def _fetch_by_request(connection: Connection, statement: Select[Any]) -> dict[str, Charge]:
    found: dict[str, Charge] = {}
    for row in connection.execute(statement).mappings():
        values = dict(row)
        fal_request_id = str(values.pop("fal_request_id"))
        found[fal_request_id] = Charge(**values)
    return found


def sum_costs(connection: Connection, by: CostKey, since: datetime | None) -> Sequence[Cost]:
    """What attempts admitted since then cost, by group; a job without a row is `(pruned)`."""
    columns: dict[CostKey, ColumnElement[Any]] = {
        CostKey.TENANT: _CHARGES.c.tenant,
        CostKey.DAY: _CHARGES.c.day,
        CostKey.LABEL: _JOBS.c.labels,
        CostKey.STATE: _JOBS.c.state,
    }
    is_settled = _CHARGES.c.settled_at.is_not(None)
    counted = _CHARGES.c.counted_nano_usd
    is_guess = or_(_CHARGES.c.source.is_(None), _CHARGES.c.source == Source.ESTIMATE.value)
    is_void = _CHARGES.c.voided_at.is_not(None)
    has_no_price = _CHARGES.c.estimated_nano_usd.is_(None) & is_guess & ~is_void
    sums = (
        func.count(),
        func.sum(case((is_void, 1), else_=0)),
        func.sum(case((has_no_price, 1), else_=0)),
        func.sum(case((is_settled, counted), else_=0)),
        func.sum(case((is_settled, 0), else_=counted)),
        func.sum(case((_ATTEMPTS.c.extra_charge_at.is_not(None), counted), else_=0)),
    )
    joined = _CHARGES.outerjoin(_JOBS, _JOBS.c.id == _CHARGES.c.job_id).outerjoin(
        _ATTEMPTS, _ATTEMPTS.c.id == _CHARGES.c.attempt_id
    )
    statement = select(columns[by], *sums).select_from(joined).group_by(columns[by])
    if since is not None:
        statement = statement.where(_CHARGES.c.admitted_at >= since)
    totals: dict[str, list[int]] = {}
    for key, *numbers in connection.execute(statement):
        # A job with several labels counts for each of them.
        labels = [f"{name}={value}" for name, value in key.items()] if isinstance(key, dict) else []
        plain = PRUNED if key is None else str(getattr(key, "value", key))
        for name in (labels or ["(none)"]) if isinstance(key, dict) else [plain]:
            before = totals.get(name, [0] * len(sums))
            totals[name] = [int(old) + int(new) for old, new in zip(before, numbers, strict=True)]
    return [Cost(name, *totals[name]) for name in sorted(totals)]
