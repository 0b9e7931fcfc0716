"""Checks rows, archive and fal's listing against each other. It only reads.

A walk through the tables checks the rows (`jobs/checks.py`) and the files of archived rows, all or
a sample. With a key, fal's listing is compared with the attempts, both ways.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from worker.fal.platform import ListedRequest, Listing, PlatformClient, is_same_input, sign_input
from worker.ground.clock import Clock, read_clock
from worker.ground.db import Database
from worker.ground.errors import StoreUnavailableError
from worker.jobs import admission, sent
from worker.jobs.archives import Copy, list_archived
from worker.jobs.attempts import list_known_requests
from worker.jobs.checks import (
    Check,
    Finding,
    check_slice,
    count_held,
    count_jobs,
    find_strays,
)
from worker.jobs.ledger import check_caps, check_ledger
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
    try:
        foreign = find_foreign_mark(db=db, store=store)
    except StoreUnavailableError:  # reported for each file
        foreign = None
    look = ArchiveLook(store, failures=0 if foreign is None else MOST_FAILURES)
    paid = _examine_tables(diagnosis, db, look, policy, now)
    diagnosis.add(check_caps(db))
    notes = diagnosis.notes
    if diagnosis.unseen:
        unseen = f"{diagnosis.unseen} more archived files were not checked"
        notes.append(f"{unseen}: the archive cannot be read")
    if foreign is not None:
        notes.append(foreign)
    with db.reading() as connection:
        diagnosis.add(find_strays(connection))
        diagnosis.add(check_ledger(connection, now))
        # A pause or a held job is not a violation: jobs wait, as they should.
        for pause in admission.list_pauses(connection):
            if not pause.is_counting:
                until = f", next try at {pause.until:%Y-%m-%d %H:%M:%S} UTC" if pause.until else ""
                notes.append(f"submissions of {pause.scope} are paused{until}: {pause.reason}")
        notes += [f"{jobs} submissions are {why}" for why, jobs in count_held(connection)]
    if platform is not None:
        start, end = now - policy.window - MARGIN, clock() + MARGIN
        listing = platform.list_requests(policy.endpoint, start, end)
        _compare_with_fal(diagnosis, listing, paid)
        _judge_strangers(diagnosis, db, listing, policy.endpoint, start)
    return diagnosis


# ------------------------------------------------------------------ rows and files


def _examine_tables(
    diagnosis: Diagnosis, db: Database, look: ArchiveLook, policy: DoctorPolicy, now: datetime
) -> list[PaidRequest]:
    """Check every slice and its files; returns the requests that fal's listing should have."""
    sample: list[Copy] = []
    paid: list[PaidRequest] = []
    since = now - policy.window
    for part in walk_slices(db):
        with db.reading() as connection:
            diagnosis.add(check_slice(connection, part, now))
            files = list_archived(connection, part)
            paid += sent.list_paid_requests(connection, part, policy.endpoint, since)
            diagnosis.jobs += count_jobs(connection, part)
        if policy.every_file:
            _check_files(diagnosis, look, files)
        for file in files:
            diagnosis.archived += 1
            offer(sample, file, offered=diagnosis.archived, size=SAMPLE)
    if not policy.every_file:
        _check_files(diagnosis, look, sample)
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


# ------------------------------------------------------------------ fal's list


def _compare_with_fal(diagnosis: Diagnosis, listing: Listing, paid: Sequence[PaidRequest]) -> None:
    """`paid` was read before: what fal had accepted by then should be in its listing.

    Only a whole list proves absence, and it may leave out what still runs.
    """
    listed = {one.fal_request_id for one in listing.requests}
    diagnosis.listed = len(listed)
    if listing.gap is not None:
        diagnosis.notes.append(f"fal's list is not whole: {listing.gap}")
    undecided = 0
    for one in paid:
        if one.fal_request_id in listed:
            continue
        if not (listing.lists_all and one.is_completed):
            undecided += 1
            continue
        detail = "fal has finished it, and does not list it"
        ids = (one.attempt_id, None, one.fal_request_id)
        diagnosis.add([Finding(Check.MISSING_AT_FAL, one.job_id, detail, *ids)])
    if undecided:
        why = "they may still run" if listing.lists_all else "the list is not whole"
        diagnosis.notes.append(
            f"{undecided} requests are not in fal's list, which proves nothing: {why}"
        )


