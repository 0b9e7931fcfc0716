"""What jobs have cost: the price once an hour, fal's bills, and both held against each other."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.emulator.processes import Emulator
from tests.harness.clock import FakeClock
from tests.harness.fal import show_status
from tests.harness.jobs import ENDPOINT, build_result, read_job
from tests.harness.stages import Bench, build_completion, build_failure
from tests.harness.together import call_together
from tests.harness.web import break_off, send_body, send_json
from worker.fal.billing import BillingClient
from worker.fal.requests import RequestClient, Unclear
from worker.ground.clock import read_clock
from worker.ground.errors import BillingRefusedError, BillingUnavailableError
from worker.jobs import admission, charges
from worker.jobs.admission import ACCOUNT, Caps
from worker.jobs.attempts import note_progress
from worker.jobs.charges import Charge, CostKey, Price, Source
from worker.jobs.states import JobState
from worker.ops.spend import (
    BILLS_PAUSE,
    PRICE_PAUSE,
    PRICE_RETRY,
    REFUSED_PAUSE,
    fetch_bills,
    fetch_units,
    list_costs,
    reconcile,
    refresh_price,
)
from worker.stages.admit import AdmissionPolicy
from worker.stages.submit import Submission
from worker.stages.sweep import settle_charges

PRICE = 1_605_000
# 121 frames of 1280x720.
UNITS = 112
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


@pytest.fixture
def bench(bench: Bench) -> Bench:
    """Its clock shows the emulator's time, and each attempt reserves its estimate."""
    policy = AdmissionPolicy(Caps(1000), ENDPOINT, PRICE)
    terms = replace(bench.submit_policy, admission=policy)
    return replace(bench, clock=FakeClock(read_clock()), submit_policy=terms)


@pytest.fixture
def billing(emulator) -> Iterator[BillingClient]:
    with closing(BillingClient(f"{emulator.url}/v1", SecretStr("emulator-admin"))) as client:
        yield client


@pytest.fixture
def keyless(emulator) -> Iterator[BillingClient]:
    """One with the key that submits: it may not read bills."""
    with closing(BillingClient(f"{emulator.url}/v1", SecretStr("emulator-key"))) as client:
        yield client


def buy(bench: Bench, emulator: Emulator) -> tuple[Submission, int]:
    """A job whose request has ended well at the emulator, and its units."""
    submission = bench.begin(bench.insert())
    request_id = emulator.submit()
    units = int(emulator.get_result(request_id).headers["X-Fal-Billable-Units"])
    bench.accept(submission, request_id)
    bench.deliver(submission, build_completion(request_id))
    return submission, units


def find_charge(bench: Bench, submission: Submission) -> Charge:
    with bench.db.reading() as connection:
        found = charges.find_charge(connection, submission.attempt.id)
    assert found is not None
    return found


def find_request_id(bench: Bench, submission: Submission) -> str:
    return str(bench.read(submission.job).fal_request_id)


def settle(bench: Bench) -> None:
    settle_charges(bench.submit_policy.admission, db=bench.db, clock=bench.clock)


def spent(bench: Bench, submission: Submission) -> int:
    with bench.db.reading() as connection:
        day = admission.name_day(submission.attempt.started_at)
        return charges.read_spent(connection, day)[ACCOUNT]


# ------------------------------------------------------------------ the price


def refresh(bench: Bench, client: BillingClient) -> Price | None:
    return refresh_price(client, ENDPOINT, db=bench.db, clock=bench.clock)


@pytest.mark.both_databases
def test_price_is_read_once_an_hour(bench, billing):
    price = refresh(bench, billing)
    assert price == Price(ENDPOINT, "megapixel", PRICE, bench.clock())
    for _ in range(int(PRICE_PAUSE / MINUTE) - 1):
        bench.clock.move(MINUTE)
        assert refresh(bench, billing) is None
    bench.clock.move(MINUTE)
    assert refresh(bench, billing) == Price(ENDPOINT, "megapixel", PRICE, bench.clock())


@pytest.mark.both_databases
def test_price_is_read_by_one_of_two_workers_at_once(bench, billing):
    read = call_together(*[lambda: refresh(bench, billing)] * 2)
    assert sum(one is not None for one in read) == 1


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "code": 503}, {"kind": "status", "code": 403}, {"kind": "drop"}]
)
def test_price_that_cannot_be_read_is_tried_again_in_a_minute(bench, emulator, billing, fault):
    emulator.order({"point": "pricing", **fault})
    with capture_logs() as logs:
        assert refresh(bench, billing) is None
        assert refresh(bench, billing) is None
    assert [one["event"] for one in logs] == ["price_not_read"]
    emulator.order()
    bench.clock.move(PRICE_RETRY)
    assert refresh(bench, billing) is not None


