"""`GET /metrics`: the table in numbers, and what the receiver's processes have counted.

All that matters is read from SQL, so every process of a deployment reports the same. What leaves no
row (requests, refused deliveries) is counted in the processes. Several gunicorn workers share these
counts through PROMETHEUS_MULTIPROC_DIR, a directory which prometheus-client reads from the
environment; without it each process reports its own.
"""

import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import structlog
from flask import Flask, Response, g, request
from sqlalchemy.exc import SQLAlchemyError
from typing_extensions import override

from worker.ground.db import Database, describe_database_error
from worker.ground.money import NANO
from worker.jobs.admission import ACCOUNT
from worker.jobs.states import JobEvent, PauseCause
from worker.ops.metrics import BOUNDS, History, Measures, list_seen, read_measures
from worker.ops.waiting import UNBOUNDED

MULTIPROC_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
if os.environ.get(MULTIPROC_VARIABLE):
    # Before prometheus-client is imported, which expects it to exist.
    Path(os.environ[MULTIPROC_VARIABLE]).mkdir(parents=True, exist_ok=True)

from prometheus_client import (  # noqa: E402 - see above
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    exposition,
)
from prometheus_client.core import (  # noqa: E402 - see above
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.multiprocess import MultiProcessCollector  # noqa: E402 - see above
from prometheus_client.registry import Collector  # noqa: E402 - see above

PREFIX = "extend_video_"
RECEIVE = "webhook.receive"

disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped there
OWN = CollectorRegistry()
REQUESTS = Counter(
    f"{PREFIX}requests", "Requests by route and status", ["route", "status"], registry=OWN
)
SECONDS = Histogram(f"{PREFIX}request_seconds", "How long an answer took", ["route"], registry=OWN)
DELIVERIES = Counter(
    f"{PREFIX}received_deliveries",
    "Deliveries by verdict, refused ones by their code, each as often as it came",
    ["verdict", "code"],
    registry=OWN,
)

log = structlog.stdlib.get_logger(__name__)


def count_requests(app: Flask) -> None:
    """Count every answer; labels are names of routes and codes of ours, never of a caller's."""

    @app.before_request
    def begin() -> None:
        g.began = time.perf_counter()

    @app.after_request
    def count(answer: Response) -> Response:
        route = request.endpoint or "none"
        REQUESTS.labels(route, str(answer.status_code)).inc()
        SECONDS.labels(route).observe(time.perf_counter() - g.began)
        if route == RECEIVE:
            body = answer.get_json(silent=True) or {}
            if "verdict" in body:
                DELIVERIES.labels(body["verdict"], "").inc()
            else:
                DELIVERIES.labels("refused", body.get("error", "unknown")).inc()
        return answer


def register_metrics(app: Flask, db: Database) -> None:
    def show_metrics() -> Response:
        registry = CollectorRegistry()
        if os.environ.get(MULTIPROC_VARIABLE):
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # untyped there
        else:
            registry.register(OWN)
        registry.register(TableCollector(db))
        encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(registry), content_type=content_type)

    app.add_url_rule("/metrics", view_func=show_metrics)