def _judge_strangers(
    diagnosis: Diagnosis, db: Database, listing: Listing, endpoint: str, start: datetime
) -> None:
    """Requests that no attempt has: ours are known by their input, or by a webhook that came to us.

    The resolver searches already for the request of an attempt whose reply was lost. Several
    deployments may share an account: without evidence that a request is ours, it must not be
    cancelled here.
    """
    strangers = _find_strangers(db, listing.requests)
    if not strangers:
        return
    owners, any_open = _find_owners(db, endpoint, start, strangers)
    with db.reading() as connection:
        strays = {stray.fal_request_id for stray in find_strays(connection)}
    resolved = hidden = 0
    # Read again: an attempt may have got its id in the meantime.
    for one in _find_strangers(db, strangers):
        owner = owners.get(one.fal_request_id)
        if owner is not None and owner.is_open and not owner.has_request:
            resolved += 1
        elif one.input is None and (any_open or one.fal_request_id not in strays):
            hidden += 1
        elif owner is not None or one.fal_request_id in strays:
            diagnosis.add([_describe_orphan(one, owner)])
        else:
            diagnosis.not_ours.append(one.fal_request_id)
    whose = "those of open attempts" if any_open else "another deployment's, or lost ones of ours"
    foreign = "another deployment, or somebody by hand, uses the account"
    for count, note in (
        (len(diagnosis.not_ours), f"are not ours: no input of theirs was sent here; {foreign}"),
        (resolved, "have the input of an open attempt"),
        (hidden, f"that no attempt has show no input: they may be {whose}"),
    ):
        if count:
            diagnosis.notes.append(f"{count} requests at fal {note}")


def _find_strangers(db: Database, listed: Sequence[ListedRequest]) -> list[ListedRequest]:
    """Those that no attempt has."""
    found = {one.fal_request_id: one for one in listed}
    ids = list(found)
    for place in range(0, len(ids), BATCH):
        with db.reading() as connection:
            for known in list_known_requests(connection, ids[place : place + BATCH]):
                del found[known]
    return list(found.values())


def _find_owners(
    db: Database, endpoint: str, start: datetime, strangers: Sequence[ListedRequest]
) -> tuple[dict[str, SentInput], bool]:
    """The attempt that sent each request's input, and whether any attempt is open.

    Open ones come first, and those with a request of their own last: their input was run twice.
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
                is_better = known is None or _rank(attempt) < _rank(known)
                if is_better and is_same_input(one.input, attempt.input):
                    owners[one.fal_request_id] = attempt
    return owners, any_open


def _rank(attempt: SentInput) -> tuple[bool, bool]:
    return attempt.has_request, not attempt.is_open


def _describe_orphan(one: ListedRequest, owner: SentInput | None) -> Finding:
    if owner is None:
        why = "its webhook has a token of ours, and no attempt has it"
    elif owner.has_request:
        why = "an attempt with another request at fal has sent the same input"
    elif owner.attempt_id is None:
        why = (
            "this job is queued with the same input, and would pay again: after a restore run "
            "extend-video restore, else cancel the job"
        )
    else:
        why = f"an attempt recorded as {owner.outcome} has sent the same input"
    end = f"ended with {one.status_code}" if one.ended else "has not ended"
    job_id, attempt_id = (owner.job_id, owner.attempt_id) if owner else (None, None)
    ids = (attempt_id, None, one.fal_request_id)
    return Finding(Check.ORPHAN_AT_FAL, job_id, f"it {end}; {why}", *ids)
