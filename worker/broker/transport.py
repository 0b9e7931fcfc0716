"""Options of each kind of broker: TLS, timeouts, and the type of its queues."""

import ssl
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, cast

import structlog
from kombu import Connection
from redis.backoff import NoBackoff
from redis.retry import Retry

from worker.ground.errors import InvalidSettingsError, Violation
from worker.ground.log import mask_url
from worker.ground.settings import Settings

# Of a publisher: each timeout is short, for the sweep publishes again.
PUBLISHER_SECONDS = 1

log = structlog.stdlib.get_logger(__name__)


@dataclass
class Outage:
    """Logs once that the broker is unavailable, and once that it is back."""

    is_on: bool = False
    _lock: Lock = field(default_factory=Lock, repr=False)

    def begin(self, error: BaseException) -> None:
        with self._lock:
            was_on, self.is_on = self.is_on, True
        write = log.debug if was_on else log.warning
        write("broker_unavailable", reason=f"{type(error).__name__}: {error}")

    def end(self) -> None:
        with self._lock:
            was_on, self.is_on = self.is_on, False
        if was_on:
            log.info("broker_back")


OUTAGE = Outage()
"""Of this process: its threads see the same broker."""


def is_amqp(broker_url: str) -> bool:
    return broker_url.startswith(("amqp://", "amqps://"))


def choose_tls(settings: Settings) -> dict[str, Any] | None:
    """Certificate and host name are checked, which neither kombu's Redis nor py-amqp does alone."""
    ca_file = settings.broker_ca_file
    if settings.broker_url.startswith("rediss://"):
        ca = {"ssl_ca_certs": str(ca_file)} if ca_file else {}
        return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **ca}
    if settings.broker_url.startswith("amqps://"):
        ca = {"ca_certs": str(ca_file)} if ca_file else {}
        # None: the host name of the URL.
        return {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None, **ca}
    return None


def refuse_cluster(connection: Connection, broker_url: str) -> None:
    """Raise InvalidSettingsError for a Redis Cluster, whose nodes each hold some of the keys.

    A broker that is unavailable does not prevent the start.
    """
    if is_amqp(broker_url):
        return
    try:
        found = cast("Any", connection.default_channel).client.info("cluster")
    except Exception as error:  # noqa: BLE001 - any broker, any failure
        log.debug("broker_not_checked", reason=type(error).__name__)
        return
    if found.get("cluster_enabled"):
        allowed = "one Redis, or Redis behind sentinels: a Redis Cluster cannot hold its queues"
        raise InvalidSettingsError((Violation("BROKER_URL", mask_url(broker_url), allowed),))


def choose_consumer_options(settings: Settings) -> dict[str, Any]:
    """Redis gives a message that was not acknowledged to another worker after a lease.

    RabbitMQ does so by itself, as soon as the connection is gone.
    """
    if is_amqp(settings.broker_url):
        return {}
    lease = settings.lease_seconds.total_seconds()
    return {
        "visibility_timeout": lease,
        # By default kombu restores messages of dead workers at every tenth check, that is every
        # 100 s, and a worker that dies meanwhile keeps all others from it for 300 s.
        "unacked_restore_interval": settings.sweep_seconds.total_seconds(),
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": lease,
        "socket_keepalive": True,
        "health_check_interval": 25,
        **_choose_sentinel(settings),
    }


def choose_publisher_options(settings: Settings) -> dict[str, Any]:
    """Every timeout is short, and nothing is repeated."""
    if is_amqp(settings.broker_url):
        return {"read_timeout": PUBLISHER_SECONDS, "write_timeout": PUBLISHER_SECONDS}
    return {
        "socket_connect_timeout": PUBLISHER_SECONDS,
        "socket_timeout": PUBLISHER_SECONDS,
        "max_retries": 0,
        **_choose_sentinel(settings),
    }


def _choose_sentinel(settings: Settings) -> dict[str, Any]:
    if not settings.broker_url.startswith("sentinel://"):
        return {}
    # redis-py retries each unavailable sentinel for seconds: the next one knows as well.
    timeouts = {
        "socket_connect_timeout": PUBLISHER_SECONDS,
        "socket_timeout": PUBLISHER_SECONDS,
        "retry": Retry(NoBackoff(), 0),
    }
    return {"master_name": settings.broker_sentinel_master, "sentinel_kwargs": timeouts}
