"""What holds queued jobs, as admission would decide now; their places, and when it may be over.

The settings that matter are those of the workers, which they note beside the limits: whoever reads
needs none of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil
from typing import Protocol
from uuid import UUID

from sqlalchemy import Connection

from worker.fal.pricing import estimate_units
from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.money import price_units
from worker.jobs import admission, charges
from worker.jobs.admission import ACCOUNT, Caps, Limits, Pause, WaitingTenant, name_scope
from worker.jobs.states import BlockedBy, JobState, PauseCause
from worker.stages.admit import (
    LONGEST_PAUSE,
    AdmissionPolicy,
    Reason,
    Room,
    apply_defaults,
    choose_time,
    find_full,
    find_price,
    judge_budget,
    read_room,
)

# The pace of submissions is that at which fal has finished runs for so long.
SPAN = timedelta(hours=1)
DAY = timedelta(days=1)
# The caps before any worker has noted its settings: then nothing was ever submitted.
UNBOUNDED = Caps(1_000_000)
WORDS: Mapping[str, str] = {
    Reason.ACCOUNT: "submissions to be resumed",
    Reason.ARCHIVE: "the archive to take files again",
    Reason.IN_FLIGHT: "a free place at fal",
    Reason.RATE: "the next minute's submissions",
    Reason.BUDGET: "room in the day's budget",
    Reason.TENANT: "its tenant's own limit or pause",
    BlockedBy.RETRY: "its next attempt",
    BlockedBy.NOT_BEFORE: "its not_before",
    BlockedBy.BUDGET: "a budget of a day that allows its cost",
}
TIMED = frozenset({BlockedBy.RETRY, BlockedBy.NOT_BEFORE})
OVER_BUDGET = "over_budget"
# What queued jobs are counted by.
HOLDS = ("none", *map(str, Reason), *sorted(map(str, TIMED)))


class Queued(Protocol):
    """As much of a job as its waiting depends on: a whole row, or a line of a list."""

    @property
    def id(self) -> UUID: ...
    @property
    def state(self) -> JobState: ...
    @property
    def tenant(self) -> str: ...
    @property
    def due_at(self) -> datetime | None: ...
    @property
    def blocked_by(self) -> str | None: ...
    @property
    def blocked_reason(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a queued job is not submitted; `blocked_by` is None if nothing but its turn is missing.

    `place` is that in its tenant's queue; `estimated_submit_at` is an estimate, and no promise.
    """

    blocked_by: str | None
    waits_for: str
    detail: str
    place: int
    until: datetime | None
    estimated_submit_at: datetime | None
    pause: PauseCause | None = None
    """What the account is paused by, if that is what holds the job."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What holds up the jobs of all tenants, or of one, at one moment."""

    now: datetime
    room: Room
    pauses: Sequence[Pause]
    caps: Caps
    spent_nano_usd: int
    policy: AdmissionPolicy
    tenants: Mapping[str, WaitingTenant]
    waiting: Mapping[str, int]
    blocked: Mapping[str, int]
    seconds_per_run: float | None


# ------------------------------------------------------------------ reading


def read_shared(connection: Connection, now: datetime) -> Shared:
    """One moment of what admission decides by; locks nothing."""
    policy = read_policy(connection)
    limits = admission.find_limits(connection, ACCOUNT)
    waiting, blocked = admission.count_waiting(connection)
    completed, first = admission.count_completed(connection, now - SPAN)
    lasted = max((now - first).total_seconds(), 1) if first else 0.0
    caps = apply_defaults(limits, policy.caps)
    pace = max(lasted / completed, 60 / (caps.per_minute or 1_000_000)) if completed else None
    return Shared(
        now,
        read_room(connection, policy, now),
        [one for one in admission.list_pauses(connection, ACCOUNT) if not one.is_counting],
        caps,
        admission.read_usage(connection, now).spent_nano_usd,
        policy,
        {one.tenant: one for one in admission.list_waiting_tenants(connection, now)},
        waiting,
        blocked,
        pace,
    )


def read_policy(connection: Connection) -> AdmissionPolicy:
    """What the workers' settings say of admission, as they have noted it."""
    limits = admission.find_limits(connection, ACCOUNT)
    prices = charges.list_prices(connection)
    price = None if limits is None else limits.default_unit_price_nano_usd
    caps = (limits.defaults if limits else None) or UNBOUNDED
    return AdmissionPolicy(caps, next(iter(prices), ""), price)


