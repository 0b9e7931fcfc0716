"""docs/operations.md, "Back-up and restore", step by step: each job is paid for once."""

import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flask import Flask
from pydantic import SecretStr
from werkzeug.serving import BaseWSGIServer, make_server

from tests.emulator.processes import Emulator, start_emulator
from tests.harness.clock import FakeClock
from tests.harness.commands import Run, build_run
from tests.harness.logs import preserved_logging
from tests.harness.lost import SECRETS, sign_tokens
from tests.harness.stages import UNKNOWN, Bench, open_clients
from tests.harness.waiting import wait_until
from tests.receiver.scene import close_receiver, find_receiver
from webhook import create_app
from worker.ground.settings import load_settings
from worker.jobs import deliveries
from worker.jobs.states import JobState
from worker.jobs.values import Job
from worker.runtime import name_account

S = JobState
QUEUED_AT_BACK_UP = ("by webhook", "by listing", "never sent")


@pytest.fixture
def emulator(tmp_path_factory) -> Iterator[Emulator]:
    """Of this test alone: requests of others without their inputs would leave a gap in its list."""
    options = ("--render", "fake", "--webhook-retry-seconds", "0.05")
    with start_emulator(tmp_path_factory.mktemp("runbook"), *options) as emulator:
        yield emulator


