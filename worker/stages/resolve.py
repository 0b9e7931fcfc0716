"""Beside the path. resolve: find out what became of a submission whose outcome is unknown.

Evidence, the strongest first: a proven webhook with the attempt's token (`complete.py`); a delivery
that names a request which fal knows; a request in fal's listing with exactly this input; and, once
fal's start timeout and a run are surely over, the absence of all these. Only then may money be
spent again, by policy, and the decision is written into `events` with what it rests on.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from worker.backoff import Backoff, spread
from worker.clock import Clock
from worker.db import Database
from worker.fal.platform import ListedRequest, Listing, PlatformClient
from worker.fal.requests import RequestClient
from worker.fal.same_input import is_same_input, sign_input
from worker.fal.truth import Forgotten, Known, Unclear
from worker.jobs import attempts, deliveries, gates, restores, table
from worker.jobs.states import Doorbell, JobEvent, JobState
from worker.jobs.values import HELD, Attempt, Job, Move, Outcome, Settlement
from worker.setting_types import UnknownPolicy

# One search serves every unknown submission; all workers together begin one in this time.
LISTING_GATE = "listing"
SEARCH_PAUSE = timedelta(seconds=2)
SEARCHES = Backoff(timedelta(seconds=5), timedelta(minutes=5))
MOST_UNSETTLED = 5000
# The two clocks may differ, and fal may have noted the request later than it was sent.
SKEW = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class ResolveTerms:
    """What every resolution shares."""

    unknown_after: timedelta
    policy: UnknownPolicy
    max_attempts: int
    grace: timedelta


@dataclass(frozen=True, slots=True)
class Evidence:
    """How long nothing has been heard of an attempt, and what a search for it was worth."""

    waited: timedelta
    gap: str | None

    def is_proof(self, unknown_after: timedelta) -> bool:
        """A search with a gap proves nothing before twice the time."""
        return self.waited >= unknown_after * (1 if self.gap is None else 2)

    def describe(self) -> str:
        found = "fal's listing has no request with its input"
        if self.gap is not None:
            found = f"fal's listing cannot tell: {self.gap}"
        return f"no webhook within {self.waited.total_seconds():.0f} s, and {found}"


@dataclass(frozen=True, slots=True)
class Resolver:
    """Finds out about unknown submissions, with what a worker has at hand."""

    db: Database
    requests: RequestClient
    platform: PlatformClient
    terms: ResolveTerms
    clock: Clock

    def resolve_unknown(self, job: Job, attempt: Attempt) -> list[Doorbell]:
        """Adopt, decide, or leave for later; returns whom to ring for."""
        adopted = self.follow_hints(attempt)
        if adopted is not None:
            return [adopted.doorbell] if adopted.doorbell else []
        if not self._may_search():
            self._look_again(job, self.clock() + SEARCH_PAUSE)
            return []
        return self.search_listing()

    def follow_hints(self, attempt: Attempt) -> Job | None:
        """Adopt the request that an unproven delivery named, if fal knows it by our own key.

        Not one whose end is known: a late or doubled doorbell must not bring an ended job back.
        """
        if attempt.completed_at is not None:
            return None
        if attempt.fal_request_id is not None:
            return self._adopt(attempt, attempt.fal_request_id, "its webhook has named it")
        found = self.find_hinted(attempt)
        if found is None:
            return None
        return self._adopt(attempt, found[0], "a delivery named it, and fal knows it")

    def find_hinted(self, attempt: Attempt) -> tuple[str, Known] | None:
        """The request that a delivery has named for the attempt, and what fal says of it now."""
        for fal_request_id in self._list_hints(attempt):
            truth = self.requests.find_truth(attempt, fal_request_id)
            if not isinstance(truth, Forgotten | Unclear):
                return fal_request_id, truth
        return None

    def search_listing(self) -> list[Doorbell]:
        """One pass over fal's listing for all submissions that are unknown now."""
        with self.db.reading() as connection:
            unsettled = attempts.list_unsettled(connection, MOST_UNSETTLED)
        by_endpoint: dict[str, list[tuple[Attempt, datetime]]] = defaultdict(list)
        for attempt, due_at in unsettled:
            by_endpoint[attempt.endpoint].append((attempt, due_at))
        rung: list[Doorbell] = []
        for endpoint, waiting in by_endpoint.items():
            rung += self._search_endpoint(endpoint, waiting)
        return rung

    def _search_endpoint(
        self, endpoint: str, waiting: Sequence[tuple[Attempt, datetime]]
    ) -> list[Doorbell]:
        now = self.clock()
        start = min(attempt.started_at for attempt, _ in waiting) - SKEW
        listing = self.platform.list_requests(endpoint, start, now + SKEW)
        found = self._match(listing, [attempt for attempt, _ in waiting])
        rung: list[Doorbell] = []
        for attempt, due_at in waiting:
            if attempt.outcome is None:
                # Its POST is under way.
                continue
            if attempt.id in found:
                detail = "found in fal's listing by its exact input"
                moved = self._adopt(attempt, found[attempt.id], detail)
            elif due_at <= now + self.terms.grace:
                moved = self._judge_absence(attempt, listing.gap)
            else:
                continue
            rung += [moved.doorbell] if moved is not None and moved.doorbell else []
        return rung

    def _match(self, listing: Listing, unsettled: Sequence[Attempt]) -> dict[UUID, str]:
        """Which request each attempt became, where that is certain."""
        ids = [one.fal_request_id for one in listing.requests]
        with self.db.reading() as connection:
            known = attempts.list_known_requests(connection, ids)
        free = [one for one in listing.requests if one.fal_request_id not in known]
        return match_requests(free, unsettled, self.clock() - self.terms.unknown_after)

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
            settlement = Settlement(Outcome.ACCEPTED, now, fal_request_id=fal_request_id)
            attempts.settle_attempt(connection, attempt.id, settlement)
            if moved is not None and moved.cancel_requested_at is not None:
                attempts.order_cancel(connection, attempt.id, now)
        return moved

    def _judge_absence(self, attempt: Attempt, gap: str | None) -> Job | None:
        evidence = Evidence(self._measure_silence(attempt), gap)
        if evidence.is_proof(self.terms.unknown_after) and self._list_hints(attempt):
            # Somebody with the token says that there is a request: fal has to deny that first.
            evidence = Evidence(evidence.waited, self._find_hint_gap(attempt) or gap)
        with self.db.transaction() as connection:
            job = table.get_job(connection, attempt.job_id, lock=True)
            if job.state is not JobState.SUBMISSION_UNKNOWN or job.fence != attempt.fence:
                return None
            if not evidence.is_proof(self.terms.unknown_after):
                due_at = self.clock() + self._choose_pause(evidence.waited)
                table.advance_due(connection, job, due_at)
                return None
            lost = [Outcome.UNKNOWN, Outcome.DEAD]
            spent = attempts.count_attempts(connection, job.id, lost, job.tried_since)
            event, move = judge_death(job, evidence, spent, self.terms, self.clock())
            if event is not JobEvent.SUBMISSION_HELD:
                settlement = Settlement(Outcome.DEAD, move.now, error_message=move.detail)
                attempts.settle_attempt(connection, attempt.id, settlement)
            if event is JobEvent.SUBMISSION_HELD and job.is_held:
                # Decided before; it is only looked for again.
                table.advance_due(connection, job, move.due_at or move.now)
                return None
            return table.apply_event(connection, job, event, move)

    def _measure_silence(self, attempt: Attempt) -> timedelta:
        """From a restore on, if there was one: of what was sent in the gap nobody knows when."""
        with self.db.reading() as connection:
            restore = restores.find_newest(connection)
        since = attempt.started_at
        return self.clock() - (since if restore is None else max(since, restore.restored_at))

    def _find_hint_gap(self, attempt: Attempt) -> str | None:
        for fal_request_id in self._list_hints(attempt):
            truth = self.requests.find_truth(attempt, fal_request_id)
            if not isinstance(truth, Forgotten):
                return f"a delivery named request {fal_request_id}, which fal does not deny"
        return None

    def _choose_pause(self, waited: timedelta) -> timedelta:
        """Half as long again as it has been waited for, and not past the time of the decision."""
        pause = spread(min(max(waited / 2, SEARCHES.first), SEARCHES.longest))
        left = self.terms.unknown_after - waited
        return min(pause, left) if left > timedelta() else pause

    def _list_hints(self, attempt: Attempt) -> list[str]:
        with self.db.reading() as connection:
            return deliveries.list_hinted_requests(connection, attempt.id)

    def _may_search(self) -> bool:
        now = self.clock()
        with self.db.transaction() as connection:
            return gates.pass_gate(connection, LISTING_GATE, now, now + SEARCH_PAUSE)

    def _look_again(self, job: Job, due_at: datetime) -> None:
        with self.db.transaction() as connection:
            table.advance_due(connection, job, due_at)


