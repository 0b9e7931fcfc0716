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
from worker.fal.webhooks import SignedHeaders, StaleSignatureError, WebhookVerifier, read_headers
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
from worker.jobs.states import BlockedBy, Doorbell, Step
from worker.jobs.values import Verdict
from worker.stages.complete import (
    Receipt,
    describe_refusal,
    expect_poll,
    note_unrecordable,
    receive_delivery,
    receive_hint,
)
from worker.stages.trace import trace_end

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

    def receive(self, token: str) -> Answer:
        """Record fal's delivery. Committed first and published second: the sweep heals the gap."""
        g.received_at = read_clock()
        try:
            body = read_body(self.max_bytes)
        except RequestEntityTooLarge:
            # fal may send it again and again: it is asked instead, for the result may not last.
            doorbell = expect_poll(token, db=self.db, token_secrets=self.token_secrets)
            self.dispatcher.publish_soon(doorbell)
            raise
        headers = dict(request.headers)
        try:
            signed = self.verifier.verify(headers, body, read_clock())
        except (StaleSignatureError, KeysUnavailableError) as doubt:
            return self._take_hint(token, read_headers(headers), body, doubt)
        completion = read_completion(signed, body)
        try:
            receipt = receive_delivery(
                token,
                completion,
                body,
                db=self.db,
                dispatch_timeout=self.dispatch_timeout,
                retry_for=self.retry_for,
                token_secrets=self.token_secrets,
            )
        except Exception as error:
            if not will_repeat(error):
                raise
            self._note_unrecordable(token, completion, error)
            if not isinstance(error, REFUSED):
                raise
            return {"error": BlockedBy.UNRECORDABLE.value, "message": "send it again later"}, 503
        return self._answer(receipt, 200)

    def _note_unrecordable(self, token: str, completion: Completion, error: Exception) -> None:
        """The row says why, and `doctor` lists it: else fal would come again and again in vain."""
        reason, is_noted = describe_refusal(error), True
        try:
            doorbell = note_unrecordable(token, completion, error, db=self.db)
            self.dispatcher.publish_soon(doorbell)
        except (SQLAlchemyError, ExtendVideoError):
            is_noted = False
        log.error("completion_not_recorded", reason=reason, is_noted=is_noted)

    def _take_hint(
        self, token: str, headers: SignedHeaders, body: bytes, doubt: ExtendVideoError
    ) -> Answer:
        """Genuine, as far as one can see, but nothing is proven: fal is asked, with our own key."""
        try:
            completion = read_completion(headers, body)
        except InvalidDeliveryError:
            raise doubt from None
        receipt = receive_hint(
            token, completion, body, db=self.db, token_secrets=self.token_secrets
        )
        return self._answer(receipt, 202)

    def _answer(self, receipt: Receipt, status: int) -> Answer:
        # fal need not wait for it: a ring that fails changes nothing about the answer.
        self.dispatcher.publish_soon(receipt.doorbell)
        if receipt.verdict is Verdict.RECORDED:  # a slot is free
            self.dispatcher.publish_soon(Doorbell(Step.SUBMIT))
        job = receipt.job
        if job is None:
            log.error("delivery_without_job", verdict=receipt.verdict.value)
        else:
            log.info("delivery_received", verdict=receipt.verdict.value, state=job.state.value)
            trace_since("receive", job.id, g.received_at, verdict=receipt.verdict.value)
            trace_end(job if receipt.verdict is Verdict.RECORDED else None)
        return {"verdict": receipt.verdict.value}, status

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


def read_completion(headers: SignedHeaders, body: bytes) -> Completion:
    """What the delivery tells. Raises InvalidDeliveryError and InvalidSignatureError."""
    completion = parse_webhook(body)
    if completion.fal_request_id != headers.request_id:
        raise InvalidSignatureError("header and body name different requests")
    return completion


def register_routes(app: Flask, receiver: Receiver) -> None:
    routes = Blueprint("webhook", __name__)
    routes.post("/webhooks/fal/<token>")(receiver.receive)
    routes.get("/readyz")(receiver.check_ready)
    routes.get("/healthz")(show_health)
    app.register_blueprint(routes)
    app.register_error_handler(HTTPException, _answer_http_error)
    app.register_error_handler(ExtendVideoError, _answer_error)
    app.register_error_handler(SQLAlchemyError, _answer_database_away)
    app.register_error_handler(Exception, _answer_mistake)


def show_health() -> Answer:
    return {"status": "ok"}, 200


_STATUS_OF_ERROR: dict[type[ExtendVideoError], int] = {
    InvalidSignatureError: 401,
    InvalidDeliveryError: 400,
    KeysUnavailableError: 503,
    OutdatedSchemaError: 503,
    UnsuitableDatabaseError: 503,
    # A broker that cannot do is found out once it is there: by `GET /readyz` alone.
    InvalidSettingsError: 503,
}


def _answer_error(error: ExtendVideoError) -> Answer:
    known = (status for kind, status in _STATUS_OF_ERROR.items() if isinstance(error, kind))
    status = next(known, 500)
    log.warning("request_refused", code=error.code, reason=str(error), status=status)
    return {"error": error.code, "message": str(error)}, status


def _answer_database_away(error: SQLAlchemyError) -> Answer:
    log.error("database_unavailable", reason=describe_database_error(error))
    return {"error": "database_unavailable", "message": "send it again later"}, 503


def _answer_mistake(error: Exception) -> Answer:
    # Flask's own line would name the path, and with it the token.
    log.error("receiver_broken", exc_info=error)
    return {"error": "internal_server_error", "message": "send it again later"}, 500


def _answer_http_error(error: HTTPException) -> Answer:
    code = error.name.lower().replace(" ", "_")
    return {"error": code, "message": error.description or error.name}, error.code or 500
