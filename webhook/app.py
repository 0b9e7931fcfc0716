"""Where the Flask application is born: from settings, with its own database and keys."""

import atexit
import sys
from contextlib import closing, suppress
from typing import NoReturn

from flask import Flask
from structlog.contextvars import clear_contextvars
from werkzeug.middleware.proxy_fix import ProxyFix

from webhook.fal import Receiver, register_routes
from webhook.metrics import count_requests, register_metrics
from webhook.page.views import register_page
from webhook.slow_clients import bound_reading
from worker.broker.dispatch import Dispatcher
from worker.fal.http import build_client
from worker.fal.webhooks import KeyCache, WebhookVerifier
from worker.ground.db import PROGRAM, TRANSIENT_DB_ERRORS, Database
from worker.ground.errors import InvalidSettingsError, UnsuitableDatabaseError
from worker.ground.log import configure_logging
from worker.ground.settings import Settings, list_secrets, load_settings

# As many as the documentation gives gunicorn threads: with fewer, others come and go all the time.
CONNECTIONS = 8
RECEIVER_PROGRAM = f"{PROGRAM} receiver"


def create_app(settings: Settings | None = None) -> Flask:
    """Build the receiver; without settings, from the environment, ending the process if wrong."""
    settings = settings or _load_or_exit()
    configure_logging(settings.log_level, settings.log_format, list_secrets(settings))
    _check_database_or_exit(settings)
    keys = KeyCache(settings.fal_jwks_url, build_client())
    receiver = Receiver(
        db=Database(settings.database_url, pool_size=CONNECTIONS, program=RECEIVER_PROGRAM),
        verifier=WebhookVerifier(keys, user_id=settings.fal_user_id),
        dispatcher=Dispatcher(settings),
        dispatch_timeout=settings.lease_seconds,
        max_bytes=settings.webhook_max_bytes,
        retry_for=settings.retry_seconds,
        token_secrets=settings.token_secrets,
    )
    # What was answered, but not yet published, when gunicorn ends a worker.
    atexit.register(receiver.dispatcher.close)
    app = Flask("webhook", static_folder=None)
    # One more than allowed: a chunked body is cut there, which must not be taken for a whole one.
    app.config["MAX_CONTENT_LENGTH"] = settings.webhook_max_bytes + 1
    # A redirect would end a delivery at fal for good.
    app.url_map.merge_slashes = False
    app.before_request(clear_contextvars)
    bound_reading(app, settings.webhook_read_seconds)
    count_requests(app)
    register_routes(app, receiver)
    register_metrics(app, receiver.db)
    register_page(app, settings, receiver.db, receiver.dispatcher)
    trust_proxies(app, settings.trusted_proxies)
    return app


def trust_proxies(app: Flask, count: int) -> None:
    """Believe the last `count` entries of X-Forwarded-For and -Proto; without proxies nothing."""
    if count:
        proxied = ProxyFix(app.wsgi_app, x_for=count, x_proto=count, x_host=0)
        setattr(app, "wsgi_app", proxied)  # noqa: B010 - for mypy it is a method


def _load_or_exit() -> Settings:
    try:
        return load_settings()
    except InvalidSettingsError as error:
        _exit(*error.violations)


def _check_database_or_exit(settings: Settings) -> None:
    """An unavailable database may come back; a wrong encoding does not change."""
    with (
        closing(Database(settings.database_url, program=RECEIVER_PROGRAM)) as db,
        suppress(*TRANSIENT_DB_ERRORS),
    ):
        # The connections of requests are others': gunicorn may fork after this.
        try:
            db.check_encoding()
        except UnsuitableDatabaseError as error:
            _exit(f"{error.code}: {error}")


def _exit(*reasons: object) -> NoReturn:
    """Gunicorn prints no more than this, and does not start its workers again and again."""
    print(*reasons, sep="\n", file=sys.stderr)  # noqa: T201 - it may come before logging is set up
    sys.exit(4)
