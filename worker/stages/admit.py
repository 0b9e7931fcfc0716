"""Before `submit.py`: which job may be submitted now, if any.

fal runs a few requests of an account at once; so jobs wait with us, where cancelling is free and
the order is ours. Admission is one short transaction under the lock of the account's row of
`limits`: pauses, caps, rate and budget first, then the next tenant's next job. A tenant's turn
comes by `served`, the units admitted for it divided by its weight (start-time fair queueing); a
tenant at a limit of its own is passed over, and keeps nobody waiting.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

import structlog
from sqlalchemy import Connection

from worker.fal.http import MAX_RETRY_AFTER
from worker.fal.pricing import Estimate, estimate_units
from worker.fal.submit import Accepted, Ambiguous, RefusalClass, Refused, SubmitReply
from worker.ground.clock import Backoff, Clock, read_clock
from worker.ground.db import Database
from worker.ground.money import format_usd, price_units
from worker.jobs import admission, charges, table
from worker.jobs.admission import (
    ACCOUNT,
    COUNTING,
    Caps,
    Limits,
    Pause,
    Usage,
    WaitingTenant,
    name_scope,
)
from worker.jobs.states import BlockedBy, JobEvent, PauseCause
from worker.jobs.values import Attempt, Job, Move

# So many ambiguous replies in a row are an outage; so many without a connection, too.
MOST_IN_A_ROW = 3
BUSY = Backoff(timedelta(seconds=20), timedelta(minutes=10))
# After a pause one submission at a time, then two, four ...; from so many on without this bound.
FIRST_ROOM, FULL_ROOM = 1, 32
# A pause that goes on further was written by a clock that was wrong.
LONGEST_PAUSE = MAX_RETRY_AFTER + timedelta(hours=1)
# Of a tenant's jobs that turn out to be expired, or too dear, one admission passes over so many.
MOST_PASSED = 20
# How often a job that is too dear for a whole day is tried again.
BUDGET_PAUSE = timedelta(hours=1)
# `served` counts in thousandths of a unit, so that weights divide it.
SCALE = 1000
BREAKERS = frozenset({PauseCause.ACCOUNT, PauseCause.BUSY, PauseCause.AMBIGUOUS})

log = structlog.stdlib.get_logger(__name__)


class Reason(StrEnum):
    """Why jobs wait that nothing of their own holds up."""

    ACCOUNT = "account"
    ARCHIVE = "archive"
    IN_FLIGHT = "in_flight"
    RATE = "rate"
    BUDGET = "budget"
    TENANT = "tenant"


@dataclass(frozen=True, slots=True)
class AdmissionPolicy:
    """What the settings say of admission; `unit_price_nano_usd` replaces the platform's price."""

    caps: Caps
    endpoint: str
    unit_price_nano_usd: int | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """How many jobs may be admitted now, over all tenants; if none, why."""

    free: int
    reason: Reason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Pick:
    """The job to admit, locked; what it will cost, and the share of its tenant before and after.

    The budgets are those of the day that allow it.
    """

    job: Job
    estimate: Estimate
    unit_price_nano_usd: int | None
    served_from: int
    served_to: int
    has_next: bool
    account_budget_nano_usd: int | None
    tenant_budget_nano_usd: int | None

    @property
    def estimated_nano_usd(self) -> int | None:
        price = self.unit_price_nano_usd
        return None if price is None else price_units(self.estimate.units, price)


# ------------------------------------------------------------------ room


def choose_time(connection: Connection, clock: Clock) -> datetime:
    """The database's time; a test's own clock goes before it."""
    return admission.read_time(connection) if clock is read_clock else clock()


def read_room(connection: Connection, policy: AdmissionPolicy, now: datetime) -> Room:
    """Without a lock: whether it is worth trying."""
    limits = admission.find_limits(connection, ACCOUNT)
    return _measure(connection, limits, policy, now)[0]


def _measure(
    connection: Connection, limits: Limits | None, policy: AdmissionPolicy, now: datetime
) -> tuple[Room, Usage]:
    pauses, usage = (
        admission.list_pauses(connection, ACCOUNT),
        admission.read_usage(connection, now),
    )
    has_price = find_price(connection, policy, policy.endpoint) is not None
    caps = apply_defaults(limits, policy.caps)
    return measure_room(caps, pauses, usage, now, has_price=has_price), usage


