"""The least that keeps a webhook: a Flask route with one INSERT, committed before it answers.

No signature, no job, no message: any caller that knows the URL is believed.
"""

import os
from datetime import UTC, datetime
from typing import Any

from flask import Flask, request
from sqlalchemy import JSON, Column, MetaData, Table, Text, create_engine
from sqlalchemy.types import DateTime, Uuid
from uuid_utils.compat import uuid7

metadata = MetaData()
webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("received_at", DateTime(timezone=True), nullable=False),
    Column("token", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("body", JSON, nullable=False),
)


def create_app() -> Flask:
    engine = create_engine(os.environ["DATABASE_URL"], pool_size=16)
    metadata.create_all(engine)
    app = Flask("reference")

    @app.post("/webhooks/fal/<token>")
    def receive(token: str) -> dict[str, str]:
        body: dict[str, Any] = request.get_json()
        row = {
            "id": uuid7(),
            "received_at": datetime.now(UTC),
            "token": token,
            "request_id": body["request_id"],
            "body": body,
        }
        with engine.begin() as connection:
            connection.execute(webhooks.insert().values(row))
        return {"status": "ok"}

    return app
