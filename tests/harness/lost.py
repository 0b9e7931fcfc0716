"""Rows that a restored back-up does not have, while fal has the requests."""

from dataclasses import replace

from pydantic import SecretStr
from sqlalchemy import delete

from tests.harness.jobs import insert_job
from tests.harness.stages import Bench, encode
from worker.fal.completion import Completion
from worker.ground.db import Database
from worker.jobs.models import JobRow
from worker.jobs.values import Job
from worker.stages.complete import Receipt, receive_delivery, receive_hint

SECRETS = (SecretStr("n" * 32), SecretStr("o" * 32))


def sign_tokens(bench: Bench) -> Bench:
    """The same with TOKEN_SECRET."""
    return replace(bench, submit_policy=replace(bench.submit_policy, token_secrets=SECRETS))


def remove_job(db: Database, job: Job) -> None:
    with db.transaction() as connection:
        connection.execute(delete(JobRow).where(JobRow.id == job.id))


def queue_again(bench: Bench, job: Job) -> Job:
    """The job as it was before it was claimed: queued, without attempts."""
    remove_job(bench.db, job)
    names = ("id", "endpoint", "input", "tenant", "idempotency_key", "priority", "labels")
    columns = {name: getattr(job, name) for name in names}
    return insert_job(bench.db, now=job.enqueued_at, **columns)


def deliver(bench: Bench, token: str, completion: Completion) -> Receipt:
    """A proven webhook with this token."""
    return receive_delivery(
        token,
        completion,
        encode(completion),
        db=bench.db,
        dispatch_timeout=bench.submit_policy.lease,
        token_secrets=SECRETS,
        clock=bench.clock,
    )


def hint(bench: Bench, token: str, completion: Completion) -> Receipt:
    body = encode(completion)
    return receive_hint(
        token, completion, body, db=bench.db, token_secrets=SECRETS, clock=bench.clock
    )
