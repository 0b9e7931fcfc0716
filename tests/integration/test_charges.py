"""`spend` says at every moment what the charges add up to, whatever is learnt of them."""

from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text
from uuid_utils.compat import uuid7

from tests.harness.clock import FakeClock
from tests.harness.together import call_together
from worker.ground.db import Database
from worker.jobs import admission, charges
from worker.jobs.admission import ACCOUNT, Caps
from worker.jobs.charges import SETTLE_AFTER, Charge, NewCharge, Source, VoidReason

PRICE = 1_605_000
TENANTS = ("a", "b")
DAY = timedelta(days=1)


@dataclass
class Books:
    """The ledger, and what a reader would expect of it."""

    db: Database
    clock: FakeClock = field(default_factory=FakeClock)
    expected: dict[UUID, int] = field(default_factory=dict)
    """What each attempt counts for once everything due is settled."""

    def reserve(self, tenant: str, estimate: int | None, *, lost: bool = False) -> UUID:
        price = None if estimate is None else PRICE
        cost = None if estimate is None else estimate * PRICE
        attempt_id, units = uuid7(), estimate or 1
        new = NewCharge(attempt_id, uuid7(), tenant, self.clock(), units, None, price, cost)
        with self.locked() as connection:
            (charges.note_unreserved if lost else charges.reserve)(connection, new)
        return attempt_id

    def find(self, attempt_id: UUID) -> Charge:
        with self.db.reading() as connection:
            found = charges.find_charge(connection, attempt_id)
        assert found is not None
        return found

    @contextmanager
    def locked(self):
        with self.db.transaction() as connection:
            admission.begin_admission(connection)
            admission.lock_account(connection, Caps(1))
            yield connection

    def settle(self, limit: int = 100) -> int:
        with self.locked() as connection:
            return charges.settle_due(connection, self.clock(), limit)

    def settle_all(self) -> None:
        while self.settle(2):
            pass

    def spent(self, day: str | None = None) -> dict[str, int]:
        with self.db.reading() as connection:
            return dict(charges.read_spent(connection, day or admission.name_day(self.clock())))

    def check(self) -> None:
        """By day and scope, without exception."""
        with self.db.reading() as connection:
            spent = read_spend(connection)
            summed = {ACCOUNT: dict(charges.sum_days(connection))}
            for tenant in TENANTS:
                summed[f"tenant:{tenant}"] = dict(charges.sum_days(connection, tenant))
        assert all(amount >= 0 for amount in spent.values()), spent
        flat = {(scope, day): n for scope, days in summed.items() for day, n in days.items()}
        assert Counter(spent) == Counter(flat)


def read_spend(connection: Connection) -> dict[tuple[str, str], int]:
    rows = connection.execute(text("SELECT scope, day, nano_usd FROM spend"))
    return {(str(row.scope), str(row.day)): int(row.nano_usd) for row in rows}


@pytest.fixture
def books(db) -> Books:
    return Books(db)


def note(books: Books, what: str, attempt_id: UUID, amount: int) -> None:
    now = books.clock()
    with books.db.transaction() as connection:
        match what:
            case "void":
                charges.void(connection, attempt_id, VoidReason.SERVER_ERROR, now)
            case "unvoid":
                charges.unvoid(connection, attempt_id, now)
            case "units":
                charges.note_units(connection, attempt_id, str(amount), amount * PRICE, now)
            case "result":
                charges.note_result_units(connection, attempt_id, Decimal(amount), now)
            case "bill":
                charges.note_bill(connection, attempt_id, None, amount * PRICE, now)


NOTES = ("void", "unvoid", "units", "result", "bill")
STEPS = st.one_of(
    st.tuples(st.just("reserve"), st.sampled_from(TENANTS), st.none() | st.integers(0, 500)),
    st.tuples(st.just("lost"), st.sampled_from(TENANTS), st.none() | st.integers(0, 500)),
    st.tuples(st.sampled_from(NOTES), st.integers(0, 99), st.integers(0, 2000)),
    st.tuples(st.just("settle"), st.integers(1, 3), st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 200), st.just(0)),
)


@dataclass
class Expected:
    """What one attempt counts for, by the rules of the design alone."""

    estimate: int
    price: int | None
    is_void: bool = False
    bill: int | None = None
    is_of_events: bool = False

    def take(self, what: str, amount: int) -> None:
        if what in ("void", "unvoid"):
            self.is_void = what == "void"
        elif what == "bill":
            self.bill, self.is_of_events = amount * PRICE, True
        elif self.bill is None and (what == "units" or self.price is not None):
            self.bill = amount * PRICE

    @property
    def amount(self) -> int:
        if self.bill is not None:
            return self.bill
        return 0 if self.is_void else self.estimate