@pytest.fixture
def receiver(monkeypatch, database_url, redis_url, emulator) -> Iterator[BaseWSGIServer]:
    """It listens, and answers nobody before `answering`."""
    settings = {
        "DATABASE_URL": database_url,
        "BROKER_URL": redis_url,
        "FAL_KEY": "emulator-key",
        "FAL_QUEUE_URL": emulator.url,
        "FAL_PLATFORM_URL": f"{emulator.url}/v1",
        "FAL_JWKS_URL": f"{emulator.url}/.well-known/jwks.json",
        "TOKEN_SECRET": ",".join(one.get_secret_value() for one in SECRETS),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with preserved_logging():
        app = create_app(load_settings())
        with closing_server(app) as server:
            yield server
        close_receiver(find_receiver(app))


@contextmanager
def closing_server(app: Flask) -> Iterator[BaseWSGIServer]:
    server = make_server("127.0.0.1", 0, app, threaded=True)
    try:
        yield server
    finally:
        server.server_close()


@contextmanager
def answering(server: BaseWSGIServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture
def bench(db, emulator, receiver) -> Iterator[Bench]:
    """On the emulator's clock, for it lists by its own."""
    with open_clients(emulator.url) as clients:
        signed = sign_tokens(Bench(db, *clients, FakeClock(datetime.now(UTC))))
        base = f"http://127.0.0.1:{receiver.server_port}"
        policy = replace(signed.submit_policy, webhook_base_url=base)
        yield replace(signed, submit_policy=policy)


@pytest.fixture
def run(monkeypatch, capsys, receiver) -> Run:
    return build_run(monkeypatch, capsys)


@pytest.fixture
def mark(emulator) -> Iterator[str]:
    """In each prompt of this test; webhooks of these prompts are held until the test lets them."""
    mark = f"restored {datetime.now(UTC):%H%M%S%f}"
    emulator.arm({"point": "webhook_sending", "match": {"prompt": mark}})
    yield mark
    emulator.arm()
    for held in emulator.client.get("/_emulator/hooks/held").json():
        emulator.release(held)


def enqueue(bench: Bench, emulator: Emulator, prompt: str) -> Job:
    fields = {"prompt": prompt, "video_url": f"{emulator.url}/files/a.mp4", "seed": 7}
    return bench.insert(input=fields)


def find_strange(run: Run, mark: str, requests: Callable[[], dict[str, str]]) -> dict[str, str]:
    """What `doctor` says of this test's requests, by their prompts."""
    ours = requests()
    told = run("doctor", "--json").json
    found = {
        one["fal_request_id"]: one["detail"]
        for one in told["findings"]
        if one["check"] == "orphan_at_fal"
    } | dict.fromkeys(told["not_ours"], "not ours")
    return {
        ours[request_id].removeprefix(mark).strip(): detail
        for request_id, detail in found.items()
        if request_id in ours
    }


@pytest.mark.slow  # a crash, a restore and a deployment's new start, with a real server of fal's
def test_restored_back_up_of_an_hour_ago_pays_each_job_once(
    bench, emulator, receiver, run, mark, tmp_path
):
    def requests() -> dict[str, str]:
        listed = emulator.list_requests()
        return {
            one["request_id"]: one["input"]["prompt"]
            for one in listed
            if one["input"]["prompt"].startswith(mark)
        }

    bench = bench.resolving(account=name_account(SecretStr("emulator-key")))
    bench.clock.now = datetime.now(UTC)
    bench.observe()
    path = Path(bench.db.engine.url.database)
    jobs = {name: enqueue(bench, emulator, f"{mark} {name}") for name in QUEUED_AT_BACK_UP}

    # The back-up, as the runbook takes it; then the gap, whose rows are lost.
    since = datetime.now(UTC)
    with closing(sqlite3.connect(path)) as source:
        source.execute(f"VACUUM INTO '{tmp_path / 'jobs-copy.db'}'")
    emulator.order({"point": "webhook", "kind": "lost", "match": {"prompt": f"{mark} by listing"}})
    lost = enqueue(bench, emulator, f"{mark} of the gap")
    for job in (jobs["by webhook"], jobs["by listing"], lost):
        assert bench.submit(job).state is S.SUBMITTED

    # 1. and 2.: everything is stopped, and the back-up restored.
    bench.db.close()
    for companion in ("-wal", "-shm"):
        path.with_name(path.name + companion).unlink(missing_ok=True)
    shutil.copyfile(tmp_path / "jobs-copy.db", path)
    assert run("migrate").code == 0

    # 3. Before anything is done `doctor` names every request that would be paid for again.
    strange = find_strange(run, mark, requests)
    assert strange.keys() == {"by webhook", "by listing", "of the gap"}
    assert "would pay again" in strange["by webhook"]
    assert "would pay again" in strange["by listing"]
    assert strange["of the gap"] == "not ours"

    time = since.isoformat()
    foreseen = run("restore", "--since", time, "--dry-run", "--json").json
    done = run("restore", "--since", time, "--json").json
    assert (foreseen["doubted"], done["doubted"], done["unknown"]) == (3, 3, 3)
    assert run("restore", "--since", time, "--json").json["doubted"] == 0
    assert find_strange(run, mark, requests).keys() == {"of the gap"}

    # 4. Everything is started: webhooks arrive, and fal's listing is searched.
    bench.clock.now = datetime.now(UTC)
    with answering(receiver):
        emulator.arm()
        for held in emulator.wait_for_held():
            emulator.release(held)
        wait_until(lambda: bench.read(jobs["by webhook"]).state is S.COMPLETED)
        wait_until(lambda: count_strays(bench) == 1)
        bench.turn()
        assert bench.read(jobs["by listing"]).state in {S.SUBMITTED, S.COMPLETED}
        assert bench.read(jobs["never sent"]).state is S.SUBMISSION_UNKNOWN
        bench.live(UNKNOWN + timedelta(minutes=10), timedelta(minutes=5))
        wait_until(lambda: is_completed(bench, jobs.values()))

    paid = Counter(prompt.removeprefix(mark).strip() for prompt in requests().values())
    assert paid == {"by webhook": 1, "by listing": 1, "never sent": 1, "of the gap": 1}
    findings = run("doctor", "--json").json["findings"]
    assert [one["check"] for one in findings if one["job_id"] == str(lost.id)] == ["stray_delivery"]
    ours = {str(job.id) for job in jobs.values()}
    # Nobody downloads here, and the clock was moved.
    assert {one["check"] for one in findings if one["job_id"] in ours} == {"late_archive"}


def is_completed(bench: Bench, jobs: Iterable[Job]) -> bool:
    bench.turn()
    return {bench.read(job).state for job in jobs} == {S.COMPLETED}


def count_strays(bench: Bench) -> int:
    with bench.db.reading() as connection:
        return deliveries.count_strays(connection)
