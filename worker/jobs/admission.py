"""SQL of admission: limits, pauses, what is in flight, and whose job is next.

The account's row of `limits` is the lock: an admission updates it first, and reads in later
statements, under READ COMMITTED, what earlier ones have committed. Order of locks: limits, jobs,
attempts, charges. Completion, cancel and redrive never lock limits (ADR 24).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    func,
    literal,
    or_,
    select,
    type_coerce,
    update,
)

from worker.jobs.base import UtcDateTime
from worker.jobs.models import (
    AttemptRow,
    ChargeRow,
    JobRow,
    LimitRow,
    PauseRow,
    SpendRow,
)
from worker.jobs.rows import (
    fetch_all,
    fetch_one,
    insert_for,
    is_postgres,
    meets_index,
    table_of,
)
from worker.jobs.states import PauseCause
from worker.jobs.values import Job

ACCOUNT = "account"
TENANT = "tenant:"
MINUTE = timedelta(minutes=1)
# A host that dies within an admission must not stop all buying.
LOCK_SECONDS = 5
# The room of a pause that is none yet.
COUNTING = 1_000_000
IS_ADMISSIBLE = meets_index("state = 'queued'", "blocked_by IS NULL")
IS_BLOCKED = meets_index("state = 'queued'", "blocked_by IS NOT NULL")

_JOBS, _ATTEMPTS, _CHARGES = table_of(JobRow), table_of(AttemptRow), table_of(ChargeRow)
# That of the index: of all that begin with the tenant, only this one is in it.
_ORDER = (_JOBS.c.tenant, _JOBS.c.priority.desc(), _JOBS.c.enqueued_at, _JOBS.c.id)
_LIMITS, _PAUSES, _SPEND = table_of(LimitRow), table_of(PauseRow), table_of(SpendRow)


@dataclass(frozen=True, slots=True)
class Caps:
    """What the settings allow where `limits` has no value; None is no bound."""

    max_in_flight: int
    per_minute: int | None = None
    daily_budget_nano_usd: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """A row of `limits`."""

    scope: str
    max_in_flight: int | None
    per_minute: int | None
    daily_budget_nano_usd: int | None
    weight: int
    served: int
    admissions: int
    default_max_in_flight: int | None
    default_per_minute: int | None
    default_daily_budget_nano_usd: int | None
    default_unit_price_nano_usd: int | None

    @property
    def defaults(self) -> Caps | None:
        """What the settings of the workers allow; None before the first of them has noted it."""
        if self.default_max_in_flight is None:
            return None
        budget = self.default_daily_budget_nano_usd
        return Caps(self.default_max_in_flight, self.default_per_minute, budget)


@dataclass(frozen=True, slots=True)
class Pause:
    """A row of `pauses`."""

    scope: str
    cause: PauseCause
    reason: str
    since: datetime
    host: str | None = None
    until: datetime | None = None
    strikes: int = 0
    room: int | None = None

    @property
    def is_counting(self) -> bool:
        """Whether it holds nothing up yet: failures are counted that lead to a pause."""
        return self.room is not None and self.room >= COUNTING

    def is_in_force(self, now: datetime, longest: timedelta) -> bool:
        """Whether nothing at all may be sent, not even a probe.

        Without a `room` for probes it ends by hand, or with the archive's fault. A time further
        ahead than `longest` was written by a clock that was wrong.
        """
        return self.room is None or (self.until is not None and now < self.until <= now + longest)


@dataclass(frozen=True, slots=True)
class Usage:
    """The account now: what is in flight, being posted, begun within a minute, spent today."""

    in_flight: int
    posting: int
    started: int
    spent_nano_usd: int


@dataclass(frozen=True, slots=True)
class WaitingTenant:
    """A tenant with a job that may be admitted as far as that job is concerned."""

    tenant: str
    weight: int
    served: int
    in_flight: int
    started: int
    spent_nano_usd: int
    max_in_flight: int | None
    per_minute: int | None
    daily_budget_nano_usd: int | None
    is_paused: bool


class QueuedJob(Protocol):
    """As much of a queued job as its place depends on."""

    @property
    def id(self) -> UUID: ...

    @property
    def tenant(self) -> str: ...

    @property
    def blocked_by(self) -> str | None: ...


def name_scope(tenant: str) -> str:
    return f"{TENANT}{tenant}"


def name_day(at: datetime) -> str:
    """The UTC day, as `charges` and `spend` have it."""
    return at.astimezone(UTC).date().isoformat()


def begin_admission(connection: Connection) -> None:
    """Bound the transaction: a dead host stops nobody, and each statement sees its own moment."""
    if is_postgres(connection):
        connection.exec_driver_sql(
            "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; "
            f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'; "
            f"SET LOCAL idle_in_transaction_session_timeout = '{LOCK_SECONDS}s'"
        )


def read_time(connection: Connection) -> datetime:
    """The database's time, so that no host's clock decides; on SQLite that is this host's."""
    if is_postgres(connection):
        found: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return found.astimezone(UTC)
    return datetime.now(UTC)