def apply_defaults(limits: Limits | None, caps: Caps) -> Caps:
    """The account's caps: its row's where it has one, else the settings'; pure."""
    if limits is None:
        return caps
    budget = limits.daily_budget_nano_usd
    return Caps(
        limits.max_in_flight or caps.max_in_flight,
        limits.per_minute or caps.per_minute,
        caps.daily_budget_nano_usd if budget is None else budget,
    )


def measure_room(  # noqa: C901, PLR0911 - each reason by its name
    caps: Caps, pauses: Sequence[Pause], usage: Usage, now: datetime, *, has_price: bool
) -> Room:
    """How many may be admitted under these caps and pauses; pure."""
    for pause in sorted(pauses, key=lambda one: one.cause is PauseCause.ARCHIVE):
        if pause.is_in_force(now, LONGEST_PAUSE):
            is_archive = pause.cause is PauseCause.ARCHIVE
            return Room(0, Reason.ARCHIVE if is_archive else Reason.ACCOUNT, pause.reason)
    free = caps.max_in_flight - usage.in_flight
    if free <= 0:
        detail = f"{usage.in_flight} of {caps.max_in_flight} are in flight"
        return Room(0, Reason.IN_FLIGHT, detail)
    for pause in pauses:
        left = (pause.room or FIRST_ROOM) - usage.posting
        if left <= 0:
            return Room(0, Reason.ACCOUNT, f"{pause.reason}; the reply to a probe is awaited")
        free = min(free, left)
    if caps.per_minute is not None:
        free = min(free, caps.per_minute - usage.started)
        if free <= 0:
            detail = f"{usage.started} of {caps.per_minute} were submitted within a minute"
            return Room(0, Reason.RATE, detail)
    if caps.daily_budget_nano_usd is not None:
        if not has_price:
            return Room(0, Reason.BUDGET, "a budget is set, and no price is known")
        if usage.spent_nano_usd >= caps.daily_budget_nano_usd:
            return Room(0, Reason.BUDGET, _describe_budget(usage.spent_nano_usd, caps))
    return Room(free)


def _describe_budget(spent: int, caps: Caps) -> str:
    budget = format_usd(caps.daily_budget_nano_usd or 0)
    return f"{format_usd(spent)} of {budget} USD are spent today"


def find_price(connection: Connection, policy: AdmissionPolicy, endpoint: str) -> int | None:
    """Nano-USD a unit: the setting's, else the platform's as last read; None without either."""
    if policy.unit_price_nano_usd is not None:
        return policy.unit_price_nano_usd
    price = charges.find_price(connection, endpoint)
    return None if price is None else price.unit_price_nano_usd


def count_submissions(
    *, db: Database, policy: AdmissionPolicy, most: int, clock: Clock = read_clock
) -> int:
    """How many submissions are worth publishing now: room, and jobs to fill it."""
    with db.reading() as connection:
        now = choose_time(connection, clock)
        wanted = min(read_room(connection, policy, now).free, most)
        if wanted <= 0 or all(map(is_full, admission.list_waiting_tenants(connection, now))):
            return 0
        return admission.count_admissible(connection, wanted)


def count_for_new(
    *, db: Database, policy: AdmissionPolicy, new: int, clock: Clock = read_clock
) -> tuple[int, bool]:
    """How many submissions are worth publishing for so many new jobs.

    And whether others that wait already fill the room: then their messages may still be there.
    """
    with db.reading() as connection:
        room = read_room(connection, policy, choose_time(connection, clock))
        if room.free <= 0:
            return 0, False
        admissible = admission.count_admissible(connection, room.free + new)
        return min(room.free, admissible, new), admissible > room.free


# ------------------------------------------------------------------ pick


def admit_next(
    connection: Connection, policy: AdmissionPolicy, clock: Clock
) -> tuple[Pick | None, int, datetime]:
    """The next job, under the account's lock; with the cap it is admitted under, and the time.

    Called before any other row is locked, so that two cannot deadlock.
    """
    admission.begin_admission(connection)
    limits = admission.lock_account(connection, policy.caps, policy.unit_price_nano_usd)
    now = choose_time(connection, clock)
    caps = apply_defaults(limits, policy.caps)
    room, usage = _measure(connection, limits, policy, now)
    if room.free <= 0:
        if room.reason is Reason.BUDGET and charges.alarm_budget(connection, ACCOUNT, now):
            log.error("budget_reached", scope=ACCOUNT, reason=room.detail)
        return None, caps.max_in_flight, now
    pick = pick_job(connection, limits, caps, policy, usage.spent_nano_usd, now)
    if pick is not None and room.free == 1:
        pick = replace(pick, has_next=False)
    return pick, caps.max_in_flight, now


