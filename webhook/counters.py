"""What only the receiver's processes know: requests, and deliveries that leave no row.

Several gunicorn workers share the counts through PROMETHEUS_MULTIPROC_DIR, a directory which
prometheus-client reads from the environment; without it each process tells its own.
"""

import os
import time
from pathlib import Path

from flask import Flask, Response, g, request

MULTIPROC_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
if os.environ.get(MULTIPROC_VARIABLE):
    # Before prometheus-client is imported, which takes it for there.
    Path(os.environ[MULTIPROC_VARIABLE]).mkdir(parents=True, exist_ok=True)

from prometheus_client import (  # noqa: E402 - see above
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.multiprocess import MultiProcessCollector  # noqa: E402 - see above

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
