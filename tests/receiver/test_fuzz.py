"""Deliveries spoilt in every way, and genuine ones of any content."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from tests.harness.jobs import REQUEST_ID, TOKEN, make_job, read_job
from tests.harness.webhooks import PREFIX, SignedDelivery, build_delivery
from tests.receiver.scene import LIMIT
from worker.jobs.states import JobState

byte_changes = st.tuples(st.integers(0, 10_000), st.integers(1, 255))
header_names = st.sampled_from(["Request-Id", "User-Id", "Timestamp", "Signature"])
header_values = st.text(st.characters(max_codepoint=0xFF, exclude_characters="\r\n"), max_size=150)
token_characters = st.characters(exclude_categories=["Cs"], exclude_characters="/")
mutations = st.one_of(
    st.tuples(st.just("body"), byte_changes),
    st.tuples(st.just("cut"), st.integers(0, 10_000)),
    st.tuples(st.just("append"), st.binary(min_size=1, max_size=50)),
    st.tuples(st.just("replace"), st.binary(max_size=300)),
    st.tuples(st.just("append"), st.integers(LIMIT, 2 * LIMIT).map(bytes)),
    st.tuples(st.just("drop"), header_names),
    st.tuples(st.just("header"), st.tuples(header_names, header_values)),
    st.tuples(st.just("header-byte"), st.tuples(header_names, byte_changes)),
    st.tuples(st.just("token"), st.text(token_characters, max_size=60)),
)


@dataclass
class Draft:
    """A delivery that is being spoilt."""

    body: bytearray
    headers: dict[str, str]
    token: str = TOKEN

    def spoil(self, kind: str, how: Any) -> None:
        match kind, how:
            case "body", (place, change):
                self.body[place % len(self.body)] ^= change
            case "cut", length:
                del self.body[length % len(self.body) :]
            case "append", more:
                self.body += more
            case "replace", body:
                self.body = bytearray(body)
            case "drop", name:
                del self.headers[PREFIX + name]
            case "header", (name, value):
                self.headers[PREFIX + name] = value
            case "header-byte", (name, (place, change)):
                self.headers[PREFIX + name] = flip(self.headers[PREFIX + name], place, change)
            case "token", token:
                self.token = token

    def means_same_as(self, delivery: SignedDelivery) -> bool:
        """Whether nothing that counts has changed; hexadecimal may be written either way."""
        same = {name: value.lower() for name, value in self.headers.items()} == {
            name: value.lower() for name, value in delivery.headers.items()
        }
        return same and (bytes(self.body), self.token) == (delivery.body, delivery.token)


def flip(value: str, place: int, change: int) -> str:
    raw = bytearray(value.encode("latin-1"))
    raw[place % len(raw)] = (raw[place % len(raw)] ^ change) or 1
    text = raw.decode("latin-1")
    return text.replace("\r", "r").replace("\n", "n")


def test_receive_spoilt_delivery_changes_nothing(scene, job) -> None:
    delivery = build_delivery()
    before = scene.read_table()

    @settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutations)
    def post_spoilt(mutation) -> None:
        draft = Draft(bytearray(delivery.body), dict(delivery.headers))
        draft.spoil(*mutation)
        if draft.means_same_as(delivery):
            return
        answer = scene.client.post(
            f"/webhooks/fal/{quote(draft.token, safe='')}",
            data=bytes(draft.body),
            headers=draft.headers,
        )
        assert answer.status_code in {400, 401, 404, 413}, answer.text

    post_spoilt()
    assert scene.read_table() == before
    assert scene.post(delivery).get_json() == {"verdict": "recorded"}


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


def test_receive_genuine_delivery_of_any_content_is_answered_for_good(scene) -> None:
    """Whatever fal has signed is recorded or refused: a 5xx would make it come again and again."""

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
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
