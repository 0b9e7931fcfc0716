"""The least that does the same work: two Celery tasks and a Flask route, and nothing made safe.

The first task writes a row, sends the request to fal and writes its id. The route writes a row for
the webhook and publishes the second task, which writes a row, downloads the video and writes where
it is. No claim, no fence, no signature, no history, no check of the video: what dies in between is
lost, or paid twice.
"""

import json
import os
from pathlib import Path
from typing import Any

import httpx
from celery import Celery
from flask import Flask, request
from sqlalchemy import create_engine, text

ENDPOINT = "fal-ai/ltx-2.3-22b/extend-video"
SUBMIT, ARCHIVE = "bare.submit", "bare.archive"

engine = create_engine(os.environ["DATABASE_URL"])
client = httpx.Client(headers={"Authorization": f"Key {os.environ['FAL_KEY']}"}, timeout=30)
app = Celery("bare", broker=os.environ["BROKER_URL"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)


@app.task(name=SUBMIT)
def submit(job_id: str, fields: dict[str, Any]) -> None:
    execute(
        "INSERT INTO requests (id, input) VALUES (:id, CAST(:input AS jsonb))",
        id=job_id,
        input=json.dumps(fields),
    )
    hook = f"{os.environ['WEBHOOK_BASE_URL']}/webhooks/{job_id}"
    url = f"{os.environ['FAL_QUEUE_URL']}/{ENDPOINT}"
    answer = client.post(url, params={"fal_webhook": hook}, json=fields).raise_for_status()
    execute(
        "UPDATE requests SET fal_request_id = :request_id WHERE id = :id",
        id=job_id,
        request_id=answer.json()["request_id"],
    )


@app.task(name=ARCHIVE)
def archive(job_id: str, url: str) -> None:
    execute("INSERT INTO videos (job_id, url) VALUES (:id, :url)", id=job_id, url=url)
    path = Path(os.environ["ARCHIVE"]) / f"{job_id}.mp4"
    with client.stream("GET", url) as answer, path.open("wb") as file:
        for chunk in answer.iter_bytes():
            file.write(chunk)
    execute("UPDATE videos SET path = :path WHERE job_id = :id", id=job_id, path=str(path))


def create_app() -> Flask:
    flask = Flask("bare")
    flask.post("/webhooks/<job_id>")(receive)
    return flask


def receive(job_id: str) -> dict[str, str]:
    body = request.get_data()
    execute("INSERT INTO webhooks (job_id, body) VALUES (:id, :body)", id=job_id, body=body)
    url = json.loads(body)["payload"]["video"]["url"]
    app.send_task(ARCHIVE, args=[job_id, url])
    return {"status": "ok"}


def execute(statement: str, **values: object) -> None:
    """In a transaction of its own."""
    with engine.begin() as connection:
        connection.execute(text(statement), values)
