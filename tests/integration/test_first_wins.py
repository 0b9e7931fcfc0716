"""Two attempts of one job: the first result is the job's, the other is counted, nothing is lost."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uuid_utils.compat import uuid7

from tests.harness.fal import ScriptedFal, build_item, list_items
from tests.harness.jobs import build_result
from tests.harness.stages import (
    SECOND,
    UNKNOWN,
    Bench,
    build_completion,
    build_empty,
    build_failure,
)
from tests.harness.together import call_together
from worker.fal.platform import ListedRequest
from worker.fal.submit import Accepted, RefusalClass, Refused
from worker.ground.errors import TooLateError
from worker.jobs import admission
from worker.jobs.admission import ACCOUNT
from worker.jobs.states import ENDED, JobState, PauseCause
from worker.jobs.values import Attempt, Job
from worker.stages.submit import Submission

S = JobState


@dataclass
class Race:
    """A job whose first attempt was proven dead and was not, and whose second is under way."""

    bench: Bench
    submissions: list[Submission]
    ids: list[str]

    @classmethod
    def begin(cls, bench: Bench) -> "Race":
        with bench.db.transaction() as connection:  # an earlier story may have ended with a refusal
            admission.remove_pause(connection, ACCOUNT, PauseCause.BUSY)
        first = bench.begin(bench.insert())
        bench.lose(first)
        bench.clock.now = first.attempt.started_at + UNKNOWN
        bench.reconcile(first.job)
        second = bench.begin(first.job)
        return cls(bench, [first, second], [str(uuid7()), str(uuid7())])

    @property
    def job(self) -> Job:
        return self.bench.read(self.submissions[0].job)

    @property
    def attempts(self) -> list[Attempt]:
        return self.bench.attempts(self.submissions[0].job)

    def accept(self, which: int) -> None:
        reply = Accepted(self.ids[which], None, None, None)
        self.bench.reply(self.submissions[which], reply)

    def refuse(self, which: int) -> None:
        refused = Refused(RefusalClass.BUSY, 429, "busy", "later")
        self.bench.reply(self.submissions[which], refused)

    def deliver(self, which: int) -> None:
        completion = build_completion(self.ids[which], build_result(self.url_of(which)))
        self.bench.deliver(self.submissions[which], completion)

    def poll(self, which: int) -> None:
        completion = build_completion(self.ids[which], build_result(self.url_of(which)))
        attempt = self.attempts[which]
        if attempt.fal_request_id is not None:
            self.bench.reconciler._record(self.job, attempt, completion)

    def read_listing(self, which: int) -> None:
        """As recovered from the listing."""
        result = build_result(self.url_of(which))
        listed = ListedRequest(self.ids[which], True, 200, None, result)
        attempt = self.attempts[which]
        if attempt.fal_request_id is not None and listed.completion is not None:
            self.bench.reconciler._record(self.job, attempt, listed.completion)

    def deliver_empty(self, which: int) -> None:
        self.bench.deliver(self.submissions[which], build_empty(self.ids[which]))

    def fail(self, which: int) -> None:
        self.bench.deliver(self.submissions[which], build_failure(self.ids[which]))

    def obey(self, which: int) -> None:
        """Fal tells that it has cancelled the request."""
        failure = build_failure(self.ids[which], "client_cancelled")
        self.bench.deliver(self.submissions[which], failure)

    def hint(self, which: int) -> None:
        self.bench.hint(self.submissions[which], build_completion(self.ids[which]))

    def cancel(self, _which: int) -> None:
        try:
            self.bench.cancel(self.job)
        except TooLateError:
            assert self.job.state not in {S.QUEUED, S.SUBMITTING, S.SUBMITTED}

    def sweep(self, _which: int) -> None:
        self.bench.clock.move(SECOND)
        self.bench.sweep()

    def url_of(self, which: int) -> str:
        return f"https://v3.fal.media/files/{self.ids[which]}.mp4"

    def check(self) -> None:
        """What holds at any time."""
        job, tried = self.job, self.attempts
        paid = [one for one in tried if one.ending == "ok"]
        assert (job.due_at is None) == (job.state in ENDED)
        reasons = Counter(self.bench.reasons(job))
        assert reasons["result_arrived"] == bool(paid)
        if not paid:
            assert job.state is not S.COMPLETED
            return
        assert job.state is S.COMPLETED
        assert job.result == build_result(self.url_of(self.ids.index(str(job.fal_request_id))))
        for one in tried:
            own = one.fal_request_id == job.fal_request_id
            if own:
                assert (one.extra_charge_at, one.cancel_due_at) == (None, None)
            elif one.ending == "ok":
                assert one.extra_charge_at is not None
            elif one.fal_request_id is not None and one.completed_at is None:
                assert one.extra_charge_at is not None
                assert one.cancel_due_at is not None


RESULTS = [Race.deliver, Race.poll, Race.read_listing]
Step = tuple[Callable[[Race, int], None], int]


def name(step: object) -> str:
    return str(getattr(step, "__name__", step))


def play(race: Race, steps: Sequence[Step]) -> None:
    for step, which in steps:
        before = race.job
        step(race, which)
        race.check()
        if before.state is S.COMPLETED:
            assert race.job == before


@pytest.mark.both_databases
def test_two_results_in_any_order_are_one_result_and_one_extra_charge(bench):
    results: list[Step] = [(Race.deliver, 0), (Race.poll, 1)]
    steps: list[Step] = [(Race.accept, 0), (Race.accept, 1), *results]
    for order in permutations(steps):
        race = Race.begin(bench)
        play(race, order)
        # A poll before the reply knows of no request; then it comes after.
        play(race, results)
        extra = [one.extra_charge_at is not None for one in race.attempts]
        assert sorted(extra) == [False, True]
        assert [one.ending for one in race.attempts] == ["ok", "ok"]


ENDS: dict[str, list[Step]] = {
    "failed": [(Race.accept, 1), (Race.fail, 1)],
    "cancelled": [(Race.accept, 1), (Race.cancel, 1), (Race.obey, 1)],
    "rejected": [(Race.refuse, 1)],
}


@pytest.mark.both_databases
@pytest.mark.parametrize(("end", "result"), list(zip(ENDS, RESULTS, strict=True)), ids=name)
def test_result_after_the_end_is_taken_all_the_same(bench, end, result):
    race = Race.begin(bench)
    play(race, [*ENDS[end], (Race.accept, 0)])
    assert race.job.state is not S.COMPLETED
    play(race, [(result, 0)])
    assert (race.job.state, race.job.fal_request_id) == (S.COMPLETED, race.ids[0])
    assert (race.job.error_code, race.job.blocked_reason) == (None, None)


STEPS = [
    *RESULTS,
    Race.accept,
    Race.refuse,
    Race.deliver_empty,
    Race.fail,
    Race.obey,
    Race.hint,
    Race.cancel,
    Race.sweep,
]


@pytest.mark.both_databases
@settings(
    # Half of what the profile draws: each is a story of up to ten steps.
    max_examples=settings().max_examples // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1)), min_size=3, max_size=10))
def test_any_story_of_two_attempts_keeps_one_result_and_counts_the_rest(bench, steps):
    play(Race.begin(bench), steps)


@pytest.mark.both_databases
def test_results_at_the_same_moment_are_one_result(bench):
    for _ in range(6):
        race = Race.begin(bench)
        race.accept(0)
        race.accept(1)
        call_together(
            partial(race.deliver, 0),
            partial(race.deliver, 1),
            partial(race.poll, 0),
            partial(race.read_listing, 1),
        )
        race.check()
        assert [one.ending for one in race.attempts] == ["ok", "ok"]
        assert sum(one.extra_charge_at is not None for one in race.attempts) == 1


@pytest.mark.both_databases
def test_request_of_the_loser_is_cancelled_at_fal(bench, desk: ScriptedFal):
    race = Race.begin(bench)
    race.accept(1)
    race.deliver(0)
    bench.clock.move(SECOND)
    bench.turn()
    assert desk.count("PUT", f"/{race.ids[1]}/cancel") == 1
    assert desk.count("PUT") == 1
    race.obey(1)
    assert [one.extra_charge_at for one in race.attempts] == [None, None]
    race.check()


def test_loser_whose_reply_comes_after_the_result_is_cancelled_as_well(bench, desk: ScriptedFal):
    race = Race.begin(bench)
    race.deliver(0)
    race.accept(1)
    bench.clock.move(SECOND)
    bench.turn()
    assert desk.count("PUT", f"/{race.ids[1]}/cancel") == 1


def test_listing_does_not_give_the_second_attempt_what_the_first_has(bench, desk: ScriptedFal):
    race = Race.begin(bench)
    race.accept(0)
    bench.lose(race.submissions[1])
    desk.listing = list_items(build_item(race.ids[0], race.job.input))
    bench.reconcile(race.job)
    assert race.job.state is S.SUBMISSION_UNKNOWN


@pytest.mark.parametrize("step", [Race.deliver, Race.poll], ids=name)
def test_loser_whose_result_fal_could_not_deliver_is_cancelled_as_well(bench, step):
    race = Race.begin(bench)
    play(race, [(Race.accept, 1), (step, 1), (Race.deliver_empty, 0)])
    assert race.attempts[0].extra_charge_at is not None
    play(race, [(Race.deliver, 0)])
    assert race.attempts[0].cancel_due_at is None
