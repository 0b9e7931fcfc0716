"""Genuine deliveries of any content; `test_mutations` has those that are not genuine."""

from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from tests.harness.jobs import REQUEST_ID, make_job, read_job
from tests.harness.webhooks import build_delivery
from worker.jobs.states import JobState

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
payloads = json_values | st.builds(
    lambda video, seed, prompt, more: {"video": video, "seed": seed, "prompt": prompt, **more},
    json_values
    | st.builds(lambda url, more: {**more, "url": url}, st.text(max_size=30), st.just({})),
    json_values,
    json_values,
    st.dictionaries(st.text(max_size=8), json_values, max_size=2),
)
genuine_bodies = st.fixed_dictionaries(
    {"request_id": st.just(REQUEST_ID), "status": st.sampled_from(["OK", "ERROR"])},
    optional={
        "payload": payloads
        | st.fixed_dictionaries({"detail": payloads, "error_type": json_values}),
        "error": json_values,
        "payload_error": json_values,
        "gateway_request_id": json_values,
    },
)


@pytest.mark.both_databases
def test_receive_genuine_delivery_of_any_content_is_answered_for_good(scene) -> None:
    """Whatever fal has signed is recorded or refused: a 5xx would make it come again and again."""

    @settings(suppress_health_check=list(HealthCheck))
    @given(genuine_bodies, st.sampled_from([JobState.SUBMITTED, JobState.ARCHIVING]))
    def post_genuine(body, state) -> None:
        with scene.db.transaction() as connection:
            connection.execute(text("DELETE FROM jobs"))
        job = make_job(scene.db, state, now=datetime.now(UTC))
        for _ in range(2):
            answer = scene.post(build_delivery(body))
            assert answer.status_code in {200, 400}, answer.text
        read_job(scene.db, job.id)

    post_genuine()