def pick_job(
    connection: Connection,
    limits: Limits,
    caps: Caps,
    policy: AdmissionPolicy,
    spent: int,
    now: datetime,
) -> Pick | None:
    """The next job of the tenant whose turn it is, among those below their own limits."""
    waiting = admission.list_waiting_tenants(connection, now)
    # A tenant that comes (back) starts where the others are: it saves up nothing before that.
    starts = {one.tenant: max(one.served, limits.served) for one in waiting}
    for tenant in sorted(waiting, key=lambda one: (starts[one.tenant], one.tenant)):
        if is_full(tenant):
            continue
        for _ in range(MOST_PASSED):
            heads = admission.list_heads(connection, tenant.tenant, 2)
            if not heads:
                break
            job = heads[0]
            if job.expires_at is not None and job.expires_at <= now:
                expire_job(connection, job, now)
                continue
            estimate = estimate_units(job.input)
            price = find_price(connection, policy, job.endpoint)
            cost = None if price is None else price_units(estimate.units, price)
            over = judge_budget(cost, caps.daily_budget_nano_usd, spent, ACCOUNT)
            scope, budget = name_scope(job.tenant), tenant.daily_budget_nano_usd
            over = over or judge_budget(cost, budget, tenant.spent_nano_usd, scope)
            if over is None:
                start = starts[job.tenant]
                end = start + max(estimate.units, 1) * SCALE // tenant.weight
                has_next = len(heads) > 1 or len(waiting) > 1
                budgets = caps.daily_budget_nano_usd, budget
                return Pick(job, estimate, price, start, end, has_next, *budgets)
            if over.is_of_job:
                until = now + BUDGET_PAUSE
                table.block_queued(connection, job.id, BlockedBy.BUDGET, until, over.words)
                log.error("job_exceeds_budget", job_id=str(job.id), reason=over.words)
                continue
            if charges.alarm_budget(connection, over.scope, now):
                log.error("budget_reached", scope=over.scope, reason=over.words)
            break  # its tenant waits for tomorrow, or for what is settled below its estimate
    return None


def is_full(tenant: WaitingTenant) -> bool:
    """Whether the tenant is paused, or at a limit of its own; pure."""
    return find_full(tenant) is not None


def find_full(tenant: WaitingTenant) -> tuple[Reason, str] | None:
    """What passes the tenant over, and the sentence for it; pure."""
    most, per_minute = tenant.max_in_flight, tenant.per_minute
    if tenant.is_paused:
        return Reason.TENANT, "submissions of the tenant are paused"
    if most is not None and tenant.in_flight >= most:
        return Reason.TENANT, f"{tenant.in_flight} of the tenant's {most} are in flight"
    if per_minute is not None and tenant.started >= per_minute:
        words = f"{tenant.started} of the tenant's {per_minute} were submitted within a minute"
        return Reason.RATE, words
    return None


@dataclass(frozen=True, slots=True)
class OverBudget:
    """Whose budget does not allow a job; `is_of_job` if not even a whole day's would."""

    scope: str
    words: str
    is_of_job: bool


def judge_budget(cost: int | None, budget: int | None, spent: int, scope: str) -> OverBudget | None:
    """None if the scope's budget of the day allows the cost; pure."""
    if budget is None:
        return None
    if cost is None:
        return OverBudget(scope, f"{scope} has a budget, and no price is known", is_of_job=False)
    if cost > budget:
        words = (
            f"about {format_usd(cost)} USD exceed {scope}'s daily budget of {format_usd(budget)}"
        )
        return OverBudget(scope, words, is_of_job=True)
    if spent + cost > budget:
        words = f"{format_usd(spent)} of {format_usd(budget)} USD are spent today"
        return OverBudget(scope, words, is_of_job=False)
    return None


