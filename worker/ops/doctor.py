"""Checks rows, archive and fal's listing against each other. It only reads.

A walk through the tables checks the rows (`jobs/checks.py`) and the files of archived rows, all or
a sample. With a key, fal's listing is compared with the attempts, both ways.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import Connection

from worker.fal.platform import ListedRequest, Listing, PlatformClient, is_same_input, sign_input
from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.errors import StoreUnavailableError
from worker.jobs import admission, archives, checks, sent
from worker.jobs.archives import Copy
from worker.jobs.attempts import list_known_requests
from worker.jobs.checks import Check, Finding, check_slice, find_strays
from worker.jobs.sent import PaidRequest, SentInput
from worker.jobs.walks import offer, walk_slices
from worker.media.store import MOST_FAILURES, ArchiveLook, Store
from worker.ops.verify import find_foreign_mark

SAMPLE = 200
# So many findings of each check are reported one by one; the others are counted.
MOST_FINDINGS = 1000
# Our clock and fal's may differ, and an attempt is a little older than its request.
MARGIN = timedelta(minutes=5)
BATCH = 500
CHECKS_WITH_KEY = (Check.ORPHAN_AT_FAL, Check.MISSING_AT_FAL)


@dataclass(frozen=True, slots=True)
class DoctorPolicy:
    """What is examined: every file or a sample, and how far back fal's list is compared."""

    endpoint: str
    every_file: bool = False
    window: timedelta = timedelta(hours=24)


@dataclass
class Diagnosis:
    """What was checked and found. `counts` has every check made, also those without findings."""

    counts: Counter[Check]
    jobs: int = 0
    archived: int = 0
    files: int = 0
    unseen: int = 0
    listed: int | None = None
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    not_ours: list[str] = field(default_factory=list)
    """Ids of fal's requests that nothing here shows to be ours."""

    @property
    def is_clean(self) -> bool:
        return not self.counts.total()

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.counts[finding.check] += 1
            if self.counts[finding.check] <= MOST_FINDINGS:
                self.findings.append(finding)


def examine(
    *,
    db: Database,
    store: Store,
    platform: PlatformClient | None,
    policy: DoctorPolicy,
    clock: Clock = read_clock,
) -> Diagnosis:
    """Make every check; those against fal's list only with a `platform`."""
    now = clock()
    made = [check for check in Check if platform is not None or check not in CHECKS_WITH_KEY]
    diagnosis = Diagnosis(Counter(dict.fromkeys(made, 0)))
    foreign = _find_foreign(db, store)
    look = ArchiveLook(store, failures=0 if foreign is None else MOST_FAILURES)
    paid = _examine_tables(diagnosis, db, look, policy, now)
    if foreign is not None:
        diagnosis.notes.append(foreign)
    with db.reading() as connection:
        diagnosis.add(find_strays(connection))
        diagnosis.notes += [*_note_gates(connection), *_note_held(connection)]
    if platform is not None:
        start = now - policy.window
        window = (policy.endpoint, start - MARGIN, clock() + MARGIN)
        _compare_with_fal(diagnosis, db, platform, window, paid)
    return diagnosis


def _find_foreign(db: Database, store: Store) -> str | None:
    try:
        return find_foreign_mark(db=db, store=store)
    except StoreUnavailableError:  # reported for each file
        return None


# ------------------------------------------------------------------ rows and files


def _examine_tables(
    diagnosis: Diagnosis, db: Database, look: ArchiveLook, policy: DoctorPolicy, now: datetime
) -> list[PaidRequest]:
    """Check every slice and its files; returns the requests that fal's listing should have."""
    sample: list[Copy] = []
    paid: list[PaidRequest] = []
    for part in walk_slices(db):
        with db.reading() as connection:
            diagnosis.add(check_slice(connection, part, now))
            files = archives.list_archived(connection, part)
            since = now - policy.window
            paid += sent.list_paid_requests(connection, part, policy.endpoint, since)
            diagnosis.jobs += checks.count_jobs(connection, part)
        if policy.every_file:
            _check_files(diagnosis, look, files)
        for file in files:
            diagnosis.archived += 1
            offer(sample, file, offered=diagnosis.archived, size=SAMPLE)
    if not policy.every_file:
        _check_files(diagnosis, look, sample)
    if diagnosis.unseen:
        what = f"{diagnosis.unseen} more archived files were not checked"
        diagnosis.notes.append(f"{what}: the archive cannot be read")
    return paid


def _check_files(diagnosis: Diagnosis, look: ArchiveLook, files: Sequence[Copy]) -> None:
    for file in files:
        if look.is_over:
            diagnosis.unseen += 1
            continue
        diagnosis.files += 1
        if fault := look.find_fault(file.uri, file.bytes):
            detail = f"{file.uri}: {fault}"
            diagnosis.add([Finding(Check.ARCHIVED_FILE, file.job_id, detail)])


def _note_gates(connection: Connection) -> Iterator[str]:
    """A pause is not a violation: jobs wait for its end, as they should."""
    for gate in admission.list_pauses(connection):
        waiting = checks.count_blocked(connection)
        yield (
            f"submissions are paused, {_describe_end(gate.until)}, "
            f"{waiting} queued jobs wait: {gate.reason}"
        )


def _describe_end(until: datetime | None) -> str:
    return "until its cause ends" if until is None else f"next try at {until:%Y-%m-%d %H:%M:%S} UTC"


def _note_held(connection: Connection) -> Iterator[str]:
    """Held jobs are not a violation either; each reason says what would resolve it."""
    for reason, jobs in checks.count_held(connection):
        yield f"{jobs} submissions are {reason}"


# ------------------------------------------------------------------ fal's list


