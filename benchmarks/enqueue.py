"""How fast one producer enqueues ten thousand jobs, beside a loop of Celery's `send_task`."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.figures import Figure, Goal, Plan, Question
from benchmarks.harness.run import run_alone
from benchmarks.reference import enqueue as reference
from tests.harness.servers import Broker, Postgres, run_broker, run_postgres
from worker.ground.schema import upgrade_schema
from worker.ground.settings import load_settings
from worker.producer import place_requests
from worker.runtime import Runtime

QUEUE = "extend_video.submit"


def measure(plan: Plan) -> list[Figure]:
    job_requests = [build_wish(number) for number in range(plan.pick(10_000, 1_100))]
    with (
        run_postgres(is_durable=True) as postgres,
        run_broker() as broker,
        open_desk(postgres, broker) as desk,
    ):
        app = reference.create_app(broker.url)
        found = plan.alternate(
            {
                "ours": lambda: desk.time(lambda: desk.enqueue(job_requests), len(job_requests)),
                "loop": lambda: desk.time(
                    lambda: reference.send_each(app, job_requests), len(job_requests)
                ),
                "batch": lambda: desk.time(
                    lambda: reference.send_batched(app, job_requests), len(job_requests)
                ),
            }
        )
        app.close()
    rate, name = "per second", f"enqueue of {len(job_requests):,}"
    return [
        Figure(
            name,
            rate,
            found["ours"]["rate"],
            found["loop"]["rate"],
            "loop of send_task",
            Goal(">=", 5),
        ),
        Figure(
            f"{name}, beside kombu's batch",
            rate,
            found["ours"]["rate"],
            found["batch"]["rate"],
            "send_task within producer.batch()",
        ),
    ]


def build_wish(number: int) -> dict[str, Any]:
    return {
        "prompt": f"The camera rises over the harbour, take {number}",
        "video_url": f"https://example.com/clips/{number}.mp4",
        "idempotency_key": f"order-{number}",
        "labels": {"source": "batch"},
    }


@dataclass(frozen=True)
class Desk:
    """A producer at a durable PostgreSQL and a Redis of the run's own."""

    runtime: Runtime
    broker: Broker

    def enqueue(self, job_requests: list[dict[str, Any]]) -> None:
        """`enqueue_many` returns once all rows are committed and all messages published."""
        place_requests(self.runtime, job_requests)

    def time(self, call: Callable[[], None], count: int) -> dict[str, float]:
        """Things per second, on an empty table and broker, which are empty again afterwards."""
        began = time.perf_counter()
        call()
        seconds = time.perf_counter() - began
        self.check(count)
        self.empty()
        return {"rate": count / seconds}

    def check(self, count: int) -> None:
        """Every message, or where we have enqueued, every row and event, and what starts them."""
        enqueued = self._count("jobs")
        with self.broker.connect() as client:
            check(enqueued or client.llen(reference.QUEUE), count)
            check(client.llen(QUEUE) > 0, enqueued > 0)
        check(self._count("events"), enqueued)

    def empty(self) -> None:
        with self.runtime.db.transaction() as connection:
            connection.exec_driver_sql("TRUNCATE jobs CASCADE")
        with self.broker.connect() as client:
            client.flushall()

    def _count(self, table: str) -> int:
        with self.runtime.db.reading() as connection:
            found: int = connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()  # noqa: S608 - our own names
            return found


@contextmanager
def open_desk(postgres: Postgres, broker: Broker) -> Iterator[Desk]:
    url = postgres.url_of(postgres.create_database())
    upgrade_schema(url)
    runtime = Runtime(load_settings(database_url=url, broker_url=broker.url))
    desk = Desk(runtime, broker)
    try:
        # Connections, statements and declared queues are there before it is measured.
        desk.enqueue([build_wish(0)])
        desk.empty()
        yield desk
    finally:
        runtime.dispatcher.close()
        runtime.db.close()


def check(found: object, expected: int) -> None:
    if found != expected:
        raise RuntimeError(f"{found} instead of {expected}")


ENQUEUE = Question("enqueue", "bulk enqueue of 10,000 jobs, one producer", measure)

if __name__ == "__main__":
    sys.exit(run_alone(ENQUEUE))
