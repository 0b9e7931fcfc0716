"""What jobs that wait for their webhooks cost a worker: memory, CPU, and a round of polls.

Beside it, how many waits in fal's own client fit into the same memory.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from celery import Celery
from sqlalchemy import text

from benchmarks.harness.figures import Figure, Goal, Plan, Question
from benchmarks.harness.meter import measure_cpu, measure_rss
from benchmarks.harness.report import REPOSITORY
from benchmarks.harness.run import run_alone
from tests.harness.fal import ScriptedFal, run_fal
from tests.harness.processes import BIN, CELERY, Part, Yard, run_yard
from tests.harness.servers import run_broker, run_postgres
from tests.harness.waiting import wait_until
from tests.harness.web import Answer, send_json
from worker.fal.model import complete_input
from worker.ground.db import Database
from worker.ground.schema import upgrade_schema

# One process, as the reference: threads share its memory.
WORKER = ("worker", "-P", "threads", "-c", "4", "--without-gossip", "--without-mingle")
INPUT = {"prompt": "The camera rises over the harbour", "video_url": "https://example.com/a.mp4"}

# POLL_SECONDS is 120 by default.
JOBS = """INSERT INTO jobs (id, state, tenant, labels, endpoint, input, options, fence, priority,
    fal_request_id, due_at, enqueued_at, submitted_at)
SELECT lpad(to_hex(number), 32, '0')::uuid, 'submitted', 'default', '{}',
    'fal-ai/ltx-2.3-22b/extend-video', CAST(:input AS jsonb), '{}', 1, 0,
    'request-' || number, now() + interval '120 seconds', now(), now()
FROM generate_series(1, CAST(:count AS bigint)) AS number"""
ATTEMPTS = """INSERT INTO attempts (id, job_id, number, fence, token_hash, endpoint, input, options,
    claimed_by, started_at, ended_at, outcome, http_status, fal_request_id)
SELECT id, id, 1, 1, 'hash-' || id, endpoint, input, options, 'host:1:a', submitted_at,
    submitted_at, 'accepted', 200, fal_request_id
