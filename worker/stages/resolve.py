"""Beside the path. resolve: find out what became of a submission whose outcome is unknown.

Evidence, the strongest first: a proven webhook with the attempt's token (`complete.py`); a delivery
that names a request which fal knows; a request in fal's listing with exactly this input; and the
absence of all these, once fal's start timeout and a run are surely over. Absence is proof only if
it was observed for so long, in a whole listing of the very account that paid, by clocks that agree
(ADR 17). Only then may money be spent again, by policy; else the job is held, and says why. The
decision is written into `events` with what it rests on.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from worker.fal.options import RequestOptions
from worker.fal.platform import ListedRequest, Listing, PlatformClient, is_same_input, sign_input
from worker.fal.requests import Forgotten, Known, RequestClient, Truth, Unclear
from worker.ground.clock import Backoff, Clock, spread
from worker.ground.db import Database
from worker.ground.settings import UnknownPolicy
from worker.jobs import attempts, charges, deliveries, limits, observed, table
from worker.jobs.states import BlockedBy, Doorbell, JobEvent, JobState
from worker.jobs.values import Attempt, Job, Move, Outcome, RequestClaim, Settlement

# One search serves every unknown submission; all workers together begin one in this time.
LISTING_LIMIT = "listing"
SEARCH_PAUSE = timedelta(seconds=2)
SEARCHES = Backoff(timedelta(seconds=5), timedelta(minutes=5))
HELD_PAUSE = timedelta(minutes=10)
MOST_UNKNOWN = 5000
# The two clocks may differ, and fal may have noted the request later than it was sent.
SKEW = timedelta(minutes=5)
DECIDE = "extend-video redrive ID --pay-again pays again, extend-video cancel ID gives it up"


@dataclass(frozen=True, slots=True)
class ResolvePolicy:
    """What every resolution shares; `account` is the fingerprint of the key that lists."""

    unknown_after: timedelta
    policy: UnknownPolicy
    max_attempts: int
    dispatch_timeout: timedelta
    start_timeout: timedelta = timedelta(hours=1)
    account: str | None = None

    def judge_after(self, attempt: Attempt) -> timedelta:
        """How long an attempt must have been waited for before its absence means anything.

        Its own start timeout, and a run with a margin: what UNKNOWN_SECONDS leaves beyond
        START_TIMEOUT_SECONDS, at least a third of it.
        """
        options = RequestOptions.model_validate(attempt.options)
        run = max(self.unknown_after - self.start_timeout, self.unknown_after / 3)
        return max(self.unknown_after, (options.start_timeout or self.start_timeout) + run)


@dataclass(frozen=True, slots=True)
class Matches:
    """Which request each attempt became; `ambiguous` ones may be any of several, or none."""

    paired: Mapping[UUID, str]
    ambiguous: frozenset[UUID]


@dataclass(frozen=True, slots=True)
class Waiting:
    """An attempt without an outcome that is certain: when its job is due, how long was waited."""

    attempt: Attempt
    due_at: datetime
    waited: timedelta
    judge_after: timedelta

    @property
    def is_due(self) -> bool:
        """Whether its absence means something by now."""
        return self.waited >= self.judge_after

    @property
    def is_open(self) -> bool:
        """Whether its own reply or webhook may still come."""
        return self.attempt.outcome is None or not self.is_due


@dataclass(frozen=True, slots=True)
class Window:
    """Attempts near each other in time, and the part of the listing that would have them."""

    start: datetime
    end: datetime
    waiting: tuple[Waiting, ...]


# ------------------------------------------------------------------ gather, then write


@dataclass(frozen=True, slots=True)
class Resolver:
    """Finds out about unknown submissions, with what a worker has at hand."""

    db: Database
    requests: RequestClient
    platform: PlatformClient
    policy: ResolvePolicy
    clock: Clock

    def resolve_unknown(self, job: Job, attempt: Attempt) -> list[Doorbell]:
        """Adopt, decide, or leave for later; what to publish."""
        adopted = self.adopt_named(attempt)
        if adopted is not None:
            return [adopted.doorbell] if adopted.doorbell else []
        now = self.clock()
        with self.db.transaction() as connection:
            may_search = limits.pass_gate(connection, LISTING_LIMIT, now, SEARCH_PAUSE)
            if not may_search:
                table.advance_due(connection, job, now + SEARCH_PAUSE)
        return self.search_listing() if may_search else []

    def adopt_named(self, attempt: Attempt) -> Job | None:
        """Adopt the request that an unproven delivery named, if fal knows it by our own key.

        Not one whose end is known: a late or doubled message must not bring an ended job back.
        """
        if attempt.completed_at is not None:
            return None
        if attempt.fal_request_id is not None:
            return self._adopt(attempt, attempt.fal_request_id, "its webhook has named it")
        found = self.find_named(attempt)
        if found is None:
            return None
        return self._adopt(attempt, found[0], "a delivery named it, and fal knows it")

    def find_named(self, attempt: Attempt) -> tuple[str, Known] | None:
        """The request that a delivery has named for the attempt, and what fal says of it now."""
        for fal_request_id, truth in self._query_named(attempt):
            if not isinstance(truth, Forgotten | Unclear):
                return fal_request_id, truth
        return None

    def _query_named(self, attempt: Attempt) -> Iterator[tuple[str, Truth]]:
        with self.db.reading() as connection:
            named = deliveries.list_hinted_requests(connection, attempt.id)
        for fal_request_id in named:
            yield fal_request_id, self.requests.find_truth(attempt, fal_request_id)

    def search_listing(self) -> list[Doorbell]:
        """Search fal's listing for all submissions that are unknown now, a window at a time."""
        with self.db.transaction() as connection:
            unknown = attempts.list_unsettled(connection, MOST_UNKNOWN)
            for attempt, _ in unknown:
                if attempt.observed_start is None:
                    observed.start_observing(connection, attempt.id)
            now_observed = observed.read_observed(connection)
        by_endpoint: dict[str, list[Waiting]] = defaultdict(list)
        for attempt, due_at in unknown:
            waited = measure_wait(attempt, now_observed)
            waiting = Waiting(attempt, due_at, waited, self.policy.judge_after(attempt))
            by_endpoint[attempt.endpoint].append(waiting)
        moved: list[Job] = []
        for endpoint, waiting_there in by_endpoint.items():
            open_inputs = Counter(sign_whole(one) for one in waiting_there if one.is_open)
            for window in split_windows(waiting_there, self.clock()):
                moved += self._search_window(endpoint, window, open_inputs)
        return [job.doorbell for job in moved if job.doorbell is not None]

    def _search_window(
        self, endpoint: str, window: Window, open_inputs: Counter[str]
    ) -> Iterator[Job]:
        """The jobs that have moved."""
        now = self.clock()
        listing = self.platform.list_requests(endpoint, window.start, window.end)
        ids = [one.fal_request_id for one in listing.requests]
        with self.db.reading() as connection:
            claims = attempts.list_claims(connection, ids)
        matches = match_requests(listing.requests, claims, window.waiting, open_inputs, now)
        for waiting in window.waiting:
            attempt, moved = waiting.attempt, None
            if attempt.outcome is None:
                continue  # its POST is under way
            if attempt.id in matches.paired:
                detail = "found in fal's listing by its exact input"
                moved = self._adopt(attempt, matches.paired[attempt.id], detail)
            elif waiting.due_at <= now + self.policy.dispatch_timeout:
                moved = self._record_absence(waiting, self._list_gaps(waiting, listing, matches))
            if moved is not None:
                yield moved

    def _list_gaps(self, waiting: Waiting, listing: Listing, matches: Matches) -> list[str]:
        """Every reason why this search does not prove that the attempt has no request."""
        attempt = waiting.attempt
        gaps = [f"fal's listing {listing.gap}"] if listing.gap else []
        if listing.clock_gap:
            gaps.append(listing.clock_gap)
        if attempt.account is None or attempt.account != self.policy.account:
            gaps.append("it was submitted with another key than FAL_KEY")
        if attempt.id in matches.ambiguous:
            gaps.append("fal's listing has requests with its input that may be another job's")
        if waiting.is_due and not gaps:
            # A delivery with the token says that there is a request: fal has to deny that first.
            named = self._query_named(attempt)
            kept = (one for one, truth in named if not isinstance(truth, Forgotten))
            gaps += [f"a delivery named request {one}, which fal does not deny" for one in kept]
        return gaps

    def _record_absence(self, waiting: Waiting, gaps: Sequence[str]) -> Job | None:
        """Go on waiting, or decide on the job; None if it has not moved."""
        now, attempt = self.clock(), waiting.attempt
        with self.db.transaction() as connection:
            job = table.get_job(connection, attempt.job_id, lock=True)
            if job.state is not JobState.SUBMISSION_UNKNOWN or job.fence != attempt.fence:
                return None
            if not waiting.is_due:
                table.advance_due(connection, job, now + choose_pause(waiting))
                return None
            lost = [Outcome.UNKNOWN, Outcome.DEAD]
            spent = attempts.count_attempts(connection, job.id, lost, job.tried_since)
            detail = describe_absence(waiting.waited, gaps)
            event, move = judge_absence(job, detail, gaps, spent, self.policy, now)
            if event is not JobEvent.SUBMISSION_HELD:
                outcome = Outcome.UNKNOWN if gaps else Outcome.DEAD
                absent = Settlement(outcome, now, error_message=move.detail)
                attempts.record_outcome(connection, attempt.id, absent)
                if outcome is Outcome.DEAD:
                    charges.void(connection, attempt.id, charges.VoidReason.ABSENT, now)
            elif job.blocked_reason == move.columns["blocked_reason"]:
                # Decided before, and only searched again.
                table.advance_due(connection, job, move.due_at or now)
                return None
            return table.apply_event(connection, job, event, move)

    def _adopt(self, attempt: Attempt, fal_request_id: str, detail: str) -> Job | None:
        now = self.clock()
        with self.db.transaction() as connection:
            job = table.get_job(connection, attempt.job_id, lock=True)
            if job.fence != attempt.fence or attempts.is_completed(connection, attempt.id):
                return None
            if not attempts.adopt_request(connection, attempt, fal_request_id):
                return None
            move = Move(now, now, detail, {"fal_request_id": fal_request_id})
            moved = table.apply_event(connection, job, JobEvent.REQUEST_ADOPTED, move)
            accepted = Settlement(Outcome.ACCEPTED, now, fal_request_id=fal_request_id)
            attempts.record_outcome(connection, attempt.id, accepted)
            charges.unvoid(connection, attempt.id, now)
            if moved is not None and moved.cancel_requested_at is not None:
                attempts.order_cancel(connection, attempt.id, now)
        return moved


