"""The judge sees what it is there to see: no experiment could fail otherwise."""

import hashlib
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from tests.chaos.judge import (
    CALLER_GONE,
    check_answers,
    check_archive,
    check_cap,
    check_charges,
    check_logs,
    describe_strays,
    find_lost,
    list_tracebacks,
    read_charges,
)
from tests.chaos.outages import measure_recovery
from tests.chaos.report import Finding, render_table, write_table

JOB, OTHER = uuid4(), uuid4()
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def build_ledger(*charges: int) -> dict[str, object]:
    return {"by_input": [{"prompt": f"chaos {JOB}", "charges": charge} for charge in charges]}


def test_job_without_row_is_lost() -> None:
    assert find_lost({JOB: {"state": "archived"}}, [JOB, OTHER]) == [OTHER]


@pytest.mark.parametrize("state", ["queued", "submission_unknown", "failed", "cancelled"])
def test_job_that_is_not_archived_is_lost(state) -> None:
    assert find_lost({JOB: {"state": state}}, [JOB]) == [JOB]


def test_charges_of_one_job_are_added_up_over_its_inputs() -> None:
    assert read_charges(build_ledger(1, 1)) == {JOB: 2}
    assert read_charges(build_ledger(1, 0)) == {JOB: 1}


def test_archived_job_that_nobody_paid_is_told() -> None:
    assert list(check_charges({JOB: {"state": "archived"}}, {JOB: 0}))
    assert not list(check_charges({JOB: {"state": "archived"}}, {JOB: 1}))


def test_charge_for_nobody_is_told() -> None:
    assert list(check_charges({}, {JOB: 1}))


def test_stray_job_is_told_unless_it_is_archived() -> None:
    assert list(describe_strays({JOB: {"state": "submitting"}}, []))
    assert not list(describe_strays({JOB: {"state": "archived"}}, []))


def test_more_requests_at_once_than_are_allowed_are_told() -> None:
    assert list(check_cap({"most_at_once": 21}, 20))
    assert not list(check_cap({"most_at_once": 20}, 20))


def test_file_that_is_missing_or_another_is_told(tmp_path) -> None:
    path = tmp_path / "a video.mp4"
    digest = hashlib.sha256(b"video").hexdigest()
    row = {"id": JOB, "state": "archived", "archive_uri": path.as_uri(), "archive_sha256": digest}
    assert list(check_archive([row]))
    path.write_bytes(b"vide")
    assert list(check_archive([row]))
    path.write_bytes(b"video")
    assert not list(check_archive([row]))


@pytest.mark.parametrize(("answer", "is_told"), [(500, True), (502, True), (503, False)])
def test_broken_receiver_is_told(answer, is_told) -> None:
    request = {"request_id": "r", "deliveries": [{"status_code": answer}]}
    assert bool(list(check_answers([request]))) == is_told


def test_traceback_is_told_by_its_last_line_whether_in_json_or_not() -> None:
    plain = 'Traceback (most recent call last):\n  File "a.py"\nValueError: plain\n'
    log = plain + '{"exception": "' + plain.replace("\n", "\\n") + '"}\n'
    assert [end[:17] for end in list_tracebacks(log)] == ["ValueError: plain"] * 2


def test_traceback_about_the_broker_is_celerys_own() -> None:
    log = (
        'Traceback (most recent call last):\n  File "redis/connection.py"\nConnectionError: gone\n'
    )
    assert not list(list_tracebacks(log))


def test_caller_that_was_killed_is_no_fault_of_the_emulator_but_of_anybody_else(tmp_path) -> None:
    lines = ["Traceback (most recent call last):", '  File "web.py"']
    (tmp_path / "emulator.log").write_text("\n".join([*lines, CALLER_GONE]))
    assert not list(check_logs(tmp_path))
    (tmp_path / "receiver.log").write_text("\n".join([*lines, CALLER_GONE]))
    assert list(check_logs(tmp_path)) == [f"receiver log, 1 times: {CALLER_GONE}"]
    (tmp_path / "emulator.log").write_text("\n".join([*lines, "KeyError: 'a'"]))
    assert len(list(check_logs(tmp_path))) == 2


def test_recovery_is_measured_from_the_end_of_the_outage() -> None:
    steady = [NOON + timedelta(seconds=n / 10) for n in range(40)]
    began, ended = NOON + timedelta(seconds=4), NOON + timedelta(seconds=9)
    back = [ended + timedelta(seconds=3 + n / 10) for n in range(40)]
    recovery = measure_recovery([*steady, *back], began, ended)
    assert recovery is not None
    assert timedelta(seconds=3) < recovery < timedelta(seconds=4)
    assert measure_recovery(steady, began, ended) is None
    assert measure_recovery(back, began, ended) is None


def test_table_replaces_what_stands_between_the_marks(tmp_path) -> None:
    document = tmp_path / "reliability.md"
    document.write_text("a\n<!-- begin of chaos table -->\nold\n<!-- end of chaos table -->\nb\n")
    finding = Finding("kill sweep", "SQLite", 1200, 1000, 0, 0, 12.34, problems=["x"])
    write_table([finding], "python -m tests.chaos", document)
    written = document.read_text()
    assert written.startswith("a\n<!-- begin")
    assert written.endswith("<!-- end of chaos table -->\nb\n")
    assert "old" not in written
    assert "`python -m tests.chaos`, 20" in written
    assert render_table([finding]) in written
    assert "1,200 | 1,000 | 0    | 0          | 12.3 " in written


def test_table_without_marks_is_refused(tmp_path) -> None:
    document = tmp_path / "reliability.md"
    document.write_text("no marks")
    with pytest.raises(ValueError, match="marks"):
        write_table([], "python -m tests.chaos", document)
    assert document.read_text() == "no marks"


def test_finding_with_a_problem_is_not_clean() -> None:
    finding = Finding("a", "b", 1, 0, 0, 0, 0.0)
    assert finding.is_clean
    assert not Finding("a", "b", 1, 0, 0, 0, 0.0, problems=["p"]).is_clean
    assert not Finding("a", "b", 1, 0, 1, 0, 0.0).is_clean
    assert not Finding("a", "b", 1, 0, 0, 1, 0.0).is_clean