# ------------------------------------------------------------------ limits


def lock_account(
    connection: Connection, defaults: Caps, unit_price_nano_usd: int | None = None
) -> Limits:
    """The account's row, locked until the transaction ends; it learns what the settings say."""
    values = {
        "default_max_in_flight": defaults.max_in_flight,
        "default_per_minute": defaults.per_minute,
        "default_daily_budget_nano_usd": defaults.daily_budget_nano_usd,
        "default_unit_price_nano_usd": unit_price_nano_usd,
    }
    statement = (
        insert_for(connection, LimitRow)
        .values(scope=ACCOUNT, **values)
        .on_conflict_do_update(
            index_elements=["scope"], set_={**values, "admissions": _LIMITS.c.admissions + 1}
        )
        .returning(_LIMITS)
    )
    return Limits(**connection.execute(statement).mappings().one())


def find_limits(connection: Connection, scope: str) -> Limits | None:
    return fetch_one(connection, Limits, select(_LIMITS).where(_LIMITS.c.scope == scope))


def list_limits(connection: Connection) -> list[Limits]:
    return fetch_all(connection, Limits, select(_LIMITS).order_by(_LIMITS.c.scope))


def set_limits(connection: Connection, scope: str, values: Mapping[str, int | None]) -> None:
    """Change these columns of the scope's row; None goes back to the setting, or to no bound."""
    statement = insert_for(connection, LimitRow).values(scope=scope, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["scope"], set_=values))


def note_served(connection: Connection, tenant: str, start: int, end: int) -> None:
    """The tenant's share after an admission that began at `start`, which is the account's now."""
    rows = [{"scope": name_scope(tenant), "served": end}, {"scope": ACCOUNT, "served": start}]
    statement = insert_for(connection, LimitRow).values(rows)
    served = {"served": statement.excluded.served}
    connection.execute(statement.on_conflict_do_update(index_elements=["scope"], set_=served))


# ------------------------------------------------------------------ pauses


def list_pauses(connection: Connection, scope: str | None = None) -> list[Pause]:
    statement = select(_PAUSES).order_by(_PAUSES.c.scope, _PAUSES.c.since, _PAUSES.c.cause)
    if scope is not None:
        statement = statement.where(_PAUSES.c.scope == scope)
    found = connection.execute(statement).mappings()
    return [Pause(**{**row, "cause": PauseCause(row["cause"])}) for row in found]


def keep_pause(connection: Connection, pause: Pause) -> None:
    """Write the pause; one of its cause keeps the time since when it lasts."""
    values = {
        "reason": pause.reason,
        "host": pause.host,
        "until": pause.until,
        "strikes": pause.strikes,
        "room": pause.room,
    }
    connection.execute(
        insert_for(connection, PauseRow)
        .values(scope=pause.scope, cause=pause.cause.value, since=pause.since, **values)
        .on_conflict_do_update(index_elements=["scope", "cause"], set_=values)
    )


def remove_pause(connection: Connection, scope: str, cause: PauseCause) -> bool:
    """End the pause; whether there was one."""
    statement = delete(_PAUSES).where(_PAUSES.c.scope == scope, _PAUSES.c.cause == cause.value)
    return connection.execute(statement).rowcount == 1


# ------------------------------------------------------------------ usage


def read_usage(connection: Connection, now: datetime) -> Usage:
    in_flight = select(func.count()).where(_ATTEMPTS.c.slot_until > now)
    started = select(func.count()).where(_CHARGES.c.admitted_at > now - MINUTE)
    spent = select(_SPEND.c.nano_usd).where(
        _SPEND.c.scope == ACCOUNT, _SPEND.c.day == name_day(now)
    )
    posting = in_flight.where(_ATTEMPTS.c.ended_at.is_(None), _ATTEMPTS.c.outcome.is_(None))
    row = connection.execute(
        select(
            in_flight.scalar_subquery(),
            posting.scalar_subquery(),
            started.scalar_subquery(),
            func.coalesce(spent.scalar_subquery(), 0),
        )
    ).one()
    return Usage(*map(int, row))


