"""Jobs that wait for their webhooks, and these webhooks as fal signs them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from sqlalchemy import text

from benchmarks.harness.load import Load
from benchmarks.harness.report import REPOSITORY
from tests.harness.jobs import build_result, make_job
from tests.harness.processes import BIN, Part, Yard, bind_listener
from tests.harness.servers import Broker, Postgres
from tests.harness.web import run_server, send_json
from tests.harness.webhooks import KEY, build_body, build_delivery, write_jwks
from worker.ground.clock import read_clock
from worker.ground.db import Database
from worker.ground.schema import upgrade_schema
from worker.jobs.models import AttemptRow, JobRow
from worker.jobs.states import JobState

# As in docker-compose.yml.
GUNICORN = ("--threads", "8", "--no-control-socket")
CONNECTIONS = 64
COPY = """INSERT INTO {table} ({columns}) SELECT {values}
FROM {table} AS model, generate_series(CAST(:first AS int), CAST(:last AS int)) AS n
WHERE model.{key} = :model"""
MADE = {
    "jobs": {
        "id": "CAST('01938000-0000-7000-8000-' || lpad(to_hex(n), 12, '0') AS uuid)",
        "fal_request_id": "'request-' || n",
    },
    "attempts": {
        "id": "CAST('01938000-0000-7000-9000-' || lpad(to_hex(n), 12, '0') AS uuid)",
        "job_id": "CAST('01938000-0000-7000-8000-' || lpad(to_hex(n), 12, '0') AS uuid)",
        "fal_request_id": "'request-' || n",
        "outcome": "'accepted'",
        "token_hash": "encode(sha256(convert_to('token-' || n, 'UTF8')), 'hex')",
    },
}


@dataclass
class WaitingJobs:
    """A table in which jobs wait for fal; each webhook of `sign` is the first for one of them."""

    db: Database
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self._model = make_job(self.db, JobState.SUBMITTED, now=read_clock())

    def sign(self, amount: int, result: Mapping[str, object] | None = None) -> list[str]:
        """Whole requests, one for each of so many new jobs; to be sent within five minutes."""
        numbers = [next(self._numbers) for _ in range(amount)]
        self._insert(numbers[0], numbers[-1])
        return [write_request(number, result or build_result()) for number in numbers]

    def count(self, state: JobState) -> int:
        statement = text("SELECT count(*) FROM jobs WHERE state = :state")
        with self.db.reading() as connection:
            return int(connection.execute(statement, {"state": state.value}).scalar_one())

    def _insert(self, first: int, last: int) -> None:
        """Copies of a job that the stages' own SQL has led there."""
        with self.db.transaction() as connection:
            for row, key in ((JobRow, "id"), (AttemptRow, "job_id")):
                made = MADE[row.__tablename__]
                columns = [column.name for column in row.__table__.columns]
                values = ", ".join(made.get(name, f"model.{name}") for name in columns)
                statement = COPY.format(
                    table=row.__tablename__, columns=", ".join(columns), values=values, key=key
                )
                bound = {"first": first, "last": last, "model": self._model.id}
                connection.execute(text(statement), bound)
            connection.execute(text("ANALYZE jobs, attempts"))


def write_request(number: int, result: Mapping[str, object]) -> str:
    """The webhook of a job, as it comes over the wire."""
    name = f"request-{number}"
    body = build_body(request_id=name, gateway_request_id=name, payload=result)
    delivery = build_delivery(body, token=f"token-{number}", request_id=name)
    head = {"Host": "bench", "Content-Length": str(len(delivery.body)), **delivery.headers}
    lines = [
        f"POST {delivery.path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in head.items()),
    ]
    return "\r\n".join([*lines, "", delivery.body.decode()])


@dataclass(frozen=True)
class Served:
    """An application under gunicorn."""

    part: Part
    settings: Mapping[str, str]
    host: str
    port: int

    def build_load(self, requests: list[str], rate: float | None = None) -> Load:
        return Load(self.host, self.port, requests, CONNECTIONS, rate)


@contextmanager
def run_receiver(
    yard: Yard, postgres: Postgres, broker: Broker, changes: Mapping[str, str] | None = None
) -> Iterator[tuple[WaitingJobs, Served]]:
    """Ours, with a table of its own."""
    url = postgres.url_of(postgres.create_database())
    db = Database(url)
    upgrade_schema(url)
    with run_server(send_json(write_jwks(KEY))) as keys:
        settings = {
            "DATABASE_URL": url,
            "BROKER_URL": broker.url,
            "FAL_JWKS_URL": f"{keys.url}/jwks.json",
            "WEBHOOK_BASE_URL": "http://127.0.0.1",
            **(changes or {}),
        }
        with run_gunicorn(yard, "receiver", "webhook:create_app()", settings) as served:
            yield WaitingJobs(db), served
    db.close()


@contextmanager
def run_gunicorn(
    yard: Yard, name: str, application: str, settings: dict[str, str]
) -> Iterator[Served]:
    """With the options that the documentation recommends, whatever the application."""
    with bind_listener() as listener:
        command = [str(BIN / "gunicorn"), "--bind", f"fd://{listener.fileno()}", *GUNICORN]
        known = {**settings, "PYTHONPATH": str(REPOSITORY)}
        part = yard.start(name, [*command, application], known, [listener.fileno()])
        yield Served(part, known, *listener.getsockname())
