"""What jobs cost: the price as read from the platform, and the ledger against fal's bills.

`charges` has an estimate for each attempt from its admission on; here it learns what fal has really
billed. Nothing on a job's path waits for this.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from worker.fal.billing import LONGEST_WINDOW, MOST_IDS, Bill, BillingClient
from worker.fal.requests import RequestClient, Unclear
from worker.ground.clock import Clock, read_clock
from worker.ground.db import TRANSIENT_DB_ERRORS, Database, describe_database_error
from worker.ground.errors import BillingRefusedError, BillingUnavailableError
from worker.jobs import attempts, charges, limits
from worker.jobs.charges import Charge, Cost, CostKey, Price
from worker.jobs.values import Job
from worker.stages.admit import AdmissionPolicy
from worker.stages.sweep import settle_charges

PRICE_GATE, BILLS_GATE, REFUSED_GATE = "price", "bills", "bills_refused"
PRICE_PAUSE = timedelta(hours=1)
# While no price is known, or the platform does not answer.
PRICE_RETRY = timedelta(minutes=1)
BILLS_PAUSE = timedelta(minutes=1)
# Without an admin key there is no use in asking again soon.
REFUSED_PAUSE = timedelta(hours=1)
# An event appears a minute or two after its request has ended.
SOONEST = timedelta(minutes=1)
BATCHES = 4

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Difference:
    """A request that fal has billed otherwise than `charges` has it; amounts in nano-USD."""

    kind: str
    fal_request_id: str
    job_id: UUID | None
    ledger_nano_usd: int | None
    billed_nano_usd: int


def refresh_price(
    client: BillingClient, endpoint: str, *, db: Database, clock: Clock = read_clock
) -> Price | None:
    """Read the price again once an hour, over all workers; None if it was not its time."""
    with db.transaction() as connection:
        if not limits.pass_gate(connection, PRICE_GATE, clock(), PRICE_RETRY):
            return None
        known = charges.find_price(connection, endpoint)
    if known is not None and clock() - known.read_at < PRICE_PAUSE:
        return None
    try:
        unit_price = client.read_price(endpoint)
    except (BillingUnavailableError, BillingRefusedError) as error:
        log.warning("price_not_read", code=error.code, reason=str(error))
        return None
    price = Price(endpoint, unit_price.unit, unit_price.nano_usd, clock())
    with db.transaction() as connection:
        charges.keep_price(connection, price)
    if known is None or known.unit_price_nano_usd != price.unit_price_nano_usd:
        log.info("price_read", endpoint=endpoint, nano_usd=price.unit_price_nano_usd)
    return price


def fetch_bills(client: BillingClient, *, db: Database, clock: Clock = read_clock) -> int:
    """Note fal's bills of ended requests that have none yet; how many were found.

    Once a minute, over all workers, the newest first.
    """
    now = clock()
    with db.transaction() as connection:
        refused = limits.find_gate(connection, REFUSED_GATE)
        if refused is not None and now < refused.opens_at <= now + REFUSED_PAUSE:
            return 0
        if not limits.pass_gate(connection, BILLS_GATE, now, BILLS_PAUSE):
            return 0
        open_charges = charges.list_unbilled(
            connection, now - LONGEST_WINDOW, now - SOONEST, MOST_IDS * BATCHES
        )
    found = 0
    try:
        for start in range(0, len(open_charges), MOST_IDS):
            batch = dict(open_charges[start : start + MOST_IDS])
            bills = client.list_bills(list(batch), now - LONGEST_WINDOW, now + SOONEST)
            for fal_request_id, bill in bills.items():
                if fal_request_id in batch:
                    keep_bill(bill, batch[fal_request_id], now, db=db)
                    found += 1
    except BillingRefusedError as error:
        log.info("bills_refused", code=error.code, reason=str(error))
        with db.transaction() as connection:
            limits.pass_gate(connection, REFUSED_GATE, now, REFUSED_PAUSE)
    except BillingUnavailableError as error:
        log.warning("bills_unavailable", code=error.code, reason=str(error))
    return found


def fetch_units(
    job: Job, *, requests: RequestClient, db: Database, clock: Clock = read_clock
) -> None:
    """Note what fal bills for the result of an archived job, unless its bill is known.

    Best effort, by one GET with a short limit: a billing event is worth more, and may still come.
    """
    try:
        with db.reading() as connection:
            made = attempts.find_attempt_by_request(connection, str(job.fal_request_id))
            charge = None if made is None else charges.find_charge(connection, made.id)
        if made is None or charge is None or charge.has_bill or charge.unit_price_nano_usd is None:
            return
        units = requests.read_billable_units(made, str(made.fal_request_id))
        if isinstance(units, Unclear):
            log.debug("units_not_read", job_id=str(job.id), reason=units.message)
            return
        with db.transaction() as connection:
            charges.note_result_units(connection, made.id, units, clock())
    except TRANSIENT_DB_ERRORS as error:
        log.debug("units_not_read", job_id=str(job.id), reason=describe_database_error(error))


def keep_bill(bill: Bill, attempt_id: UUID, now: datetime, *, db: Database) -> None:
    units = None if bill.units is None else str(bill.units)
    with db.transaction() as connection:
        charges.note_bill(connection, attempt_id, units, bill.nano_usd, now)


def reconcile(
    client: BillingClient,
    policy: AdmissionPolicy,
    since: datetime,
    *,
    db: Database,
    clock: Clock = read_clock,
) -> Sequence[Difference]:
    """Hold the ledger against fal's bills since then, and take the bills over.

    A reservation that is still open is no difference: it is settled by its bill. What counts by
    its units or estimate, and has no bill a day after its run, is one. Raises BillingRefusedError
    without an admin key, BillingUnavailableError.
    """
    now = clock()
    bills = client.list_all_bills(policy.endpoint, since, now + SOONEST)
    with db.reading() as connection:
        known = charges.find_by_requests(connection, list(bills))
        unconfirmed = charges.list_unconfirmed(connection, since, now - charges.ASK_FOR)
    differences = [
        difference
        for fal_request_id, bill in bills.items()
        if (difference := compare(bill, known.get(fal_request_id))) is not None
    ]
    differences += [
        Difference("no_bill", fal_request_id, charge.job_id, charge.amount, 0)
        for fal_request_id, charge in unconfirmed.items()
        if fal_request_id not in bills and charge.amount
    ]
    for fal_request_id, charge in known.items():
        keep_bill(bills[fal_request_id], charge.attempt_id, now, db=db)
    while settle_charges(policy, db=db, clock=clock):
        pass
    return differences


def compare(bill: Bill, charge: Charge | None) -> Difference | None:
    """What is wrong with the ledger's amount, if anything; pure."""
    if charge is None:
        return Difference("unknown_request", bill.fal_request_id, None, None, bill.nano_usd)
    is_open = charge.source is None and charge.voided_at is None
    if is_open or charge.amount == bill.nano_usd:
        return None
    kind = "billed_though_void" if charge.source is None else "other_amount"
    return Difference(kind, bill.fal_request_id, charge.job_id, charge.amount, bill.nano_usd)


def list_costs(
    by: CostKey, since: datetime | None, *, db: Database
) -> tuple[Sequence[Cost], Mapping[str, Price]]:
    """What was spent, by tenant, day, label or state; with the prices that are known."""
    with db.reading() as connection:
        return charges.sum_costs(connection, by, since), charges.list_prices(connection)