def has_admissible(connection: Connection) -> bool:
    return count_admissible(connection, 1) == 1


def count_admissible(connection: Connection, most: int) -> int:
    """How many jobs may be admitted as far as they are concerned; counted up to `most`."""
    some = select(_JOBS.c.tenant).where(IS_ADMISSIBLE).order_by(*_ORDER).limit(most).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def list_waiting_tenants(connection: Connection, now: datetime) -> list[WaitingTenant]:
    """Those with an admissible job: a step of the index for each, however many jobs they have."""
    first = select(_JOBS.c.tenant).where(IS_ADMISSIBLE).order_by(*_ORDER).limit(1)
    waiting = select(first.scalar_subquery().label("tenant")).cte("waiting", recursive=True)
    later = (
        select(_JOBS.c.tenant)
        .where(IS_ADMISSIBLE, _JOBS.c.tenant > waiting.c.tenant)
        .order_by(*_ORDER)
        .limit(1)
        .correlate(waiting)
        .scalar_subquery()
    )
    waiting = waiting.union_all(select(later).where(waiting.c.tenant.is_not(None)))
    own = _LIMITS.c.scope == literal(TENANT).concat(waiting.c.tenant)
    is_paused = select(_PAUSES.c.cause).where(
        _PAUSES.c.scope == literal(TENANT).concat(waiting.c.tenant)
    )
    statement = (
        select(waiting.c.tenant, *_LIMITS.c, is_paused.limit(1).scalar_subquery().label("paused"))
        .select_from(waiting.outerjoin(_LIMITS, own))
        .where(waiting.c.tenant.is_not(None))
    )
    rows = connection.execute(statement).mappings().all()
    in_flight = count_in_flight(connection, now)
    started = _count_started(connection, now) if any(row["per_minute"] for row in rows) else {}
    budgeted = [row["scope"] for row in rows if row["daily_budget_nano_usd"] is not None]
    spent = _list_spent(connection, now, budgeted) if budgeted else {}
    return [
        WaitingTenant(
            tenant=row["tenant"],
            weight=row["weight"] or 1,
            served=row["served"] or 0,
            in_flight=in_flight.get(row["tenant"], 0),
            started=started.get(row["tenant"], 0),
            spent_nano_usd=spent.get(name_scope(row["tenant"]), 0),
            max_in_flight=row["max_in_flight"],
            per_minute=row["per_minute"],
            daily_budget_nano_usd=row["daily_budget_nano_usd"],
            is_paused=row["paused"] is not None,
        )
        for row in rows
    ]


def count_in_flight(connection: Connection, now: datetime) -> dict[str, int]:
    """How many attempts are, or may be, at fal, by tenant; only those that have any."""
    statement = (
        select(_JOBS.c.tenant, func.count())
        .select_from(_ATTEMPTS.join(_JOBS, _JOBS.c.id == _ATTEMPTS.c.job_id))
        .where(_ATTEMPTS.c.slot_until > now)
        .group_by(_JOBS.c.tenant)
    )
    return {str(tenant): int(number) for tenant, number in connection.execute(statement)}


def _count_started(connection: Connection, now: datetime) -> dict[str, int]:
    statement = (
        select(_CHARGES.c.tenant, func.count())
        .where(_CHARGES.c.admitted_at > now - MINUTE)
        .group_by(_CHARGES.c.tenant)
    )
    return {str(tenant): int(number) for tenant, number in connection.execute(statement)}


def _list_spent(connection: Connection, now: datetime, scopes: Sequence[str]) -> dict[str, int]:
    today = (_SPEND.c.scope.in_(scopes), _SPEND.c.day == name_day(now))
    statement = select(_SPEND.c.scope, _SPEND.c.nano_usd).where(*today)
    return {str(scope): int(spent) for scope, spent in connection.execute(statement)}