# ------------------------------------------------------------------ judge; pure


def measure_wait(attempt: Attempt, now_observed: timedelta) -> timedelta:
    """The observed time since the attempt's start; none yet if its start was not observed; pure."""
    if attempt.observed_start is None:
        return timedelta()
    return max(now_observed - timedelta(seconds=attempt.observed_start), timedelta())


def split_windows(waiting: Sequence[Waiting], now: datetime) -> Iterator[Window]:
    """A window for attempts that began within one wait of each other; pure.

    It reaches from the first start to where the last one's run must have ended, whichever time of a
    request the listing goes by. A start that lies after what was observed is the clock's mistake.
    """
    starts = {one.attempt.id: min(one.attempt.started_at, now - one.waited) for one in waiting}
    groups: list[list[Waiting]] = []
    for one in sorted(waiting, key=lambda one: starts[one.attempt.id]):
        start, first = starts[one.attempt.id], groups[-1][0] if groups else None
        if first and start - starts[first.attempt.id] <= first.judge_after:
            groups[-1].append(one)
        else:
            groups.append([one])
    for group in groups:
        end = max(max(one.attempt.started_at, now - one.waited) + one.judge_after for one in group)
        yield Window(starts[group[0].attempt.id] - SKEW, min(end, now) + SKEW, tuple(group))