def expire_job(connection: Connection, job: Job, now: datetime) -> Job | None:
    """Its producer wanted it submitted by a time that has passed: nothing is paid."""
    message = f"not submitted by {job.expires_at:%Y-%m-%d %H:%M:%S} UTC, as its expires_at requires"
    why = {"error_code": "expired", "error_message": message}
    return table.apply_event(
        connection, job, JobEvent.EXPIRED, Move(now, detail=message, columns=why)
    )


# ------------------------------------------------------------------ what replies prove


def note_reply(  # noqa: C901 - each reply by its name
    connection: Connection,
    reply: SubmitReply,
    attempt: Attempt,
    now: datetime,
    probe_after: timedelta,
) -> bool:
    """Begin, lengthen or end pauses by what a reply proves; True if one was lifted or widened.

    A reply ends only a pause that its submission was a probe of. Called before any job is locked.
    """
    known = {pause.cause: pause for pause in admission.list_pauses(connection, ACCOUNT)}
    probed = [
        pause
        for cause, pause in known.items()
        if cause in BREAKERS and (pause.until is None or attempt.started_at >= pause.until)
    ]
    ended: set[PauseCause] = set()
    written: PauseCause | None = None
    match reply:
        case Ambiguous():
            written = PauseCause.AMBIGUOUS
            words = f"fal's replies are ambiguous, the last: {reply.message}"
            _count_failure(connection, known, PauseCause.AMBIGUOUS, words, now, probe_after)
        case Refused(why=RefusalClass.ACCOUNT):
            written = PauseCause.ACCOUNT
            words = f"fal refuses the account: {reply.code}: {reply.message}"
            _pause(connection, PauseCause.ACCOUNT, words, now, now + probe_after)
            ended = {PauseCause.AMBIGUOUS, PauseCause.BUSY}
        case Refused(why=RefusalClass.BUSY):
            written = PauseCause.BUSY
            strikes = known[PauseCause.BUSY].strikes + 1 if PauseCause.BUSY in known else 1
            wait = reply.retry_after or max(BUSY.draw(strikes), timedelta(seconds=1))
            words = f"fal has too many requests of the account: {reply.code}: {reply.message}"
            _pause(connection, PauseCause.BUSY, words, now, now + wait, strikes)
            ended = {PauseCause.AMBIGUOUS, PauseCause.ACCOUNT}
        case Accepted() | Refused(why=RefusalClass.INPUT):
            ended = set(BREAKERS)
        case Refused():
            written = PauseCause.BUSY
            words = f"fal cannot be reached: {reply.code}: {reply.message}"
            wait = reply.retry_after + probe_after / 4
            _count_failure(connection, known, PauseCause.BUSY, words, now, wait)
    for pause in probed:
        if pause.cause not in ended:
            # A probe that has proved nothing: the next one takes its time, too.
            if pause.until is not None and pause.cause is not written:
                admission.keep_pause(connection, replace(pause, until=now + probe_after))
            continue
        room = (pause.room or FIRST_ROOM) * 2
        if pause.cause is PauseCause.BUSY and room < FULL_ROOM:
            admission.keep_pause(connection, replace(pause, until=None, room=room))
        elif admission.remove_pause(connection, ACCOUNT, pause.cause) and pause.until is not None:
            log.info("submissions_resumed", cause=pause.cause.value)
    return any(pause.cause in ended for pause in probed)


def _count_failure(
    connection: Connection,
    known: dict[PauseCause, Pause],
    cause: PauseCause,
    words: str,
    now: datetime,
    wait: timedelta,
) -> None:
    """Pause once so many in a row have failed; until then they are only counted."""
    before = known.get(cause)
    strikes = before.strikes + 1 if before else 1
    if strikes >= MOST_IN_A_ROW:
        _pause(connection, cause, f"{words} ({strikes} in a row)", now, now + wait, strikes)
        return
    room = before.room if before else COUNTING
    counted = Pause(ACCOUNT, cause, words, now, strikes=strikes, room=room)
    admission.keep_pause(connection, counted)


def _pause(
    connection: Connection,
    cause: PauseCause,
    words: str,
    now: datetime,
    until: datetime,
    strikes: int = 0,
) -> None:
    pause = Pause(ACCOUNT, cause, words, now, until=until, strikes=strikes, room=FIRST_ROOM)
    admission.keep_pause(connection, pause)
    log.error("submissions_paused", cause=cause.value, reason=words)
