"""How long the page and `list` take on a table made by million_rows.py: one table.

    python benchmarks/million_rows.py --url sqlite:////tmp/million.db --times 0
    python benchmarks/page.py sqlite:////tmp/million.db

Both are asked for within one process: a page as a receiver's thread answers it, a list as
the shell prints it once it has started. Ends with 1 above the bounds.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from flask.testing import FlaskClient
from rich.console import Console

from webhook import create_app
from worker.cli.jobs import find_holds
from worker.cli.output import build_job_table
from worker.ground.db import Database
from worker.ground.settings import load_settings
from worker.jobs.queries import JobFilter, list_lines
from worker.jobs.states import JobState

TOKEN = "a-token-for-measuring"  # noqa: S105 - of no use elsewhere
PAGE_MS, LIST_MS = 200, 300
PAGES = {
    "newest": "",
    "state archived": "?state=archived",
    "state queued": "?state=queued",
    "a large tenant": "?tenant=tenant-000",
    "a tenant's cancelled": "?tenant=tenant-150&state=cancelled",
    "a usual label": "?label=source%3Dweb",
    "a rare label": "?label=campaign%3Dc3",
    "words of prompts": "?text=glacier",
    "words in no prompt": "?text=nothing-like-it",
    "a key": "?text=order-500000",
    "a month ago": "?until=30d",
}
LISTS = {
    "list": JobFilter(),
    "list --state failed": JobFilter(state=JobState.FAILED),
    "list --tenant": JobFilter(tenant="tenant-003"),
    "list --label": JobFilter(label=("source", "web")),
    "list --since 1d": JobFilter(since=datetime.now(UTC) - timedelta(days=1)),
    "list --text KEY": JobFilter(text="order-500000"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="the table to look at")
    parser.add_argument("--times", type=int, default=15)
    arguments = parser.parse_args()
    slow = [*measure_pages(arguments.url, arguments.times)]
    slow += measure_lists(arguments.url, arguments.times)
    print(f"above {PAGE_MS} ms a page, or {LIST_MS} ms a list: {', '.join(slow) or 'none'}")
    return 1 if slow else 0


def measure_pages(url: str, times: int) -> list[str]:
    client = open_page(url)
    slow = []
    print("| page | median ms | slowest ms |\n| --- | --- | --- |")
    for name, query in PAGES.items():
        median, worst = measure(partial(ask, client, query), times)
        print(f"| {name} | {median:.0f} | {worst:.0f} |")
        slow += [name] if median > PAGE_MS else []
    return slow


def measure_lists(url: str, times: int) -> list[str]:
    db, slow = Database(url), []
    print("\n| command, without its start-up | median ms | slowest ms |\n| --- | --- | --- |")
    for name, wanted in LISTS.items():
        median, worst = measure(partial(show, wanted, db), times)
        print(f"| {name} | {median:.0f} | {worst:.0f} |")
        slow += [name] if median > LIST_MS else []
    db.close()
    return slow


def show(wanted: JobFilter, db: Database) -> None:
    lines = list_lines(wanted, db=db, limit=50)
    Console(file=io.StringIO(), width=200).print(build_job_table(lines, find_holds(lines, db)))


def open_page(url: str) -> FlaskClient:
    settings = load_settings(database_url=url, monitor_token=TOKEN, log_level="error")
    client = create_app(settings).test_client()
    client.post("/jobs/login", data={"secret": TOKEN})
    return client


def ask(client: FlaskClient, query: str) -> None:
    answer = client.get(f"/jobs{query}")
    if answer.status_code != 200:  # noqa: PLR2004 - OK
        raise SystemExit(f"{query}: {answer.status}")


def measure(call: Callable[[], None], times: int) -> tuple[float, float]:
    """Median and worst, in milliseconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken), max(taken)


if __name__ == "__main__":
    sys.exit(main())
