"""The receiver's routes. Verify the raw bytes, parse, commit, publish, answer; no ideas of its own.

What fal does with the answers: 2xx ends the delivery, anything else is sent again with growing
pauses, and a redirect ends it as failed. So 503 means "again, please".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

import structlog
from flask import Blueprint, Flask, g, request
from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge

from worker.broker.dispatch import Dispatcher
from worker.fal.completion import Completion, parse_webhook
from worker.fal.webhooks import StaleSignatureError, WebhookVerifier, read_headers
from worker.ground.clock import read_clock
from worker.ground.db import REFUSED, Database, describe_database_error, will_repeat
from worker.ground.errors import (
    ExtendVideoError,
    InvalidDeliveryError,
    InvalidSettingsError,
    InvalidSignatureError,
    KeysUnavailableError,
    OutdatedSchemaError,
    UnsuitableDatabaseError,
)
from worker.ground.schema import check_schema
from worker.ground.tracing import trace_since
from worker.jobs.states import BlockedBy
from worker.jobs.values import Verdict
from worker.stages.complete import (
    describe_refusal,
    expect_poll,
    note_unrecordable,
    receive_delivery,
    receive_hint,
)
from worker.stages.trace import trace_end

UNRECORDABLE = BlockedBy.UNRECORDABLE.value
Answer: TypeAlias = tuple[dict[str, str], int]

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Receiver:
    """What the routes work with."""

    db: Database
    verifier: WebhookVerifier
    dispatcher: Dispatcher
    dispatch_timeout: timedelta
    max_bytes: int
    retry_for: timedelta
    token_secrets: Sequence[SecretStr] = ()

    def receive(self, token: str) -> Answer:  # noqa: C901 - every outcome by its name
        """Record fal's delivery. Committed first and published second: the sweep heals the gap."""
        g.received_at = read_clock()
        try:
            body = read_body(self.max_bytes)
        except RequestEntityTooLarge:
            # fal may send it again and again: it is polled instead, for the result may not last.
            doorbell = expect_poll(token, db=self.db, token_secrets=self.token_secrets)
            self.dispatcher.publish_soon(doorbell)
            raise
        headers, doubt = dict(request.headers), None
        try:
            signed = self.verifier.verify(headers, body, read_clock())
        except (StaleSignatureError, KeysUnavailableError) as error:
            # Genuine, as far as one can see, but nothing is proven: fal is polled, with our key.
            signed, doubt = read_headers(headers), error
        try:
            completion = parse_webhook(body)
        except InvalidDeliveryError as error:
            raise doubt or error from None
        if completion.fal_request_id != signed.request_id:
            raise InvalidSignatureError("header and body name different requests")
        db, secrets, within = self.db, self.token_secrets, self.dispatch_timeout
        try:
            if doubt is not None:
                receipt = receive_hint(token, completion, body, db=db, token_secrets=secrets)
            else:
                receipt = receive_delivery(
                    token,
                    completion,
                    body,
                    db=db,
                    dispatch_timeout=within,
                    retry_for=self.retry_for,
                    token_secrets=secrets,
                )
        except Exception as error:
            if doubt is None and will_repeat(error):
                self._note_unrecordable(token, completion, error)
                if isinstance(error, REFUSED):
                    return {"error": UNRECORDABLE, "message": "send it again later"}, 503
            raise
        # fal need not wait for it: a message that is lost changes nothing about the answer.
        for doorbell in receipt.doorbells:
            self.dispatcher.publish_soon(doorbell)
        job, verdict = receipt.job, receipt.verdict.value
        if job is None:
            log.error("delivery_without_job", verdict=verdict)
        else:
            log.info("delivery_received", verdict=verdict, state=job.state.value)
            trace_since("receive", job.id, g.received_at, verdict=verdict)
            trace_end(job if receipt.verdict is Verdict.RECORDED else None)
        return {"verdict": verdict}, 200 if doubt is None else 202

    def _note_unrecordable(self, token: str, completion: Completion, error: Exception) -> None:
        """The row says why, and `doctor` lists it: else fal would come again and again in vain."""
        reason, is_noted = describe_refusal(error), True
        try:
            doorbell = note_unrecordable(token, completion, error, db=self.db)
            self.dispatcher.publish_soon(doorbell)
        except (SQLAlchemyError, ExtendVideoError):
            is_noted = False
        log.error("completion_not_recorded", reason=reason, is_noted=is_noted)

    def check_ready(self) -> Answer:
        """Whether deliveries can be recorded, and messages published."""
        check_schema(self.db)
        broker = self.dispatcher.ping()
        return {
            "database": "ok",
            "broker": "ok" if broker else "unavailable",
        }, 200 if broker else 503


def read_body(max_bytes: int) -> bytes:
    """The raw body. Raises an HTTPException for one that is too large, or none at all."""
    try:
        body = request.get_data(cache=False)
    except HTTPException:
        raise
    except Exception as error:
        # Each WSGI server has errors of its own for chunks that make no sense.
        raise BadRequest("the body cannot be read") from error
    if len(body) > max_bytes:
        raise RequestEntityTooLarge
    return body


def register_routes(app: Flask, receiver: Receiver) -> None:
    routes = Blueprint("webhook", __name__)
    routes.post("/webhooks/fal/<token>")(receiver.receive)
    routes.get("/readyz")(receiver.check_ready)
    routes.get("/healthz")(show_health)
    app.register_blueprint(routes)
    app.register_error_handler(Exception, answer_error)


def show_health() -> Answer:
    return {"status": "ok"}, 200


_UNAVAILABLE = (
    KeysUnavailableError,
    OutdatedSchemaError,
    UnsuitableDatabaseError,
    # A broker that cannot be used is found out once it is there: by `GET /readyz` alone.
    InvalidSettingsError,
)


def answer_error(error: Exception) -> Answer:
    """As JSON, and logged; Flask's own log line would have the path, and with it the token."""
    match error:
        case HTTPException():
            code = error.name.lower().replace(" ", "_")
            return {"error": code, "message": error.description or error.name}, error.code or 500
        case SQLAlchemyError():
            log.error("database_unavailable", reason=describe_database_error(error))
            return {"error": "database_unavailable", "message": "send it again later"}, 503
        case InvalidSignatureError():
            status = 401
        case InvalidDeliveryError():
            status = 400
        case ExtendVideoError():
            status = 503 if isinstance(error, _UNAVAILABLE) else 500
        case _:
            log.error("receiver_broken", exc_info=error)
            return {"error": "internal_server_error", "message": "send it again later"}, 500
    log.warning("request_refused", code=error.code, reason=str(error), status=status)
    return {"error": error.code, "message": str(error)}, status
