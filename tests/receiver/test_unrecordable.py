"""A delivery that the database refuses: fal comes again, and the row says why."""

import pytest

from tests.harness.jobs import REQUEST_ID, read_attempts, read_job
from tests.harness.refusing import REASON, refusing_results
from tests.harness.webhooks import build_delivery


@pytest.mark.both_databases
def test_receive_result_that_is_refused_answers_503_and_says_why(scene, job, db, caplog) -> None:
    with refusing_results(db):
        for _ in range(2):
            answer = scene.post(build_delivery())
            assert (answer.status_code, answer.get_json()["error"]) == (503, "unrecordable")
    after = read_job(db, job.id)
    assert after.state is job.state
    assert after.is_unrecordable
    assert REASON in str(after.blocked_reason)
    assert [one.fal_request_id for one in read_attempts(db, job.id)] == [REQUEST_ID]
    assert "extend_video.reconcile" in scene.take_doorbells()
    told = [one for one in caplog.records if "completion_not_recorded" in str(one.msg)]
    assert [one.exc_info for one in told] == [None, None]
    assert scene.post(build_delivery()).get_json() == {"verdict": "recorded"}
    assert read_job(db, job.id).blocked_reason is None