@pytest.mark.both_databases
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=40))
def test_totals_are_the_sums_of_charges_after_every_step(books, steps):
    empty(books.db)
    books.clock = FakeClock()
    known: list[tuple[UUID, Expected]] = []
    for what, one, two in steps:
        if what in ("reserve", "lost"):
            attempt_id = books.reserve(one, two, lost=what == "lost")
            price = None if two is None else PRICE
            known.append((attempt_id, Expected((two or 0) * PRICE, price)))
        elif what == "settle":
            books.settle(one)
        elif what == "wait":
            books.clock.move(timedelta(hours=one))
        elif known:
            attempt_id, expected = known[one % len(known)]
            note(books, what, attempt_id, two)
            expected.take(what, two)
        books.check()
    books.settle_all()
    books.check()
    for attempt_id, expected in known:
        charge = books.find(attempt_id)
        assert charge.counted_nano_usd == charge.amount == expected.amount
        is_void = expected.is_void and expected.bill is None
        assert (charge.voided_at is not None) == is_void
        assert charge.voided_at is None or charge.settled_at is None
    books.clock.move(SETTLE_AFTER)
    books.settle_all()
    books.check()
    assert all(is_closed(books.find(attempt_id)) for attempt_id, _ in known)


def is_closed(charge: Charge) -> bool:
    """Settled or void, one of the two, and nothing is due any more."""
    return charge.due_at is None and (charge.settled_at is None) != (charge.voided_at is None)


def empty(db: Database) -> None:
    with db.transaction() as connection:
        for name in ("charges", "spend", "limits"):
            connection.execute(text(f"DELETE FROM {name}"))


@pytest.mark.both_databases
def test_reopened_charge_counts_on_the_day_of_its_admission(books):
    attempt_id = books.reserve("a", 112)
    day = admission.name_day(books.clock())
    note(books, "void", attempt_id, 0)
    books.settle_all()
    assert books.spent(day) == {ACCOUNT: 0, "tenant:a": 0}
    books.clock.move(2 * DAY)
    note(books, "unvoid", attempt_id, 0)
    books.settle_all()
    assert books.spent(day) == {ACCOUNT: 112 * PRICE, "tenant:a": 112 * PRICE}
    assert books.spent() == {}
    charge = books.find(attempt_id)
    assert (charge.voided_at, charge.settled_at) == (None, None)
    assert charge.due_at == charge.admitted_at + SETTLE_AFTER


@pytest.mark.both_databases
def test_bill_above_the_reservation_is_recorded_whole(books):
    attempt_id = books.reserve("a", 1)
    note(books, "bill", attempt_id, 1000)
    books.settle_all()
    assert books.spent() == {ACCOUNT: 1000 * PRICE, "tenant:a": 1000 * PRICE}
    assert books.find(attempt_id).source == Source.BILLING_EVENTS


def test_estimate_that_has_come_true_gives_way_to_all_that_is_learnt(books):
    """It is no bill: what is known for sure replaces it, and what is void costs nothing."""
    attempt_id = books.reserve("a", 112)
    books.clock.move(SETTLE_AFTER)
    books.settle_all()
    assert books.find(attempt_id).source == Source.ESTIMATE
    note(books, "void", attempt_id, 0)
    books.settle_all()
    charge = books.find(attempt_id)
    assert (charge.source, charge.settled_at) == (None, None)
    assert charge.voided_at == books.clock()
    assert charge.counted_nano_usd == 0
    note(books, "result", attempt_id, 7)
    books.settle_all()
    charge = books.find(attempt_id)
    assert (charge.source, charge.counted_nano_usd) == (Source.UNITS, 7 * PRICE)


def test_units_of_a_result_are_priced_as_at_admission_and_never_over_a_bill(books):
    priced, unpriced = books.reserve("a", 112), books.reserve("a", None)
    with books.db.transaction() as connection:
        now = books.clock()
        assert charges.note_result_units(connection, priced, Decimal("1.5"), now)
        assert not charges.note_result_units(connection, priced, Decimal(9), now)
        assert not charges.note_result_units(connection, unpriced, Decimal(9), now)
        assert not charges.note_result_units(connection, uuid7(), Decimal(9), now)
    books.settle_all()
    charge = books.find(priced)
    assert (charge.billed_units, charge.billed_nano_usd) == ("1.5", 2_407_500)
    note(books, "bill", priced, 3)
    note(books, "units", priced, 9)
    books.settle_all()
    assert books.find(priced).counted_nano_usd == 3 * PRICE


@pytest.mark.both_databases
def test_workers_that_reserve_and_settle_at_once_lose_nothing(books):
    ids = [books.reserve(TENANTS[n % 2], 10) for n in range(20)]

    def work(number: int) -> None:
        with closing(
            Database(str(books.db.engine.url.render_as_string(hide_password=False)))
        ) as db:
            own = Books(db, books.clock)
            for attempt_id in ids[number::4]:
                note(own, "bill", attempt_id, number)
                own.settle(3)
                own.reserve("a", 5)

    call_together(*[lambda number=number: work(number) for number in range(4)])
    books.settle_all()
    books.check()
    billed = sum(number * PRICE * 5 for number in range(4))
    assert books.spent()[ACCOUNT] == billed + 20 * 5 * PRICE