def list_heads(connection: Connection, tenant: str, limit: int) -> list[Job]:
    """The tenant's next jobs, locked; those that another transaction has locked are passed over."""
    statement = (
        select(_JOBS)
        .where(IS_ADMISSIBLE, _JOBS.c.tenant == tenant)
        .order_by(_JOBS.c.priority.desc(), _JOBS.c.enqueued_at, _JOBS.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return fetch_all(connection, Job, statement)


# ------------------------------------------------------------------ why a job waits


def find_place(connection: Connection, job: Job) -> int:
    """The queued job's place in its tenant's queue: 1 is next. Those that may run come first."""
    is_before = or_(
        _JOBS.c.priority > job.priority,
        and_(
            _JOBS.c.priority == job.priority,
            or_(
                _JOBS.c.enqueued_at < job.enqueued_at,
                and_(_JOBS.c.enqueued_at == job.enqueued_at, _JOBS.c.id < job.id),
            ),
        ),
    )
    own = select(func.count()).select_from(_JOBS).where(_JOBS.c.tenant == job.tenant)
    admissible, blocked = own.where(IS_ADMISSIBLE), own.where(IS_BLOCKED, is_before)
    if job.blocked_by is None:
        return int(connection.execute(admissible.where(is_before)).scalar_one()) + 1
    both = select(admissible.scalar_subquery() + blocked.scalar_subquery())
    return int(connection.execute(both).scalar_one()) + 1


def list_places(connection: Connection, jobs: Sequence[QueuedJob]) -> Mapping[UUID, int]:
    """The places of many queued jobs, in one walk through the queues of their tenants."""
    found: dict[UUID, int] = {}
    for tenant in sorted({job.tenant for job in jobs}):
        mine = [job for job in jobs if job.tenant == tenant]
        runnable = [job.id for job in mine if job.blocked_by is None]
        blocked = [job.id for job in mine if job.blocked_by is not None]
        found |= _number(connection, tenant, IS_ADMISSIBLE, runnable)
        if blocked:
            is_before = (IS_ADMISSIBLE, _JOBS.c.tenant == tenant)
            before = connection.execute(select(func.count()).where(*is_before)).scalar_one()
            numbered = _number(connection, tenant, IS_BLOCKED, blocked)
            found |= {job_id: before + place for job_id, place in numbered.items()}
    return found


def _number(
    connection: Connection, tenant: str, condition: ColumnElement[bool], job_ids: Sequence[UUID]
) -> Mapping[UUID, int]:
    """Places among the tenant's jobs that meet the condition, from the index alone."""
    if not job_ids:
        return {}
    order = (_JOBS.c.priority.desc(), _JOBS.c.enqueued_at, _JOBS.c.id)
    place = func.row_number().over(order_by=order).label("place")
    mine = select(_JOBS.c.id, place).where(condition, _JOBS.c.tenant == tenant)
    walk = mine.subquery()
    statement = select(walk).where(walk.c.id.in_(job_ids))
    return {job_id: int(number) for job_id, number in connection.execute(statement)}


def find_head(connection: Connection, tenant: str) -> Job | None:
    """The tenant's next job, not locked."""
    statement = (
        select(_JOBS)
        .where(IS_ADMISSIBLE, _JOBS.c.tenant == tenant)
        .order_by(_JOBS.c.priority.desc(), _JOBS.c.enqueued_at, _JOBS.c.id)
        .limit(1)
    )
    return fetch_one(connection, Job, statement)


def count_waiting(connection: Connection) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Queued jobs: those that may run, by tenant, and the others, by their own reason."""
    counted = []
    for column, condition in ((_JOBS.c.tenant, IS_ADMISSIBLE), (_JOBS.c.blocked_by, IS_BLOCKED)):
        statement = select(column, func.count()).where(condition).group_by(column)
        counted.append({str(key): int(number) for key, number in connection.execute(statement)})
    return counted[0], counted[1]


def count_completed(connection: Connection, since: datetime) -> tuple[int, datetime | None]:
    """How many attempts fal has finished since then, and when the first of them."""
    statement = select(
        func.count(), type_coerce(func.min(_ATTEMPTS.c.completed_at), UtcDateTime())
    ).where(_ATTEMPTS.c.completed_at.is_not(None), _ATTEMPTS.c.completed_at > since)
    number, first = connection.execute(statement).one()
    return int(number), first


def release_attempts(connection: Connection, attempt_ids: Sequence[UUID]) -> None:
    """These attempts are surely not at fal any more."""
    connection.execute(
        update(_ATTEMPTS).where(_ATTEMPTS.c.id.in_(attempt_ids)).values(slot_until=None)
    )


def describe_limits(limits: Limits) -> dict[str, Any]:
    """The row as the shell prints it: the account's values, or those of the settings."""
    return {
        "scope": limits.scope,
        "max_in_flight": limits.max_in_flight or limits.default_max_in_flight,
        "per_minute": limits.per_minute or limits.default_per_minute,
        "daily_budget_nano_usd": limits.daily_budget_nano_usd
        or limits.default_daily_budget_nano_usd,
        "weight": limits.weight,
    }