def _compare_with_fal(
    diagnosis: Diagnosis,
    db: Database,
    platform: PlatformClient,
    window: tuple[str, datetime, datetime],
    paid: list[PaidRequest],
) -> None:
    """`paid` was read before: what fal had accepted by then should be in its listing.

    `window` is the endpoint, and the start and end of the time for which fal is asked.
    """
    listing = platform.list_requests(*window)
    listed = {one.fal_request_id: one for one in listing.requests}
    diagnosis.listed = len(listed)
    if listing.gap is not None:
        diagnosis.notes.append(f"fal's list is not whole: {listing.gap}")
    _find_missing(diagnosis, [one for one in paid if one.fal_request_id not in listed], listing)
    strangers = _find_strangers(db, list(listed.values()))
    if strangers:
        endpoint, start, _ = window
        _judge_strangers(diagnosis, strangers, _find_owners(db, endpoint, start, strangers), db)


def _find_missing(diagnosis: Diagnosis, unlisted: list[PaidRequest], listing: Listing) -> None:
    """Only a whole list proves absence, and it may leave out what still runs."""
    decidable = [one for one in unlisted if listing.lists_all and one.is_completed]
    detail = "fal has finished it, and does not list it"
    diagnosis.add(
        Finding(Check.MISSING_AT_FAL, one.job_id, detail, one.attempt_id, None, one.fal_request_id)
        for one in decidable
    )
    if rest := len(unlisted) - len(decidable):
        why = "they may still run" if listing.lists_all else "the list is not whole"
        diagnosis.notes.append(
            f"{rest} requests are not in fal's list, which proves nothing: {why}"
        )


def _find_strangers(db: Database, listed: list[ListedRequest]) -> list[ListedRequest]:
    """Those that no attempt has."""
    ids = [one.fal_request_id for one in listed]
    known: set[str] = set()
    for place in range(0, len(ids), BATCH):
        with db.reading() as connection:
            known |= list_known_requests(connection, ids[place : place + BATCH])
    return [one for one in listed if one.fal_request_id not in known]


def _judge_strangers(
    diagnosis: Diagnosis,
    strangers: list[ListedRequest],
    found: tuple[dict[str, SentInput], bool],
    db: Database,
) -> None:
    """Ours are known by their input, or by a webhook that came to us; the others are not ours.

    The resolver searches already for the request of an attempt whose reply was lost. Several
    deployments may share an account: without evidence that a request is ours, it must not be
    cancelled here.
    """
    owners, any_open = found
    with db.reading() as connection:
        strays = {stray.fal_request_id for stray in find_strays(connection)}
    resolved = hidden = 0
    # Read again: an attempt may have got its id in the meantime.
    for one in _find_strangers(db, strangers):
        owner = owners.get(one.fal_request_id)
        if owner is not None and owner.is_open and not owner.has_request:
            resolved += 1
        elif one.input is None and any_open:
            hidden += 1
        elif owner is not None or one.fal_request_id in strays:
            diagnosis.add([_describe_orphan(one, owner)])
        elif one.input is None:
            hidden += 1
        else:
            diagnosis.not_ours.append(one.fal_request_id)
    if diagnosis.not_ours:
        diagnosis.notes.append(
            f"{len(diagnosis.not_ours)} requests at fal are not ours: this job table has not sent "
            "their input; another deployment, or somebody by hand, uses the account"
        )
    if resolved:
        diagnosis.notes.append(f"{resolved} requests at fal have the input of an open attempt")
    if hidden:
        diagnosis.notes.append(
            f"{hidden} requests at fal that no attempt has show no input: they may be "
            + (
                "those of open attempts"
                if any_open
                else "another deployment's, or lost ones of ours"
            )
        )


def _find_owners(
    db: Database, endpoint: str, start: datetime, strangers: list[ListedRequest]
) -> tuple[dict[str, SentInput], bool]:
    """The attempt that sent each request's input, open ones first; and whether any is open.

    An attempt with a request of its own comes last: its input was run twice.
    """
    by_sign: dict[Hashable, list[ListedRequest]] = {}
    for one in strangers:
        if one.input is not None:
            by_sign.setdefault(sign_input(one.input), []).append(one)
    owners: dict[str, SentInput] = {}
    any_open = False
    for part in walk_slices(db):
        with db.reading() as connection:
            attempts = sent.list_sent_inputs(connection, part, endpoint, start)
        for attempt in attempts:
            any_open = any_open or (attempt.is_open and not attempt.has_request)
            for one in by_sign.get(sign_input(attempt.input), ()):
                known = owners.get(one.fal_request_id)
                is_better = attempt.is_open or known is None or known.has_request
                is_wanted = known is None or (is_better and not attempt.has_request)
                if is_wanted and is_same_input(one.input, attempt.input):
                    owners[one.fal_request_id] = attempt
    return owners, any_open


def _describe_orphan(one: ListedRequest, owner: SentInput | None) -> Finding:
    end = f"ended with {one.status_code}" if one.ended else "has not ended"
    if owner is None:
        detail = f"it {end}; its webhook has a token of ours, and no attempt has it"
        return Finding(Check.ORPHAN_AT_FAL, None, detail, fal_request_id=one.fal_request_id)
    detail = f"it {end}; an attempt recorded as {owner.outcome} has sent the same input"
    if owner.has_request:
        detail = f"it {end}; an attempt with another request at fal has sent the same input"
    if owner.attempt_id is None:
        detail = (
            f"it {end}; this job is queued with the same input, and would pay again: after a "
            "restore run extend-video restore, else cancel the job"
        )
    return Finding(
        Check.ORPHAN_AT_FAL,
        owner.job_id,
        detail,
        owner.attempt_id,
        fal_request_id=one.fal_request_id,
    )
