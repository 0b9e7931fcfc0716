"""What has become of the jobs: asked of the job table, the archive, the ledger and the logs."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

from tests.chaos.site import SETTINGS, Site
from tests.system.rows import Row

SHOWN = 5
SHOWN_CHARACTERS = 200
CALLER_GONE = "ConnectionResetError: Connection lost"
"""The emulator's HTTP server, about a worker that was killed while it was sending its POST."""
TRACEBACK = "Traceback (most recent call last):"
ALLOWED_ANSWERS = {None, 200, 202, 401, 503}
"""None: nobody answered, for it was killed."""


@dataclass(frozen=True)
class Judgement:
    """`problems` are whatever else is not as it should be, a line each."""

    jobs: int
    lost: Sequence[UUID]
    paid_twice: Sequence[UUID]
    problems: Sequence[str]

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.paid_twice or self.problems)


def judge_site(site: Site) -> Judgement:
    """Look at everything that is left, once the jobs have been drained."""
    expected = site.list_expected()
    jobs = {row["id"]: row for row in site.table.select("SELECT * FROM jobs")}
    requests = site.emulator.list_requests()
    ledger = site.emulator.client.get("/_emulator/ledger").json()
    charges = read_charges(ledger)
    problems = [
        *describe_strays(jobs, expected),
        *check_charges(jobs, charges),
        *check_attempts(site),
        *check_slots(site),
        *check_cap(ledger, int(SETTINGS["MAX_IN_FLIGHT"])),
        *check_archive(jobs.values()),
        *check_answers(requests),
        *check_logs(site.yard.directory),
    ]
    return Judgement(
        jobs=len(expected),
        lost=find_lost(jobs, expected),
        paid_twice=[job_id for job_id, count in charges.items() if count > 1],
        problems=problems,
    )


def read_charges(ledger: Mapping[str, Any]) -> dict[UUID, int]:
    """How many runs each job has paid; its prompt ends with its id."""
    charges: dict[UUID, int] = {}
    for entry in ledger["by_input"]:
        job_id = UUID(entry["prompt"].rpartition(" ")[2])
        charges[job_id] = charges.get(job_id, 0) + entry["charges"]
    return charges


def find_lost(jobs: Mapping[UUID, Row], expected: Sequence[UUID]) -> list[UUID]:
    """Promised, and not archived."""
    return [one for one in expected if one not in jobs or jobs[one]["state"] != "archived"]


def describe_strays(jobs: Mapping[UUID, Row], expected: Sequence[UUID]) -> Iterator[str]:
    """A producer that is ended between its commit and its line leaves one job unknown to us."""
    for job_id in {*jobs} - {*expected}:
        if jobs[job_id]["state"] != "archived":
            yield f"job {job_id}, promised to nobody, is {jobs[job_id]['state']}"


def check_charges(jobs: Mapping[UUID, Row], charges: Mapping[UUID, int]) -> Iterator[str]:
    for job_id in {*charges} - {*jobs}:
        yield f"a charge for {job_id}, which is no job"
    for job_id, row in jobs.items():
        if row["state"] == "archived" and not charges.get(job_id):
            yield f"job {job_id} is archived, and nobody was charged for it"


def check_attempts(site: Site) -> Iterator[str]:
    """An attempt of an ended job that was neither settled nor adopted may have been paid."""
    unsettled = site.table.select(
        "SELECT attempts.* FROM attempts JOIN jobs ON jobs.id = attempts.job_id "
        "WHERE outcome IS NULL AND attempts.fal_request_id IS NULL AND due_at IS NULL"
    )
    for attempt in unsettled:
        yield f"attempt {attempt['number']} of ended job {attempt['job_id']} was never settled"


def check_slots(site: Site) -> Iterator[str]:
    """An attempt of an ended job that counts as in flight keeps others waiting for nothing."""
    held = site.table.select(
        "SELECT attempts.* FROM attempts JOIN jobs ON jobs.id = attempts.job_id "
        "WHERE slot_until IS NOT NULL AND due_at IS NULL"
    )
    for attempt in held:
        yield f"attempt {attempt['number']} of ended job {attempt['job_id']} is still in flight"


def check_cap(ledger: Mapping[str, Any], cap: int) -> Iterator[str]:
    """The account never had more requests at once than may be in flight, whoever was killed."""
    if ledger["most_at_once"] > cap:
        yield f"fal had {ledger['most_at_once']} requests at once, {cap} are allowed"


def check_archive(rows: Any) -> Iterator[str]:
    for row in rows:
        if row["state"] == "archived":
            path = unquote(urlsplit(row["archive_uri"]).path)
            try:
                with open(path, "rb") as file:  # noqa: PTH123 - a path out of a URI
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                yield f"the file of job {row['id']}: {error.strerror}"
                continue
            if digest != row["archive_sha256"]:
                yield f"the file of job {row['id']} is not what its row says"


def check_answers(requests: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The receiver has recorded, or asked for a repetition; it never broke."""
    for request in requests:
        answers = {delivery["status_code"] for delivery in request["deliveries"]}
        if answers - ALLOWED_ANSWERS:
            yield f"the receiver answered {answers} to {request['request_id']}"


def check_logs(directory: Path) -> Iterator[str]:
    """No daemon of ours may show a traceback; Celery's own about its broker are told apart."""
    for path in sorted(directory.glob("*.log")):
        ends = Counter(list_tracebacks(path.read_text(errors="replace")))
        if path.stem == "emulator":
            del ends[CALLER_GONE]
        for end, times in ends.most_common(SHOWN):
            yield f"{path.stem} log, {times} times: {end}"


def list_tracebacks(log: str) -> Iterator[str]:
    """The last line of each traceback that is not about the connection to the broker.

    Ours are in one line of JSON each.
    """
    for block in log.replace("\\n", "\n").split(TRACEBACK)[1:]:
        if "redis" not in block and "kombu" not in block:
            lines = block.splitlines()
            last = next((line for line in lines if line and line[0] not in " |+"), "")
            yield last[:SHOWN_CHARACTERS]


def ask_doctor(site: Site) -> Iterator[str]:
    """The product's own opinion of its tables, every file of the archive, and fal's list."""
    asked = site.deployment.run("doctor", "--all")
    if asked.returncode != 0:
        yield f"doctor: {(asked.stdout + asked.stderr)[-2000:]}"
