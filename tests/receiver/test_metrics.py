"""`GET /metrics`: what a scraper reads, from one process or several."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from tests.harness.brokers import find_closed_port
from tests.harness.jobs import make_job
from tests.harness.processes import run_yard
from tests.harness.together import call_together
from tests.harness.waiting import wait_until
from tests.harness.webhooks import build_delivery
from tests.receiver.scene import LIMIT
from tests.receiver.test_process import run_gunicorn
from worker.jobs.states import ENDED, JobEvent, JobState
from worker.ops import metrics

Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(told: str) -> Samples:
    """Each sample by its name and labels, which no two share."""
    samples = [
        ((one.name, tuple(sorted(one.labels.items()))), one.value)
        for family in text_string_to_metric_families(told)
        for one in family.samples
    ]
    assert len(dict(samples)) == len(samples)
    return dict(samples)


def scrape(scene) -> Samples:
    answer = scene.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=")
    return parse(answer.text)


def find(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"extend_video_{name}", tuple(sorted(labels.items()))]


def test_metrics_tell_each_state_outcome_and_reason_even_where_there_is_none(scene) -> None:
    samples = scrape(scene)
    assert [find(samples, "jobs", state=state) for state in JobState] == [0] * len(JobState)
    for reason in JobEvent:
        assert find(samples, "transitions_total", reason=reason) == 0
    for outcome in ("open", "accepted", "rejected", "postponed", "unknown", "dead"):
        assert find(samples, "attempts", outcome=outcome) == 0
    for verdict in ("recorded", "kept", "hint"):
        assert find(samples, "deliveries", verdict=verdict) == 0
    assert find(samples, "database_up") == 1


@pytest.mark.both_databases
def test_metrics_tell_the_table(scene) -> None:
    now = datetime.now(UTC)
    for state in (JobState.QUEUED, JobState.QUEUED, JobState.CANCELLED):
        make_job(scene.db, state, now=now)
    make_job(scene.db, JobState.ARCHIVED, now=now)
    with scene.db.transaction() as connection:
        connection.execute(text("UPDATE attempts SET extra_charge_at = started_at"))
    samples = scrape(scene)
    counts = {state: find(samples, "jobs", state=state) for state in JobState}
    assert {state: n for state, n in counts.items() if n} == {
        JobState.QUEUED: 2,
        JobState.CANCELLED: 1,
        JobState.ARCHIVED: 1,
    }
    assert 0 < find(samples, "oldest_job_seconds", state="queued") < 60
    assert find(samples, "extra_charges") == 1
    assert find(samples, "transitions_total", reason="enqueued") == 4
    assert find(samples, "phase_seconds_count", phase="whole") == 1
    assert find(samples, "phase_seconds_bucket", phase="whole", le="1.0") == 1
    assert find(samples, "phase_seconds_bucket", phase="whole", le="+Inf") == 1


@pytest.mark.both_databases
def test_metrics_are_read_from_a_database_that_takes_no_writes(scene, monkeypatch) -> None:
    monkeypatch.setattr(metrics, "WORTH_KEEPING_SECONDS", 0.0)
    make_job(scene.db, JobState.ARCHIVED, now=datetime.now(UTC))
    engine = scene.receiver.db.engine
    engine.dispose()

    @event.listens_for(engine, "connect")
    def refuse_writes(connection: Any, _record: object) -> None:
        setting = "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
        connection.execute("PRAGMA query_only=ON" if engine.name == "sqlite" else setting).close()
        connection.commit()

    with pytest.raises(DBAPIError), scene.receiver.db.transaction() as connection:
        connection.execute(text("UPDATE jobs SET priority = 1"))
    samples = scrape(scene)
    assert find(samples, "database_up") == 1
    assert find(samples, "jobs", state="archived") == 1
    assert find(samples, "transitions_total", reason="enqueued") == 1


def test_ended_states_have_no_age(scene) -> None:
    samples = scrape(scene)
    told = {
        dict(labels)["state"] for name, labels in samples if name.endswith("oldest_job_seconds")
    }
    assert told == set(JobState) - ENDED


def test_refused_deliveries_are_counted_though_they_leave_no_row(scene, job) -> None:
    def count(verdict: str, code: str = "") -> float:
        key = (("code", code), ("verdict", verdict))
        return scrape(scene).get(("extend_video_received_deliveries_total", key), 0)

    def count_all() -> list[float]:
        recorded, duplicate = count("recorded"), count("duplicate")
        return [recorded, duplicate, count("refused", "invalid_signature")]

    before = count_all()
    delivery = build_delivery()
    scene.post(delivery)
    scene.post(delivery)
    scene.client.post(delivery.path, data=b"{}", headers={})
    assert [now - then for now, then in zip(count_all(), before, strict=True)] == [1, 1, 1]
    assert scene.count("deliveries") == 1


def test_labels_never_hold_what_a_caller_chose(scene) -> None:
    """Else anybody could fill the scraper's memory, and read tokens there."""
    scene.client.get("/a/path/of/theirs")
    scene.client.post("/webhooks/fal/a-token-of-theirs", data=b"x" * (LIMIT + 1))
    told = scene.client.get("/metrics").text
    assert "theirs" not in told
    assert 'extend_video_requests_total{route="none",status="404"}' in told
    refused = 'extend_video_received_deliveries_total{code="request_entity_too_large"'
    assert refused in told