FROM jobs"""
HASTEN = """UPDATE jobs SET due_at = now() WHERE id IN
    (SELECT id FROM jobs ORDER BY id LIMIT :count)"""


def measure(plan: Plan) -> list[Figure]:
    with (
        run_yard(plan.directory) as yard,
        run_fal() as fal,
        run_broker() as broker,
        open_desk(yard, fal, broker.url, count=plan.pick(10_000, 200)) as desk,
    ):
        # As long as it takes from one sweep to the next.
        window, short = plan.pick(5, 1), plan.pick(5, 1)
        found = plan.alternate(
            {"waiting": lambda: desk.watch(window), "idle": lambda: desk.watch_idle(short)}
        )
        polls = desk.poll(plan.pick(1_000, 40))
        desk.end()
        peer = measure_peer(yard, fal, broker.url, count=plan.pick(40, 3))
    waiting, idle = found["waiting"], found["idle"]
    fitting = tuple(max(0.0, (rss - peer.idle) // peer.each) for rss in waiting["rss"])
    memory = f"worker's memory, {desk.count:,} waiting"
    return [
        Figure(memory, "MiB", waiting["rss"], idle["rss"], "none waiting", Goal("<=", 1.2)),
        Figure("worker's CPU between polls", "%", waiting["cpu"], goal=Goal("<", 2)),
        Figure("the same, none waiting", "%", idle["cpu"]),
        Figure("scheduler's CPU", "%", waiting["beat_cpu"]),
        Figure("scheduler's memory", "MiB", waiting["beat_rss"]),
        Figure(
            "waiting within that memory",
            "",
            (float(desk.count),) * plan.rounds,
            fitting,
            f"tasks in fal-client's subscribe, {peer.each:.2f} MiB each",
        ),
        Figure("CPU of one such task", "%", (peer.cpu,)),
        *polls,
    ]


@dataclass(frozen=True)
class Desk:
    """A worker and a scheduler with the default settings, and jobs that are at fal."""

    yard: Yard
    fal: ScriptedFal
    db: Database
    worker: Part
    beat: Part
    count: int

    def watch(self, seconds: float) -> dict[str, float]:
        self._fill()
        return self._watch(seconds)

    def watch_idle(self, seconds: float) -> dict[str, float]:
        self._execute("TRUNCATE jobs CASCADE")
        return self._watch(seconds)

    def poll(self, count: int) -> list[Figure]:
        """So many waits are over at once: fal is asked about each, and each waits on."""
        self._fill()
        self.fal.asked.clear()
        pid = self.worker.process.pid
        before, began = measure_cpu(pid), time.monotonic()
        self._execute(HASTEN, count=count)
        wait_until(
            lambda: self._count_due() == 0 and self.fal.count("GET", "/status") >= count, 300
        )
        seconds, cpu = time.monotonic() - began, measure_cpu(pid) - before
        return [
            Figure(f"{count:,} polls that are due at once", "s", (seconds,)),
            Figure("worker's CPU for a poll", "ms", (1000 * cpu / count,)),
        ]

    def end(self) -> None:
        self.beat.end()
        self.worker.end()

    def _watch(self, seconds: float) -> dict[str, float]:
        """From after the next sweep on, which has seen the change."""
        swept = self._read_swept()
        wait_until(lambda: self._read_swept() != swept, 60)
        worker, beat = self.worker.process.pid, self.beat.process.pid
        before, beat_before, began = measure_cpu(worker), measure_cpu(beat), time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        return {
            "rss": measure_rss(worker),
            "cpu": 100 * (measure_cpu(worker) - before) / passed,
            "beat_rss": measure_rss(beat),
            "beat_cpu": 100 * (measure_cpu(beat) - beat_before) / passed,
        }

    def _fill(self) -> None:
        self._execute("TRUNCATE jobs CASCADE")
        filled = json.dumps(complete_input(INPUT).to_json())
        self._execute(JOBS, input=filled, count=self.count)
        self._execute(ATTEMPTS)

    def _execute(self, statement: str, **values: object) -> None:
        with self.db.transaction() as connection:
            connection.execute(text(statement), values)

    def _count_due(self) -> int:
        with self.db.reading() as connection:
            due = "SELECT count(*) FROM jobs WHERE due_at <= now() + interval '60 seconds'"
            found: int = connection.exec_driver_sql(due).scalar_one()
            return found

    def _count_asked(self) -> int:
        return self.fal.count("GET", "/status")

    def _read_swept(self) -> object:
        with self.db.reading() as connection:
            last = "SELECT counted_at FROM tallies WHERE name = 'sweep'"
            return connection.exec_driver_sql(last).scalar_one_or_none()


@contextmanager
def open_desk(yard: Yard, fal: ScriptedFal, broker_url: str, *, count: int) -> Iterator[Desk]:
    with run_postgres() as postgres:
        url = postgres.url_of(postgres.create_database())
        upgrade_schema(url)
        settings = {
            "DATABASE_URL": url,
            "BROKER_URL": broker_url,
            "FAL_KEY": "a-key",
            "FAL_QUEUE_URL": fal.url,
            "FAL_PLATFORM_URL": fal.url,
            "WEBHOOK_BASE_URL": "http://127.0.0.1:9",
            "ARCHIVE_URL": f"file:{yard.directory / 'archive'}",
        }
        worker = yard.start("worker", [*CELERY, *WORKER], settings)
        worker.wait_for_log(" ready.", 60)
        beat = yard.start("beat", [*CELERY, "beat"], settings)
        db = Database(url)
        desk = Desk(yard, fal, db, worker, beat, count)
        try:
            # What a worker imports and opens when it is first used is not what waiting costs.
            desk.poll(min(count, 50))
            yield desk
        finally:
            yard.stop()
            db.close()


@dataclass(frozen=True, slots=True)
class Peer:
    """MiB without a task, MiB that each adds, and per cent of a core that each takes."""

    idle: float
    each: float
    cpu: float


def measure_peer(yard: Yard, fal: ScriptedFal, broker_url: str, *, count: int) -> Peer:
    """Tasks that block, each in a thread of one process; a process each would take more."""
    settings = {
        "BROKER_URL": broker_url,
        "FAL_ADDRESS": fal.url,
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [str(BIN / "celery"), "-A", "benchmarks.reference.waiting", *WORKER]
    part = yard.start("peer", [*command, "-c", str(count), "-l", "info"], settings)
    part.wait_for_log(" ready.", 60)
    pid = part.process.pid
    app = Celery(broker=broker_url, set_as_current=False)
    fal.submit = accept_all(fal)
    block(app, fal, 1)  # its first one loads what the others share
    idle = measure_rss(pid)
    block(app, fal, count - 1)
    before, began = measure_cpu(pid), time.monotonic()
    time.sleep(2)
    cpu = (measure_cpu(pid) - before) / (time.monotonic() - began)
    blocked = measure_rss(pid)
    app.close()
    part.kill()  # it would wait for all of them
    return Peer(idle, max((blocked - idle) / (count - 1), 0.01), 100 * cpu / count)


def block(app: Celery, fal: ScriptedFal, count: int) -> None:
    """Have so many more tasks wait for a request that never ends."""
    fal.asked.clear()
    for _ in range(count):
        app.send_task("extend", kwargs=INPUT)
    wait_until(
        lambda: fal.count("POST") == count and fal.count("GET", "/status") >= count,
        60,
    )


def accept_all(fal: ScriptedFal) -> Answer:
    base = f"{fal.url}/fal-ai/ltx-2.3-22b/requests/r"
    urls = {"status_url": f"{base}/status", "response_url": base, "cancel_url": f"{base}/cancel"}
    return send_json({"status": "IN_QUEUE", "request_id": "r", **urls})


WAITING = Question("waiting", "10,000 jobs waiting for webhooks on one worker process", measure)

if __name__ == "__main__":
    sys.exit(run_alone(WAITING))
