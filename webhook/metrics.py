"""`GET /metrics`: the table in numbers, and what the receiver's processes have counted.

All that matters is read from SQL, so every process of a deployment reports the same. What leaves no
row (requests, refused deliveries) is counted in the processes. Several gunicorn workers share these
counts through PROMETHEUS_MULTIPROC_DIR, a directory which prometheus-client reads from the
environment; without it each process reports its own.
"""

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
from worker.jobs.admission import ACCOUNT
from worker.jobs.states import JobEvent
from worker.ops.metrics import BOUNDS, Measures, list_seen, read_measures

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
        try:
            measures = read_measures(db=self._db)
        except SQLAlchemyError as error:
            log.warning("database_unavailable", reason=describe_database_error(error))
            return [_gauge("database_up", "Whether the job table can be read", 0)]
        return [
            _gauge("database_up", "Whether the job table can be read", 1),
            *describe_gauges(measures),
            *describe_counters(measures),
        ]


def describe_gauges(measures: Measures) -> Iterator[Metric]:
    """How many rows there are of each kind, and whether the deployment looks after its jobs."""
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
    words = "Submissions confirmed as not accepted that wait for an operator"
    yield _gauge("submissions_held", words, measures.held)
    words = "How long the most overdue job has been due for the sweep"
    yield _gauge("sweep_lag_seconds", words, measures.sweep_lag.total_seconds())
    words = "When the last sweep ended; 0 before the first"
    swept = measures.swept_at.timestamp() if measures.swept_at else 0.0
    yield _gauge("last_sweep_timestamp_seconds", words, swept)
    is_paused = any(pause.scope == ACCOUNT for pause in measures.pauses)
    words = "1 while all submissions are paused"
    yield _gauge("submissions_paused", words, int(is_paused))
    seen = list_seen(measures.workers, measures.now)
    yield _gauge("workers", "Workers that were seen within the last minute", len(seen))
    words = "How old the oldest of the numbers is that are not counted at each scrape"
    counted = (measures.now - measures.counted_at).total_seconds()
    yield _gauge("counts_age_seconds", words, max(0.0, counted))
    words = "Events that are not yet in the counters made from them"
    yield _gauge("events_behind", words, measures.events_behind)


def describe_counters(measures: Measures) -> Iterator[Metric]:
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
        labels = [*(str(float(bound)) for bound in BOUNDS), "+Inf"]
        buckets = [*zip(labels, map(float, accumulate(phase.counts)), strict=True)]
        phases.add_metric([name], buckets, phase.seconds)
    yield phases
    words = "Bytes of all videos that were archived"
    yield CounterMetricFamily(f"{PREFIX}archive_bytes", words, value=history.archive_bytes)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}{name}", words, value=value)


def _labelled(name: str, words: str, label: str, values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}{name}", words, labels=[label])
    for of, value in values.items():
        family.add_metric([str(of)], value)
    return family