def match_requests(
    free: Iterable[ListedRequest], unsettled: Sequence[Attempt], certain_before: datetime
) -> dict[UUID, str]:
    """Pair attempts with requests of the very same input; pure.

    Two attempts with the same input (a seed given twice) cannot be told apart while the reply or
    webhook of either may still come; after that it does not matter which request is whose.
    """
    by_sign: dict[Hashable, list[ListedRequest]] = defaultdict(list)
    for request in free:
        by_sign[sign_input(request.input)].append(request)
    rivals: dict[Hashable, int] = defaultdict(int)
    for attempt in unsettled:
        rivals[sign_input(attempt.input)] += attempt.started_at > certain_before
    paired: dict[UUID, str] = {}
    for attempt in sorted(unsettled, key=lambda one: one.started_at):
        sign = sign_input(attempt.input)
        same = [one for one in by_sign[sign] if is_same_input(one.input, attempt.input)]
        alone = rivals[sign] == (attempt.started_at > certain_before)
        if same and alone and attempt.outcome is not None:
            by_sign[sign].remove(same[0])
            paired[attempt.id] = same[0].fal_request_id
    return paired


def judge_death(
    job: Job, evidence: Evidence, spent: int, terms: ResolveTerms, now: datetime
) -> tuple[JobEvent, Move]:
    """What follows once an attempt is proven dead, `spent` attempts being lost by now; pure."""
    detail = evidence.describe()
    if job.cancel_requested_at is not None:
        return JobEvent.JOB_CANCELLED, Move(now, detail=detail)
    if spent >= terms.max_attempts:
        message = f"{spent} submissions were lost; {detail}"
        why = {"error_code": "submission_exhausted", "error_message": message}
        return JobEvent.SUBMISSION_EXHAUSTED, Move(now, detail=message, columns=why)
    if terms.policy is UnknownPolicy.HOLD:
        blocked = {"blocked_reason": f"{HELD}: {detail}; redrive with --pay-again, or cancel"}
        return JobEvent.SUBMISSION_HELD, Move(now, now + terms.unknown_after, detail, blocked)
    return JobEvent.DEATH_PROVEN, Move(now, now + terms.grace, detail)