def find_reason(
    connection: Connection, shared: Shared, tenant_name: str
) -> tuple[Reason, str] | None:
    """What holds up the tenant's jobs that may run; None if only their turn is missing."""
    if shared.room.free <= 0 and shared.room.reason is not None:
        return shared.room.reason, shared.room.detail
    tenant = shared.tenants.get(tenant_name)
    if tenant is None:
        return None
    if (full := find_full(tenant)) is not None:
        return full
    budget = shared.caps.daily_budget_nano_usd
    if budget is None and tenant.daily_budget_nano_usd is None:
        return None
    head = admission.find_head(connection, tenant_name)
    if head is None:
        return None
    price = find_price(connection, shared.policy, head.endpoint)
    cost = None if price is None else price_units(estimate_units(head.input).units, price)
    over = judge_budget(cost, budget, shared.spent_nano_usd, ACCOUNT) or judge_budget(
        cost, tenant.daily_budget_nano_usd, tenant.spent_nano_usd, name_scope(tenant_name)
    )
    return None if over is None else (Reason.BUDGET, over.words)


def find_hold(connection: Connection, job: Queued, shared: Shared, place: int) -> Hold:
    """What holds the queued job: its own reason, else the one that it shares."""
    if job.blocked_by is not None:
        reason, detail = job.blocked_by, job.blocked_reason or ""
        until = job.due_at if job.blocked_by in TIMED else None
    else:
        shared_reason = find_reason(connection, shared, job.tenant)
        reason, detail = shared_reason or ("", "")
        until = end_of_pause(shared) if reason == Reason.ACCOUNT else None
    return Hold(
        blocked_by=str(reason) or None,
        waits_for=WORDS.get(reason, "its turn" if place > 1 else "a free worker to submit it"),
        detail=detail,
        place=place,
        until=until,
        estimated_submit_at=estimate_submission(job, reason, until, place, shared),
        pause=find_cause(shared) if reason == Reason.ACCOUNT else None,
    )


def list_holds(connection: Connection, jobs: Sequence[Queued], now: datetime) -> dict[UUID, Hold]:
    """By the job's id, of those that are queued; one moment for all of them."""
    queued = [job for job in jobs if job.state is JobState.QUEUED]
    if not queued:
        return {}
    shared, places = read_shared(connection, now), admission.list_places(connection, queued)
    return {
        job.id: find_hold(connection, job, shared, places[job.id])
        for job in queued
        if job.id in places
    }


def read_holds(
    jobs: Sequence[Queued], *, db: Database, clock: Clock = read_clock
) -> dict[UUID, Hold]:
    with db.reading() as connection:
        return list_holds(connection, jobs, choose_time(connection, clock))


def count_queued(connection: Connection, now: datetime) -> dict[str, int]:
    """Queued jobs by what holds them; `none` are those that only wait for their turn.

    `over_budget` are those which alone exceed a whole day's; they are among `budget`, too.
    """
    shared = read_shared(connection, now)
    known = dict.fromkeys(HOLDS, 0) | dict(shared.blocked)
    known[OVER_BUDGET] = known[BlockedBy.BUDGET]
    for tenant, number in shared.waiting.items():
        reason = find_reason(connection, shared, tenant)
        known[str(reason[0]) if reason else "none"] += number
    return known


# ------------------------------------------------------------------ when it may be over


def find_cause(shared: Shared) -> PauseCause | None:
    """By what the account is paused; an operator's pause comes first, as it needs one to end."""
    causes = {one.cause for one in shared.pauses} - {PauseCause.ARCHIVE}
    return min(causes, key=lambda cause: (cause is not PauseCause.OPERATOR, cause), default=None)


def end_of_pause(shared: Shared) -> datetime | None:
    """When the account's last pause may end; None if no time ends all of them."""
    in_force = [one for one in shared.pauses if one.is_in_force(shared.now, LONGEST_PAUSE)]
    times = [one.until for one in in_force if one.until is not None]
    return max(times) if times and len(times) == len(in_force) else None