def test_price_that_cannot_be_read_again_stays_as_it_was(bench, emulator, billing):
    known = refresh(bench, billing)
    emulator.order({"point": "pricing", "kind": "status", "code": 503})
    bench.clock.move(PRICE_PAUSE)
    assert refresh(bench, billing) is None
    with bench.db.reading() as connection:
        assert charges.find_price(connection, ENDPOINT) == known


# ------------------------------------------------------------------ bills


def fetch(bench: Bench, client: BillingClient) -> int:
    bench.clock.move(BILLS_PAUSE)
    return fetch_bills(client, db=bench.db, clock=bench.clock)


@pytest.mark.both_databases
def test_bill_settles_its_charge_and_is_not_asked_for_again(bench, emulator, billing):
    submission, units = buy(bench, emulator)
    assert fetch(bench, billing) == 1
    settle(bench)
    charge = find_charge(bench, submission)
    assert (charge.source, charge.settled_at) == (Source.BILLING_EVENTS, bench.clock())
    assert (charge.billed_units, charge.billed_nano_usd) == (str(units), units * PRICE)
    assert spent(bench, submission) == units * PRICE
    assert fetch(bench, billing) == 0


def test_bills_are_fetched_once_a_minute(bench, emulator, billing):
    assert fetch(bench, billing) == 0
    buy(bench, emulator)
    bench.clock.move(BILLS_PAUSE - timedelta(seconds=1))
    assert fetch_bills(billing, db=bench.db, clock=bench.clock) == 0
    assert fetch(bench, billing) == 1


@pytest.mark.both_databases
def test_bills_are_fetched_by_one_of_two_workers_at_once(bench, emulator, billing):
    submission, units = buy(bench, emulator)
    bench.clock.move(BILLS_PAUSE)
    assert sorted(
        call_together(*[lambda: fetch_bills(billing, db=bench.db, clock=bench.clock)] * 2)
    ) == [0, 1]
    call_together(*[lambda: settle(bench)] * 2)
    assert spent(bench, submission) == units * PRICE


def test_late_bill_is_fetched_once_it_is_there(bench, emulator, billing):
    submission, units = buy(bench, emulator)
    emulator.order({"point": "billing", "kind": "lag", "seconds": 3600})
    assert fetch(bench, billing) == 0
    settle(bench)
    assert find_charge(bench, submission).source is None
    assert spent(bench, submission) == UNITS * PRICE
    emulator.order()
    assert fetch(bench, billing) == 1
    settle(bench)
    assert spent(bench, submission) == units * PRICE


def test_bill_replaces_units_and_reopens_what_was_void(bench, emulator, billing):
    submission, units = buy(bench, emulator)
    with bench.db.transaction() as connection:
        now = bench.clock()
        charges.note_result_units(connection, submission.attempt.id, Decimal(3), now)
    void = bench.begin(bench.insert())
    request_id = emulator.submit()
    emulator.get_result(request_id)
    bench.accept(void, request_id)
    bench.deliver(void, build_failure(request_id, "internal_error", "broken"))
    settle(bench)
    assert spent(bench, submission) == 3 * PRICE
    assert fetch(bench, billing) == 2
    settle(bench)
    assert spent(bench, submission) == 2 * units * PRICE
    assert find_charge(bench, void).voided_at is None


def test_without_an_admin_key_bills_are_tried_once_an_hour(bench, emulator, keyless, billing):
    buy(bench, emulator)
    with capture_logs() as logs:
        assert fetch(bench, keyless) == 0
        assert fetch(bench, billing) == 0
    assert [one["event"] for one in logs] == ["bills_refused"]
    bench.clock.move(REFUSED_PAUSE)
    assert fetch(bench, billing) == 1


def test_bills_that_cannot_be_read_are_fetched_the_next_minute(bench, emulator, billing):
    buy(bench, emulator)
    emulator.order({"point": "billing", "kind": "status", "code": 503})
    with capture_logs() as logs:
        assert fetch(bench, billing) == 0
    assert [one["event"] for one in logs] == ["bills_unavailable"]
    emulator.order()
    assert fetch(bench, billing) == 1


# ------------------------------------------------------------------ units of a result