class TableCollector(Collector):
    """Reads the table at each scrape; while the database is unavailable it reports only that."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @override
    def collect(self) -> Iterable[Metric]:
        words = "Whether the job table can be read"
        try:
            measures = read_measures(db=self._db)
        except SQLAlchemyError as error:
            log.warning("database_unavailable", reason=describe_database_error(error))
            return [_gauge("database_up", words, 0)]
        return [
            _gauge("database_up", words, 1),
            *list_gauges(measures),
            *list_counters(measures.history),
        ]


def list_gauges(of: Measures) -> Iterator[Metric]:
    """How many rows there are of each kind, and whether sweeps and workers run."""
    yield _gauge("jobs", "Jobs by state", of.jobs, "state")
    words = "Age in seconds of the job that is longest in the state; ended states have none"
    yield _gauge("oldest_job_seconds", words, of.ages, "state")
    yield _gauge("attempts", "Attempts by outcome", of.attempts, "outcome")
    yield _gauge("deliveries", "Distinct kept deliveries by verdict", of.deliveries, "verdict")
    words = "Refused requests that are not pruned yet, by the door they came by and by code"
    yield _gauge("requests_refused", words, of.refused, "door", "code")
    words = "Attempts that were paid for besides the one whose result their job has"
    yield _gauge("extra_charges", words, of.extra_charges)
    words = "Submissions confirmed as not accepted that wait for an operator"
    yield _gauge("submissions_held", words, of.held)
    words = "How long the most overdue job has been due for the sweep"
    yield _gauge("sweep_lag_seconds", words, of.sweep_lag.total_seconds())
    words = "When the last sweep ended; 0 before the first"
    yield _gauge(
        "last_sweep_timestamp_seconds", words, of.swept_at.timestamp() if of.swept_at else 0.0
    )
    words = "1 while all submissions are paused"
    is_paused = any(one.scope == ACCOUNT and not one.is_counting for one in of.pauses)
    yield _gauge("submissions_paused", words, int(is_paused))
    yield from list_limit_gauges(of)
    words = "Workers that were seen within the last minute"
    yield _gauge("workers", words, len(list_seen(of.workers, of.now)))
    words = "How old the oldest of the numbers is that are not counted at each scrape"
    age = (of.now - of.counted_at).total_seconds()
    yield _gauge("counts_age_seconds", words, max(0.0, age))
    words = "Events that are not yet in the counters made from them"
    yield _gauge("events_behind", words, of.events_behind)


def list_limit_gauges(of: Measures) -> Iterator[Metric]:
    """What is allowed and what is used of it; of tenants only those that have such a limit."""
    words = "1 for each pause, by scope and cause; of the account each cause"
    pauses = {(ACCOUNT, cause.value): 0 for cause in PauseCause}
    pauses |= {(one.scope, one.cause.value): 1 for one in of.pauses if not one.is_counting}
    yield _gauge("pauses", words, pauses, "scope", "cause")
    capped = [one for one in of.scopes if one.scope == ACCOUNT or one.max_in_flight]
    words = "Attempts that are, or may be, at fal"
    yield _gauge("in_flight", words, {one.scope: one.in_flight for one in capped}, "scope")
    words = "Most attempts that may be at fal at once; +Inf before any worker has said so"
    caps = {one.scope: _bound(one.max_in_flight) for one in capped}
    yield _gauge("in_flight_limit", words, caps, "scope")
    paying = [
        one for one in of.scopes if one.scope == ACCOUNT or one.daily_budget_nano_usd is not None
    ]
    words = "Spent on this UTC day, in USD, reserved amounts included"
    spent = {one.scope: one.spent_nano_usd / NANO for one in paying}
    yield _gauge("spent_today_usd", words, spent, "scope")
    words = "Most that may be spent on a UTC day, in USD; +Inf without a budget"
    budgets = {
        one.scope: math.inf
        if one.daily_budget_nano_usd is None
        else one.daily_budget_nano_usd / NANO
        for one in paying
    }
    yield _gauge("daily_budget_usd", words, budgets, "scope")
    words = "Queued jobs by what holds them; none: only their turn is missing"
    yield _gauge("queued_jobs", words, of.queued, "blocked_by")
    words = "Queued jobs whose estimate alone exceeds a whole day's budget"
    yield _gauge("jobs_over_budget", words, of.over_budget)


def _bound(limit: int | None) -> float:
    return math.inf if limit is None or limit >= UNBOUNDED.max_in_flight else limit


def list_counters(history: History) -> Iterator[Metric]:
    """What only grows."""
    transitions = CounterMetricFamily(
        f"{PREFIX}transitions", "Transitions of jobs, by their reason", labels=["reason"]
    )
    for reason in JobEvent:
        transitions.add_metric([reason.value], history.reasons.get(reason.value, 0))
    yield transitions
    phases = HistogramMetricFamily(
        f"{PREFIX}phase_seconds",
        "How long jobs took: submit (enqueued to submitted), run (to completed), archive (to "
        "archived), whole (enqueued to archived)",
        labels=["phase"],
    )
    for name, phase in history.phases.items():
        labels = [*(str(float(bound)) for bound in BOUNDS), "+Inf"]
        buckets = [*zip(labels, map(float, accumulate(phase.counts)), strict=True)]
        phases.add_metric([name], buckets, phase.seconds)
    yield phases
    words = "Bytes of all videos that were archived"
    yield CounterMetricFamily(f"{PREFIX}archive_bytes", words, value=history.archive_bytes)


def _gauge(name: str, words: str, value: float | Mapping[Any, float], *labels: str) -> Metric:
    """One number, or one for each value of its label or labels."""
    family = GaugeMetricFamily(f"{PREFIX}{name}", words, labels=labels)
    for key, number in value.items() if isinstance(value, Mapping) else [((), value)]:
        family.add_metric([*map(str, key if isinstance(key, tuple) else (key,))], number)
    return family
