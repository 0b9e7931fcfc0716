"""What the doctor finds in caps, charges, totals and budgets; what admission does is sound."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from tests.harness.jobs import ENDPOINT
from tests.harness.stages import SECOND, Bench, build_completion
from tests.integration.test_doctor import TERMS, open_here
from worker.fal.submit import Accepted, RefusalClass, Refused
from worker.jobs import admission, charges, ledger
from worker.jobs.admission import ACCOUNT, Caps
from worker.jobs.checks import Check, Finding
from worker.ops.doctor import examine
from worker.stages.admit import AdmissionPolicy
from worker.stages.submit import Submission, begin_submission
from worker.stages.sweep import settle_charges

pytestmark = pytest.mark.both_databases
PRICE, UNITS = 1_605_000, 112
COST = PRICE * UNITS
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch) -> None:
    monkeypatch.setattr(ledger, "SLICE", 2)


def under(bench: Bench, cap: int = 1000, price: int | None = PRICE, **caps: int) -> Bench:
    policy = AdmissionPolicy(Caps(cap, **caps), ENDPOINT, price)
    return replace(bench, submit_policy=replace(bench.submit_policy, admission=policy))


def admit(bench: Bench, **columns: Any) -> Submission:
    bench.insert(**columns)
    bench.observe()
    bench.clock.move(SECOND)
    submission = begin_submission(db=bench.db, policy=bench.submit_policy, clock=bench.clock)
    assert submission is not None
    return submission


def finish(bench: Bench, submission: Submission) -> None:
    request_id = f"request-{submission.attempt.id}"
    bench.reply(submission, Accepted(request_id, None, None, None))
    bench.clock.move(MINUTE)
    bench.deliver(submission, build_completion(request_id))


def settle(bench: Bench) -> None:
    settle_charges(bench.submit_policy.admission, db=bench.db, clock=bench.clock)


def find(bench: Bench) -> list[Finding]:
    options: dict[str, Any] = {"store": open_here(), "platform": None, "clock": bench.clock}
    return examine(db=bench.db, policy=TERMS, **options).findings


def change(bench: Bench, statement: str) -> None:
    with bench.db.transaction() as connection:
        connection.execute(text(statement))


def test_what_admission_and_settling_write_is_sound(bench):
    bench = under(bench, 2, daily_budget_nano_usd=9 * COST)
    for tenant in "aab":
        finish(bench, admit(bench, tenant=tenant))
    refused = admit(bench)
    bench.reply(refused, Refused(RefusalClass.INPUT, 422, "fal_http_422", "no"))
    billed, unknown = admit(bench), admit(bench)
    bench.lose(unknown)
    finish(bench, billed)
    with bench.db.transaction() as connection:
        charges.note_bill(connection, billed.attempt.id, "999", 999 * PRICE, bench.clock())
    settle(bench)
    assert find(bench) == []


def test_one_more_in_flight_than_was_allowed_is_found(bench):
    bench = under(bench, 3)
    for _ in range(3):
        admit(bench)
    assert find(bench) == []
    # As if the last had been admitted by somebody who believed in a cap of two.
    change(bench, "UPDATE attempts SET admitted_cap = 2")
    (found,) = find(bench)
    assert found.check is Check.OVER_CAP
    assert "with it 3 attempts were in flight, and 2 were allowed" in found.detail
    assert found.attempt_id is not None


def test_slots_that_were_free_again_do_not_count(bench):
    bench = under(bench, 1)
    finish(bench, admit(bench))
    lost = admit(bench)
    bench.lose(lost)
    bench.clock.move(timedelta(hours=3))
    busy = admit(bench)
    bench.reply(busy, Refused(RefusalClass.UNREACHABLE, None, "fal_unreachable", "refused"))
    finish(bench, admit(bench))
    assert [one for one in find(bench) if one.check is Check.OVER_CAP] == []


def test_an_attempt_without_a_charge_is_found(bench):
    bench = under(bench)
    admit(bench)
    lost = admit(bench)
    change(bench, f"UPDATE spend SET nano_usd = {COST}")
    with bench.db.transaction() as connection:
        table = charges._CHARGES
        connection.execute(table.delete().where(table.c.attempt_id == lost.attempt.id))
    (found,) = find(bench)
    assert (found.check, found.attempt_id) == (Check.MISSING_CHARGE, lost.attempt.id)


def test_attempts_from_before_there_were_charges_need_none(bench):
    bench = under(bench)
    old = admit(bench)
    admit(bench)
    change(bench, f"UPDATE spend SET nano_usd = {COST}")
    with bench.db.transaction() as connection:
        table = charges._CHARGES
        connection.execute(table.delete().where(table.c.attempt_id == old.attempt.id))
    assert find(bench) == []


@pytest.mark.parametrize("scope", [ACCOUNT, "tenant:a"])
def test_a_total_that_is_not_the_sum_of_its_charges_is_found(bench, scope):
    bench = under(bench)
    admit(bench, tenant="a")
    change(bench, f"UPDATE spend SET nano_usd = nano_usd + 1 WHERE scope = '{scope}'")
    (found,) = find(bench)
    assert found.check is Check.SPEND_DIFFERS
    assert found.detail.startswith(f"{scope} on {admission.name_day(bench.clock())}: spend has ")


def test_a_charge_that_no_total_has_is_found(bench):
    bench = under(bench)
    admit(bench, tenant="a")
    change(bench, "DELETE FROM spend")
    assert [one.check for one in find(bench)] == [Check.SPEND_DIFFERS] * 2


@pytest.mark.parametrize("column", ["account_budget_nano_usd", "tenant_budget_nano_usd"])
def test_an_admission_that_its_budget_forbade_is_found(bench, column):
    bench = under(bench)
    admit(bench)
    change(bench, f"UPDATE charges SET {column} = {COST}")
    assert find(bench) == []
    admit(bench)
    change(bench, f"UPDATE charges SET {column} = {2 * COST - 1}")
    (found,) = find(bench)
    assert found.check is Check.OVER_BUDGET
    assert found.detail.startswith(
        f"with it 0.35952 USD were spent of {'account' if 'account' in column else 'tenant:'}"
    )


def test_a_budget_set_later_or_a_bill_above_its_estimate_forbade_nothing(bench):
    bench = under(bench)
    first, _ = admit(bench, tenant="a"), admit(bench, tenant="a")
    bench = under(bench, daily_budget_nano_usd=3 * COST)
    admit(bench, tenant="a")
    with bench.db.transaction() as connection:
        admission.set_limits(connection, ACCOUNT, {"daily_budget_nano_usd": COST})
        charges.note_bill(connection, first.attempt.id, "999", 999 * PRICE, bench.clock())
    settle(bench)
    assert find(bench) == []