def fetch_own(bench: Bench, submission: Submission, requests: RequestClient | None = None) -> None:
    job = read_job(bench.db, submission.job.id)
    fetch_units(job, requests=requests or bench.requests, db=bench.db, clock=bench.clock)
    settle(bench)


@pytest.mark.both_databases
def test_units_of_the_result_settle_the_charge_at_the_price_of_then(bench, emulator):
    submission, units = buy(bench, emulator)
    with closing(RequestClient(emulator.url, SecretStr("emulator-key"))) as requests:
        fetch_own(bench, submission, requests)
    charge = find_charge(bench, submission)
    assert (charge.source, charge.billed_units) == (Source.UNITS, str(units))
    assert spent(bench, submission) == units * PRICE


def make_finished(bench: Bench) -> Submission:
    submission = bench.begin(bench.insert())
    bench.accept(submission, "request-of-a-script")
    bench.deliver(submission, build_completion("request-of-a-script"))
    return submission


def send_units(units: str) -> object:
    return send_json(build_result(), 200, **{"X-Fal-Billable-Units": units})


def test_units_are_read_by_one_request_and_only_while_there_is_no_bill(bench, desk):
    submission = make_finished(bench)
    desk.result = send_units("7")
    fetch_own(bench, submission)
    fetch_own(bench, submission)
    assert desk.count("GET") == 1
    assert spent(bench, submission) == 7 * PRICE


@pytest.mark.parametrize(
    "answer",
    [
        send_json(build_result()),
        send_units("many"),
        send_json({"detail": "no"}, 404),
        send_json({}, 500, **{"X-Fal-Billable-Units": "9"}),
        send_body(b"x" * 2_000_000, 200, **{"X-Fal-Billable-Units": "9"}),
        break_off(),
    ],
)
def test_units_that_cannot_be_read_change_nothing(bench, desk, answer):
    submission = make_finished(bench)
    before = find_charge(bench, submission)
    desk.result = answer
    with capture_logs() as logs:
        fetch_own(bench, submission)
    assert find_charge(bench, submission) == before
    assert [(one["event"], one["log_level"]) for one in logs] == [("units_not_read", "debug")]


def test_units_of_an_attempt_without_a_price_are_not_asked_for(bench, desk):
    bare = replace(bench.submit_policy, admission=AdmissionPolicy(Caps(1000), ENDPOINT))
    bench = replace(bench, submit_policy=bare)
    submission = make_finished(bench)
    fetch_own(bench, submission)
    assert desk.count("GET") == 0


def test_result_that_a_poll_reads_brings_its_units(bench, desk):
    submission = bench.begin(bench.insert())
    bench.accept(submission, "request-of-a-script")
    desk.status, desk.result = show_status("COMPLETED"), send_units("7")
    bench.reconcile(bench.read(submission.job))
    settle(bench)
    assert find_charge(bench, submission).source == Source.UNITS
    assert spent(bench, submission) == 7 * PRICE


def test_key_goes_to_fal_alone_for_units_too(bench, desk):
    """As for the result itself: another host's URL is not followed."""
    submission = make_finished(bench)
    [attempt] = bench.attempts(submission.job)
    foreign = replace(attempt, response_url="https://queue.fal.invalid/requests/x")
    desk.result = send_units("7")
    assert bench.requests.read_billable_units(foreign, "x") == 7
    assert desk.asked[-1].path.endswith("/requests/x")
    assert isinstance(
        RequestClient("http://127.0.0.1:9", SecretStr("k")).read_billable_units(attempt, "x"),
        Unclear,
    )


# ------------------------------------------------------------------ the ledger against the bills


def hold(bench: Bench, client: BillingClient, since: timedelta = DAY) -> list[tuple[str, str]]:
    policy, now = bench.submit_policy.admission, bench.clock()
    found = reconcile(client, policy, now - since, db=bench.db, clock=bench.clock)
    return [(one.kind, one.fal_request_id) for one in found]


@pytest.fixture
def own_bill(monkeypatch, emulator) -> set[str]:
    """The emulator is shared by tests: only these of its requests are on the bill."""
    wanted: set[str] = set()
    read = BillingClient.list_all_bills

    def list_own(*arguments: object) -> object:
        bills = read(*arguments)  # type: ignore[arg-type]
        return {name: bill for name, bill in bills.items() if name in wanted}

    monkeypatch.setattr(BillingClient, "list_all_bills", list_own)
    return wanted


