"""How long reading takes with a million jobs in the table: `python benchmarks/million_rows.py`.

Makes a SQLite file and a PostgreSQL of its own, fills each, and then asks `/metrics` again and
again, as a scraper does. Ends with 1 if a median is above the bound. `--keep FILE` leaves SQLite's
table there; `--url` fills another database instead. With `--times 0` it only fills: page.py
measures the page on such a table.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.harness.many_rows import fill_table
from tests.harness.servers import run_postgres
from webhook import create_app
from worker.ground.db import Database
from worker.ground.schema import upgrade_schema
from worker.ground.settings import load_settings
from worker.jobs.queries import JobFilter, list_jobs

BOUND_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of each call."""

    name: str
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def describe(self) -> str:
        first, worst = self.seconds[0], max(self.seconds)
        return (
            f"{self.name:<24} median {self.median * 1000:7.1f} ms   first {first * 1000:7.1f} ms"
            f"   worst {worst * 1000:7.1f} ms   of {len(self.seconds)}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--times", type=int, default=50, help="how often each is asked; 0 to fill alone"
    )
    parser.add_argument("--keep", type=Path, help="a SQLite file that is to stay")
    parser.add_argument("--url", help="an empty database of yours")
    given = parser.parse_args()
    measured: list[Measured] = []
    for url in list_databases(given.url, given.keep):
        upgrade_schema(url)
        with closing(Database(url)) as db:
            began = time.monotonic()
            fill_table(db, given.rows, newest=datetime.now(UTC))
            print(f"filled {db.engine.dialect.name} in {time.monotonic() - began:.0f} s")
            if given.times:
                measured += [*measure_reading(db, url, given.times)]
    for one in measured:
        print(one.describe())
    return 0 if all(one.median < BOUND_SECONDS for one in measured) else 1


def list_databases(url: str | None, keep: Path | None) -> Iterator[str]:
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="million-rows-") as directory:
        yield f"sqlite:///{keep or Path(directory) / 'jobs.db'}"
    with run_postgres() as postgres:
        yield postgres.url_of(postgres.create_database())


def measure_reading(db: Database, url: str, times: int) -> Iterator[Measured]:
    kind = db.engine.dialect.name
    with open_receiver(url) as get:
        yield Measured(f"{kind} /metrics", [measure(lambda: get("/metrics")) for _ in range(times)])
    yield Measured(
        f"{kind} list",
        [measure(lambda: list_jobs(JobFilter(), db=db, limit=50)) for _ in range(times)],
    )


@contextmanager
def open_receiver(url: str) -> Iterator[Callable[[str], object]]:
    client = create_app(load_settings(database_url=url, log_level="error")).test_client()

    def get(path: str) -> object:
        answer = client.get(path)
        if answer.status_code != 200:  # noqa: PLR2004 - HTTP
            raise RuntimeError(answer.text)
        return answer

    yield get


def measure(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
