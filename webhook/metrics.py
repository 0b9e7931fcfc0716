"""`GET /metrics`: the table in numbers, and what the receiver's processes have counted.

All that matters is read from SQL, so every process of a deployment tells the same.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from flask import Flask, Response, g, request
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    exposition,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from typing_extensions import override

from worker.ground.db import Database, describe_database_error
from worker.jobs.states import JobEvent
from worker.ops.metrics import BOUNDS, Distribution, Measures, list_seen, read_measures

# ------------------------------------------------------------------ counters


MULTIPROC_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
if os.environ.get(MULTIPROC_VARIABLE):
    # Before prometheus-client is imported, which takes it for there.
    Path(os.environ[MULTIPROC_VARIABLE]).mkdir(parents=True, exist_ok=True)


disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped there
OWN = CollectorRegistry()
RECEIVE = "webhook.receive"

REQUESTS = Counter(
    "extend_video_requests", "Requests by route and status", ["route", "status"], registry=OWN
)
SECONDS = Histogram(
    "extend_video_request_seconds", "How long an answer took", ["route"], registry=OWN
)
DELIVERIES = Counter(
    "extend_video_received_deliveries",
    "Deliveries by verdict, refused ones by their code, each as often as it came",
    ["verdict", "code"],
    registry=OWN,
)


def count_requests(app: Flask) -> None:
    """Count every answer; labels are names of routes and codes of ours, never of a caller's."""
    app.before_request(_begin)
    app.after_request(_count)


def open_registry() -> CollectorRegistry:
    """The counts of all processes, or of this one, in a registry that more may be added to."""
    if not os.environ.get(MULTIPROC_VARIABLE):
        registry = CollectorRegistry()
        registry.register(OWN)
        return registry
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # untyped there
    return registry


def _begin() -> None:
    g.began = time.perf_counter()


def _count(answer: Response) -> Response:
    route = request.endpoint or "none"
    REQUESTS.labels(route, str(answer.status_code)).inc()
    SECONDS.labels(route).observe(time.perf_counter() - g.began)
    if route == RECEIVE:
        told = answer.get_json(silent=True) or {}
        if "verdict" in told:
            DELIVERIES.labels(told["verdict"], "").inc()
        else:
            DELIVERIES.labels("refused", told.get("error", "unknown")).inc()
    return answer


PREFIX = "extend_video_"

log = structlog.stdlib.get_logger(__name__)


class TableCollector(Collector):
    """Reads the table at each scrape; while the database is away it says only that."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @override
    def collect(self) -> Iterable[Metric]:
        try:
            measures = read_measures(db=self._db)
        except SQLAlchemyError as error:
            log.warning("database_unavailable", reason=describe_database_error(error))
            return [_gauge("database_up", "Whether the job table can be read", 0)]
        return [
            _gauge("database_up", "Whether the job table can be read", 1),
            *describe_table(measures),
            *describe_care(measures),
            *describe_history(measures),
        ]


def register_metrics(app: Flask, db: Database) -> None:
    def show_metrics() -> Response:
        registry = open_registry()
        registry.register(TableCollector(db))
        encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        return Response(encode(registry), content_type=content_type)

    app.add_url_rule("/metrics", view_func=show_metrics)


def describe_table(measures: Measures) -> Iterator[Metric]:
    """How many rows there are of each kind."""
    yield _labelled("jobs", "Jobs by state", "state", measures.jobs)
    words = "Age of the job that is longest in the state, in seconds; ended states have none"
    yield _labelled("oldest_job_seconds", words, "state", measures.ages)
    yield _labelled("attempts", "Attempts by outcome", "outcome", measures.attempts)
    words = "Distinct deliveries that were kept, by verdict"
    yield _labelled("deliveries", words, "verdict", measures.deliveries)
    words = (
        "Requests that were refused and are not pruned yet, by the door they came by and by code"
    )
    refused = GaugeMetricFamily(f"{PREFIX}requests_refused", words, labels=["door", "code"])
    for labels, count in measures.refused.items():
        refused.add_metric(labels, count)
    yield refused
    words = "Attempts that were paid for besides the one whose result their job has"
    yield _gauge("extra_charges", words, measures.extra_charges)
    yield _gauge("submissions_held", "Dead submissions that wait for an operator", measures.held)


def describe_care(measures: Measures) -> Iterator[Metric]:
    """Whether the deployment looks after its jobs."""
    words = "How long the most overdue job has been due for the sweep"
    yield _gauge("sweep_lag_seconds", words, measures.sweep_lag.total_seconds())
    words = "When the last sweep ended; 0 before the first"
    yield _gauge("last_sweep_timestamp_seconds", words, _stamp(measures.swept_at))
    paused = {gate.name: gate for gate in measures.pauses}
    words = "1 while all submissions pause because fal refuses the account"
    yield _gauge("submissions_paused", words, int("submissions" in paused))
    seen = list_seen(measures.workers, measures.now)
    yield _gauge("workers", "Workers that were seen within the last minute", len(seen))
    words = "How old the oldest of the numbers is that are not counted at each scrape"
    counted = (measures.now - measures.counted_at).total_seconds()
    yield _gauge("counts_age_seconds", words, max(0.0, counted))
    words = "Events that are not yet in the counters made from them"
    yield _gauge("events_behind", words, measures.events_behind)


def describe_history(measures: Measures) -> Iterator[Metric]:
    """What only grows."""
    history = measures.history
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
        phases.add_metric([name], _accumulate(phase), phase.seconds)
    yield phases
    words = "Bytes of all videos that were archived"
    yield CounterMetricFamily(f"{PREFIX}archive_bytes", words, value=history.archive_bytes)


def _accumulate(phase: Distribution) -> list[tuple[str, float]]:
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip([*map(str, map(float, BOUNDS)), "+Inf"], phase.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}{name}", words, value=value)


def _labelled(name: str, words: str, label: str, values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}{name}", words, labels=[label])
    for of, value in values.items():
        family.add_metric([str(of)], value)
    return family


def _stamp(at: datetime | None) -> float:
    return 0.0 if at is None else at.timestamp()