@pytest.mark.both_databases
def test_open_reservation_is_no_difference_and_is_settled_by_its_bill(
    bench, emulator, billing, own_bill
):
    submission, units = buy(bench, emulator)
    own_bill.add(find_request_id(bench, submission))
    assert hold(bench, billing) == []
    assert spent(bench, submission) == units * PRICE
    assert hold(bench, billing) == []


@pytest.mark.both_databases
def test_each_difference_is_named_and_taken_over(bench, emulator, billing, own_bill):
    other, units = buy(bench, emulator)
    void, _ = buy(bench, emulator)
    with bench.db.transaction() as connection:
        now = bench.clock()
        charges.note_result_units(connection, other.attempt.id, Decimal(3), now)
        charges.void(connection, void.attempt.id, charges.VoidReason.SERVER_ERROR, now)
    settle(bench)
    unknown = emulator.submit()
    emulator.get_result(unknown)
    ids = [find_request_id(bench, one) for one in (other, void)]
    own_bill.update({*ids, unknown})
    expected = {
        ("other_amount", ids[0]),
        ("billed_though_void", ids[1]),
        ("unknown_request", unknown),
    }
    assert set(hold(bench, billing)) == expected
    assert spent(bench, other) == 2 * units * PRICE
    # What is ours agrees from then on.
    assert hold(bench, billing) == [("unknown_request", unknown)]


def test_two_that_reconcile_at_once_count_each_bill_once(bench, emulator, billing, own_bill):
    bought = [buy(bench, emulator) for _ in range(3)]
    own_bill.update(find_request_id(bench, one) for one, _ in bought)
    assert call_together(*[lambda: hold(bench, billing)] * 2) == [[], []]
    assert spent(bench, bought[0][0]) == sum(units for _, units in bought) * PRICE


def test_bill_above_the_reservation_is_a_difference_only_once_settled(
    bench, emulator, billing, own_bill
):
    submission, units = buy(bench, emulator)
    own_bill.add(find_request_id(bench, submission))
    assert hold(bench, billing) == []
    emulator.order({"point": "billing", "kind": "surcharge", "units": 1000})
    assert hold(bench, billing) == [("other_amount", find_request_id(bench, submission))]
    assert spent(bench, submission) == (units + 1000) * PRICE


@pytest.mark.both_databases
def test_what_counts_without_a_bill_a_day_after_its_run_is_a_difference(
    bench, emulator, billing, own_bill
):
    submission, _ = buy(bench, emulator)
    with bench.db.transaction() as connection:
        now = bench.clock()
        charges.note_result_units(connection, submission.attempt.id, Decimal(3), now)
    settle(bench)
    assert hold(bench, billing, 7 * DAY) == []
    bench.clock.move(DAY)
    unbilled = ("no_bill", find_request_id(bench, submission))
    assert hold(bench, billing, 7 * DAY) == [unbilled]
    assert hold(bench, billing, timedelta(hours=1)) == []
    # No event is no proof that nothing is charged: it counts as before.
    assert spent(bench, submission) == 3 * PRICE
    own_bill.add(unbilled[1])
    assert hold(bench, billing, 7 * DAY) == [("other_amount", unbilled[1])]


def test_reconciling_without_an_admin_key_or_an_answer_fails(bench, emulator, billing, keyless):
    with pytest.raises(BillingRefusedError):
        hold(bench, keyless)
    emulator.order({"point": "billing", "kind": "status", "code": 503})
    with pytest.raises(BillingUnavailableError):
        hold(bench, billing)


def test_reconciling_reaches_back_further_than_one_listing_of_fals(
    bench, emulator, billing, own_bill
):
    submission, _ = buy(bench, emulator)
    own_bill.add(find_request_id(bench, submission))
    assert hold(bench, billing, 365 * DAY) == []


# ------------------------------------------------------------------ what was spent