def estimate_submission(
    job: Queued, reason: str, until: datetime | None, place: int, shared: Shared
) -> datetime | None:
    """When the job may be submitted at the pace of the last hour; None if nothing tells; pure.

    Each of the other tenants has its turns before it, as its weight and its queue allow.
    """
    start = find_start(job, reason, until, shared)
    if start is None:
        return None
    free = max(shared.room.free, 0) if start == shared.now else 0
    turns = max(count_ahead(job, place, shared) + 1 - free, 0)
    if turns and shared.seconds_per_run is None:
        return None
    return start + timedelta(seconds=turns * (shared.seconds_per_run or 0))


def find_start(job: Queued, reason: str, until: datetime | None, shared: Shared) -> datetime | None:
    """From when on turns come again; None if somebody, or something else, decides that; pure."""
    own = shared.tenants.get(job.tenant)
    match reason:
        case BlockedBy.RETRY | BlockedBy.NOT_BEFORE:
            return max(until or shared.now, shared.now)
        case Reason.BUDGET if job.blocked_by is None:
            return (shared.now + DAY).replace(hour=0, minute=0, second=0, microsecond=0)
        case Reason.ACCOUNT:
            return until
        case Reason.IN_FLIGHT | Reason.RATE | "":
            return shared.now
        case Reason.TENANT if own is not None and not own.is_paused:
            return shared.now
        case _:
            return None


def count_ahead(job: Queued, place: int, shared: Shared) -> int:
    """How many jobs will be submitted before this one, if none comes and none goes; pure."""
    own = shared.tenants.get(job.tenant)
    weight, ahead = own.weight if own else 1, place - 1
    for name, tenant in shared.tenants.items():
        if name != job.tenant and find_full(tenant) is None:
            turns = ceil(place * tenant.weight / weight)
            ahead += min(shared.waiting.get(name, 0), turns)
    return ahead


# ------------------------------------------------------------------ limits and what counts


@dataclass(frozen=True, slots=True)
class ScopeState:
    """The limits of the account or of a tenant, what counts against them now, and its pauses."""

    scope: str
    max_in_flight: int | None
    per_minute: int | None
    daily_budget_nano_usd: int | None
    weight: int
    in_flight: int
    spent_nano_usd: int
    pauses: list[Pause]

    @property
    def is_paused_by_hand(self) -> bool:
        return any(one.cause is PauseCause.OPERATOR for one in self.pauses)


def list_scopes(
    connection: Connection, now: datetime, caps: Caps | None = None, only: str | None = None
) -> list[ScopeState]:
    """The account first, then each tenant with limits, a pause, costs of today, or runs at fal.

    `caps` are the account's where no worker has noted any; `only` this scope, whatever it has.
    """
    rows = {row.scope: row for row in admission.list_limits(connection)}
    pauses = [one for one in admission.list_pauses(connection) if not one.is_counting]
    flying = {
        name_scope(tenant): number
        for tenant, number in admission.count_in_flight(connection, now).items()
    }
    spent = charges.read_spent(connection, admission.name_day(now))
    flying[ACCOUNT] = admission.read_usage(connection, now).in_flight
    named = {row.scope for row in rows.values() if is_limited(row)}
    paying = {scope for scope, nano_usd in spent.items() if nano_usd}
    tenants = {*named, *flying, *paying, *(one.scope for one in pauses)} - {ACCOUNT}
    account = rows.get(ACCOUNT)
    bounds = apply_defaults(account, (account and account.defaults) or caps or UNBOUNDED)
    states = []
    for scope in (ACCOUNT, *sorted(tenants)) if only is None else (only,):
        row = rows.get(scope)
        own = Caps(0) if row is None else Caps(row.max_in_flight or 0, row.per_minute)
        budget = row.daily_budget_nano_usd if row else None
        is_account = scope == ACCOUNT
        states.append(
            ScopeState(
                scope,
                bounds.max_in_flight if is_account else own.max_in_flight or None,
                bounds.per_minute if is_account else own.per_minute,
                bounds.daily_budget_nano_usd if is_account else budget,
                row.weight if row else 1,
                flying.get(scope, 0),
                spent.get(scope, 0),
                [one for one in pauses if one.scope == scope],
            )
        )
    return states


def is_limited(row: Limits) -> bool:
    """Whether somebody has set anything; a row may have come into being for `served` alone."""
    bounds = (row.max_in_flight, row.per_minute, row.daily_budget_nano_usd)
    return row.weight != 1 or any(one is not None for one in bounds)