def test_metrics_without_database_say_so_and_are_still_answered(open_scene) -> None:
    address = f"postgresql+psycopg://u:p@127.0.0.1:{find_closed_port()}/x"
    samples = scrape(open_scene(database_url=address))
    assert find(samples, "database_up") == 0
    assert not [name for name, _ in samples if name == "extend_video_jobs"]


def test_metrics_without_tables_say_so(open_scene, tmp_path) -> None:
    samples = scrape(open_scene(database_url=f"sqlite:///{tmp_path / 'empty.db'}"))
    assert find(samples, "database_up") == 0


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=1.0.0", "*/*"])
def test_metrics_come_in_the_form_that_is_asked_for(scene, accept) -> None:
    answer = scene.client.get("/metrics", headers={"Accept": accept})
    assert answer.status_code == 200
    assert ("openmetrics" in answer.content_type) == ("openmetrics" in accept)
    assert "extend_video_jobs" in answer.text


def list_pids(told: str) -> set[str]:
    return {line.partition("pid: ")[2] for line in told.splitlines() if "Booting worker" in line}


@pytest.mark.slow  # starts gunicorn with two workers
def test_two_gunicorn_workers_tell_the_same_and_no_counter_goes_back(
    tmp_path, database_url, db, keys, redis_url
) -> None:
    """A counter that falls is taken for a restart, and its whole value for what has happened."""
    counts, refused = tmp_path / "made-by-the-receiver", 0
    settings = {
        "DATABASE_URL": database_url,
        "BROKER_URL": redis_url,
        "FAL_JWKS_URL": keys.url,
        "PROMETHEUS_MULTIPROC_DIR": str(counts),
    }
    with run_yard(tmp_path) as yard, run_gunicorn(yard, settings, "--workers 2") as client:
        wait_until(lambda: len(list_pids(yard.parts["gunicorn"].read_log())) == 2)
        address, told = str(client.base_url), list[Samples]()

        def ask(method: str, path: str) -> httpx.Response:
            # A connection of its own each time, so that both workers get some.
            return httpx.request(method, f"{address}{path}", trust_env=False, timeout=30)

        def refuse_in_both() -> bool:
            nonlocal refused
            answers = call_together(*[partial(ask, "POST", "/webhooks/fal/nobody")] * 4)
            assert [one.status_code for one in answers] == [401] * 4
            refused += 4
            return len(list(counts.glob("counter_*.db"))) == 2

        wait_until(refuse_in_both)
        for round_ in range(1, 4):
            state = JobState.QUEUED if round_ > 1 else JobState.ARCHIVED
            make_job(db, state, now=datetime.now(UTC))
            call_together(refuse_in_both, *[partial(ask, "GET", "/metrics")] * 2)
            for _ in range(2):
                told.append(parse(ask("GET", "/metrics").text))
                assert find(told[-1], "transitions_total", reason="enqueued") == round_
                assert find(told[-1], "jobs", state="queued") == round_ - 1
                labels = {"verdict": "refused", "code": "invalid_signature"}
                assert find(told[-1], "received_deliveries_total", **labels) == refused
    growing = ("_total", "_bucket", "_count", "_sum")
    for before, after in pairwise(told):
        for key in (one for one in before if one[0].endswith(growing)):
            assert after[key] >= before[key], key