def test_costs_say_what_is_reserved_settled_void_and_without_a_price(bench):
    for name in "aab":
        bench.insert(tenant=name, labels={"show": name, "kind": "x"})
    begun = [bench.try_begin(None) for _ in range(3)]
    [settled, _], [void] = (
        [one for one in begun if one is not None and one.job.tenant == name] for name in "ab"
    )
    bare = replace(bench.submit_policy, admission=AdmissionPolicy(Caps(1000), ENDPOINT))
    replace(bench, submit_policy=bare).begin(
        bench.insert(tenant="b", labels={"show": "b", "kind": "x"})
    )
    with bench.db.transaction() as connection:
        now = bench.clock()
        charges.note_bill(connection, settled.attempt.id, "7", 7 * PRICE, now)
        charges.void(connection, void.attempt.id, charges.VoidReason.REFUSED, now)
    settle(bench)

    def list_by(key: CostKey) -> dict[str, tuple[int, int, int, int, int]]:
        lines, _ = list_costs(key, None, db=bench.db)
        return {
            one.key: (
                one.attempts,
                one.settled_nano_usd // PRICE,
                one.reserved_nano_usd // PRICE,
                one.voided,
                one.unpriced,
            )
            for one in lines
        }

    assert list_by(CostKey.TENANT) == {"a": (2, 7, UNITS, 0, 0), "b": (2, 0, 0, 1, 1)}
    assert list_by(CostKey.DAY) == {admission.name_day(bench.clock()): (4, 7, UNITS, 1, 1)}
    assert list_by(CostKey.LABEL) == {
        "show=a": (2, 7, UNITS, 0, 0),
        "show=b": (2, 0, 0, 1, 1),
        "kind=x": (4, 7, UNITS, 1, 1),
    }
    assert list_by(CostKey.STATE) == {"submitting": (4, 7, UNITS, 1, 1)}
    bench.clock.move(charges.SETTLE_AFTER)
    settle(bench)
    # An estimate that never was does not become a cost of nothing.
    assert list_by(CostKey.TENANT) == {"a": (2, 7 + UNITS, 0, 0, 0), "b": (2, 0, 0, 1, 1)}


# ------------------------------------------------------------------ cancelled at fal


REQUESTED = send_json({"status": "CANCELLATION_REQUESTED"}, 202)
CANCELLED = {"error": "cancelled", "error_type": "client_cancelled"}


@pytest.mark.parametrize(
    ("cancel", "status", "is_free"),
    [
        (send_json({"status": "OK"}), show_status("IN_PROGRESS"), True),
        (REQUESTED, show_status("COMPLETED", metrics={"inference_time": 0}, **CANCELLED), True),
        (REQUESTED, show_status("COMPLETED", metrics={"inference_time": 2.5}, **CANCELLED), False),
        (REQUESTED, show_status("COMPLETED", metrics={}, **CANCELLED), False),
        (REQUESTED, show_status("COMPLETED", metrics={"inference_time": 0}), False),
        (REQUESTED, show_status("IN_PROGRESS"), False),
        (REQUESTED, break_off(), False),
        (send_json({"status": "ALREADY_COMPLETED"}, 400), show_status("IN_PROGRESS"), False),
    ],
)
def test_only_a_request_that_was_removed_before_it_ran_is_free(
    bench, desk, cancel, status, is_free
):
    """Fal may answer alike for one that runs; what it may have run counts until a bill says no."""
    submission = bench.begin(bench.insert())
    bench.accept(submission, "request-of-a-script")
    desk.cancel, desk.status = cancel, status
    bench.cancel(submission.job)
    bench.cancel_requests(submission.job)
    settle(bench)
    charge = find_charge(bench, submission)
    assert (charge.void_reason == charges.VoidReason.REMOVED) == is_free
    assert spent(bench, submission) == (0 if is_free else UNITS * PRICE)


def test_result_of_a_run_that_was_taken_for_removed_counts_again(bench, desk):
    submission = bench.begin(bench.insert())
    bench.accept(submission, "request-of-a-script")
    desk.cancel = REQUESTED
    desk.status = show_status("COMPLETED", metrics={"inference_time": 0}, **CANCELLED)
    bench.cancel(submission.job)
    bench.cancel_requests(submission.job)
    settle(bench)
    bench.deliver(submission, build_completion("request-of-a-script"))
    settle(bench)
    assert find_charge(bench, submission).voided_at is None
    assert spent(bench, submission) == UNITS * PRICE


def test_timed_out_request_that_ran_for_no_time_has_never_started(bench):
    """Whoever followed the job has noted the time that its status gives: zero."""
    submission = bench.begin(bench.insert())
    bench.accept(submission, "request-of-a-script")
    with bench.db.transaction() as connection:
        note_progress(
            connection,
            submission.attempt.id,
            fal_status="COMPLETED",
            queue_position=None,
            inference_seconds=0.0,
            logs=None,
        )
    bench.deliver(submission, build_failure("request-of-a-script", "request_timeout", "late"))
    settle(bench)
    assert bench.read(submission.job).state is JobState.QUEUED
    assert spent(bench, submission) == 0