def match_requests(
    listed: Sequence[ListedRequest],
    claims: Mapping[str, RequestClaim],
    waiting: Sequence[Waiting],
    open_inputs: Counter[str],
    now: datetime,
) -> Matches:
    """Pair attempts with requests of the very same input; pure.

    Attempts with the same input (a seed given twice) cannot be told apart while the reply or
    webhook of any may still come; after that it does not matter which request is whose. None of
    them is absent while the listing has as many requests that nobody has, or that were lately given
    to an attempt by their input alone, as there are attempts. `open_inputs` counts the attempts
    that may still answer, in all windows of the listing.
    """
    by_sign: dict[Hashable, list[ListedRequest]] = defaultdict(list)
    for request in listed:
        by_sign[sign_input(request.input)].append(request)
    groups: dict[str, list[Waiting]] = defaultdict(list)
    for one in sorted(waiting, key=lambda one: one.attempt.started_at):
        groups[sign_whole(one)].append(one)
    paired: dict[UUID, str] = {}
    ambiguous: set[UUID] = set()
    for whole, group in groups.items():
        sent, judge_after = group[0].attempt.input, group[0].judge_after
        same = [one for one in by_sign[sign_input(sent)] if is_same_input(one.input, sent)]
        free = [one.fal_request_id for one in same if one.fal_request_id not in claims]
        held = [claims[one.fal_request_id] for one in same if one.fal_request_id in claims]
        # Given to an attempt by its input, and lately: it may be another's.
        doubtful = sum(not one.is_verified and now - one.claimed_at < judge_after for one in held)
        others_open = open_inputs[whole] - sum(one.is_open for one in group)
        is_only_one = len(group) == 1 and others_open == 0
        if open_inputs[whole] > 0 and not is_only_one:
            ambiguous |= {one.attempt.id for one in group if free or doubtful}
            continue
        paired |= {one.attempt.id: request_id for one, request_id in zip(group, free, strict=False)}
        if len(free) + doubtful >= len(group):
            ambiguous |= {one.attempt.id for one in group[len(free) :]}
    return Matches(paired, frozenset(ambiguous))


def sign_whole(waiting: Waiting) -> str:
    """The same for attempts that were sent with the very same input; pure."""
    return json.dumps(waiting.attempt.input, sort_keys=True)


def choose_pause(waiting: Waiting) -> timedelta:
    """Half as long again as it has been waited for, and not past the time of the decision."""
    pause = spread(min(max(waiting.waited / 2, SEARCHES.first), SEARCHES.longest))
    return min(pause, waiting.judge_after - waiting.waited)


def describe_absence(waited: timedelta, gaps: Sequence[str]) -> str:
    heard = f"no webhook within {waited.total_seconds():.0f} s"
    if gaps:
        return f"{heard}, and its absence is not proven: {'; '.join(gaps)}"
    return f"{heard}, and fal's listing has no request with its input"


def judge_absence(
    job: Job,
    detail: str,
    gaps: Sequence[str],
    spent: int,
    policy: ResolvePolicy,
    now: datetime,
) -> tuple[JobEvent, Move]:
    """What follows once an attempt has been waited for long enough; pure.

    `spent` attempts are lost by now. Under any policy, nothing is bought again without proof: with
    `gaps` in it the job waits for a person, and fal's listing is searched for it all the same.
    """
    if job.cancel_requested_at is not None:
        return JobEvent.JOB_CANCELLED, Move(now, detail=detail)
    if not gaps and spent >= policy.max_attempts:
        message = f"{spent} submissions were lost; {detail}"
        columns = {"error_code": "submission_exhausted", "error_message": message}
        return JobEvent.SUBMISSION_EXHAUSTED, Move(now, detail=message, columns=columns)
    if not gaps and policy.policy is UnknownPolicy.RESUBMIT:
        return JobEvent.DEATH_PROVEN, Move(now, now + policy.dispatch_timeout, detail)
    why = "fal has not run it, and UNKNOWN_POLICY is hold"
    if gaps:
        why = f"whether fal ran it is not known: {'; '.join(gaps)}"
    due_at = now + spread(min(HELD_PAUSE, policy.unknown_after))
    columns = {"blocked_by": BlockedBy.HOLD.value, "blocked_reason": f"held: {why}. {DECIDE}"}
    return JobEvent.SUBMISSION_HELD, Move(now, due_at, detail, columns)
