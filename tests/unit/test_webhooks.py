"""fal's signature: what is signed, how old it may be, and where the keys come from."""

import base64
import contextlib
import gzip
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import example, given
from hypothesis import strategies as st

from tests.harness.brokers import find_closed_port
from tests.harness.web import (
    Answer,
    ScriptedHandler,
    ScriptedServer,
    break_off,
    hang,
    run_server,
    send_body,
)
from worker.fal.webhooks import (
    KeyCache,
    SignedHeaders,
    StaleSignatureError,
    WebhookVerifier,
    parse_jwks,
    read_headers,
    signed_message,
    verify_signature,
)
from worker.ground.errors import InvalidSignatureError, KeysUnavailableError

PATIENCE = 10.0
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
BODY = b'{"request_id": "r-1", "status": "OK"}'
PREFIX = "X-Fal-Webhook-"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
UNSIGNED = SignedHeaders("r-1", "u-1", str(int(NOW.timestamp())), "0" * 128)

visible = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


def sign(
    body: bytes = BODY, *, key: Ed25519PrivateKey = KEY, at: datetime = NOW, user_id: str = "u-1"
) -> dict[str, str]:
    """Sign as fal documents it, independently of the code under test."""
    parts = [b"r-1", user_id.encode(), b"%d" % at.timestamp()]
    message = b"\n".join([*parts, hashlib.sha256(body).hexdigest().encode("ascii")])
    names = ("Request-Id", "User-Id", "Timestamp")
    headers = {PREFIX + name: part.decode() for name, part in zip(names, parts, strict=True)}
    return headers | {f"{PREFIX}Signature": key.sign(message).hex()}


def write_entry(key: Ed25519PrivateKey = KEY, **members: str) -> dict[str, str]:
    raw = key.public_key().public_bytes_raw()
    return {"x": base64.urlsafe_b64encode(raw).decode().rstrip("=")} | members


def write_jwks(*keys: Ed25519PrivateKey) -> bytes:
    return json.dumps(
        {"keys": [write_entry(key, kty="OKP", crv="Ed25519") for key in keys]}
    ).encode()


def trickle(start: bytes, chunk: bytes = b"a") -> Answer:
    def answer(handler: ScriptedHandler) -> None:
        handler.wfile.write(start)
        while not handler.server.closing.wait(0.01):
            handler.wfile.write(chunk)

    return answer


class Gate:
    """Holds answers back until it is opened."""

    def __init__(self, server: ScriptedServer) -> None:
        self.arrived, self.opened = Event(), Event()
        self._answer = server.answer
        server.answer = self._hold

    def _hold(self, handler: ScriptedHandler) -> None:
        self.arrived.set()
        self.opened.wait(PATIENCE)
        self._answer(handler)


class Ticker:
    """A clock of seconds that moves by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


JWKS = "/jwks.json"


@pytest.fixture
def server():
    with run_server(send_body(write_jwks(KEY))) as running:
        yield running


@pytest.fixture
def client():
    with httpx.Client(trust_env=False) as opened:
        yield opened


@pytest.fixture
def ticker():
    return Ticker()


@pytest.fixture
def cache(server, client, ticker):
    return KeyCache(server.url + JWKS, client, clock=ticker)


@pytest.fixture
def verifier(cache):
    return WebhookVerifier(cache)


@pytest.fixture(scope="module")
def shared_verifier():
    answer = send_body(write_jwks(KEY))
    with run_server(answer) as running, httpx.Client(trust_env=False) as opened:
        yield WebhookVerifier(KeyCache(running.url, opened, clock=Ticker()))
        assert len(running.asked) == 1


def publish(key: Ed25519PrivateKey) -> tuple[Ed25519PublicKey, ...]:
    return (key.public_key(),)


def test_read_headers_in_any_case_finds_them():
    headers = sign()
    wanted = SignedHeaders("r-1", "u-1", "1795435200", headers[f"{PREFIX}Signature"])
    for change in (str, str.lower, str.upper):
        changed = {change(name): value for name, value in headers.items()} | {"Host": "a.test"}
        assert read_headers(changed) == wanted


@pytest.mark.parametrize("name", ["Request-Id", "User-Id", "Timestamp", "Signature"])
def test_read_headers_without_one_names_it(name):
    headers = sign()
    absent = {key: value for key, value in headers.items() if key != PREFIX + name}
    for incomplete in (absent, headers | {PREFIX + name: ""}):
        with pytest.raises(InvalidSignatureError, match=f"{PREFIX}{name} is missing"):
            read_headers(incomplete)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Request-Id", ["r\n1", "r 1", "r" * 257]),
        ("User-Id", ["ü", "\ud800"]),
        ("Timestamp", ["-1", " 1795435200", "1795435200.0", "1e9", "9" * 13, "1_795_435_200"]),
        ("Timestamp", ["١٧٩٥٤٣٥٢٠٠"]),
        ("Signature", ["0" * 127, "0" * 129, "0" * 126 + "0g", "\uff10" * 128]),
    ],
)
def test_read_headers_with_malformed_value_is_refused(name, values):
    for value in values:
        with pytest.raises(InvalidSignatureError, match=f"{PREFIX}{name} is malformed"):
            read_headers(sign() | {PREFIX + name: value})


def test_signed_message_joins_parts_and_body_digest():
    digest = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert signed_message(UNSIGNED, b"") == b"r-1\nu-1\n1795435200\n" + digest


@pytest.mark.parametrize("keys", [[KEY], [OTHER_KEY, KEY], [KEY, OTHER_KEY]])
def test_verify_signature_with_any_fitting_key_passes(keys):
    headers = sign()
    verify_signature(read_headers(headers), BODY, [k.public_key() for k in keys])
    headers[f"{PREFIX}Signature"] = headers[f"{PREFIX}Signature"].upper()
    verify_signature(read_headers(headers), BODY, [k.public_key() for k in keys])


@pytest.mark.parametrize("keys", [[], [OTHER_KEY]])
def test_verify_signature_without_fitting_key_is_refused(keys):
    with pytest.raises(InvalidSignatureError, match="no key of fal fits"):
        verify_signature(read_headers(sign()), BODY, [key.public_key() for key in keys])


@given(st.sampled_from(["request_id", "user_id", "timestamp", "signature", "body"]), st.data())
def test_verify_signature_of_anything_altered_is_refused(part, data):
    headers, body = read_headers(sign()), BODY
    if part == "body":
        body = data.draw(st.binary().filter(lambda altered: altered != BODY))
    elif part == "signature":
        raw = int(headers.signature, 16) ^ (1 << data.draw(st.integers(0, 511)))
        headers = replace(headers, signature=f"{raw:0128x}")
    else:
        form = st.from_regex(r"\A[0-9]{1,12}\Z") if part == "timestamp" else visible
        value = data.draw(form.filter(lambda altered: altered != getattr(headers, part)))
        headers = replace(headers, **{part: value})
    with pytest.raises(InvalidSignatureError):
        verify_signature(headers, body, publish(KEY))


@given(visible, visible, st.integers(0, 10**12 - 1), st.binary())
def test_verify_signature_of_anything_signed_passes(request_id, user_id, timestamp, body):
    headers = replace(UNSIGNED, request_id=request_id, user_id=user_id, timestamp=str(timestamp))
    signature = KEY.sign(signed_message(headers, body)).hex()
    verify_signature(replace(headers, signature=signature), body, publish(KEY))


def test_parse_jwks_reads_ed25519_keys_and_passes_over_others():
    known = write_entry()
    for entry in (known, known | {"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": "1"}):
        assert parse_jwks({"keys": [entry]}) == publish(KEY)
    assert parse_jwks({"keys": [{"x": known["x"] + "="}]}) == publish(KEY)
    others: list[Any] = [
        *(
            None,
            {},
            write_entry(kty="RSA"),
            write_entry(crv="X25519"),
            known | {"crv": ["Ed25519"]},
        ),
        *({"x": odd} for odd in (5, known["x"][:-1], known["x"] + "A", "/" * 43, "é" * 43)),
    ]
    assert parse_jwks({"keys": [*others, write_entry(OTHER_KEY)]}) == publish(OTHER_KEY)
    for other in others:
        with pytest.raises(KeysUnavailableError, match="no Ed25519 key"):
            parse_jwks({"keys": [other]})


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["keys", "x", "kty", "crv"]), inner)
        ),
        max_leaves=10,
    )
)
@example({"keys": None})
def test_parse_jwks_of_any_json_reads_or_refuses(document):
    with contextlib.suppress(KeysUnavailableError):
        assert parse_jwks(document)


def test_keys_asked_often_are_fetched_once(cache, server, ticker):
    first = cache.keys()
    ticker.now += 24 * 3600 - 1
    assert cache.keys() is first
    assert first == publish(KEY)
    assert len(server.asked) == 1


def test_keys_a_day_old_are_fetched_again(cache, server, ticker):
    cache.keys()
    server.answer = send_body(write_jwks(OTHER_KEY))
    ticker.now += 24 * 3600
    assert cache.keys() == publish(OTHER_KEY)


def test_keys_are_fetched_without_the_clients_secrets(server, ticker):
    headers = {"Authorization": "Key secret", "Cookie": "session=secret"}
    with httpx.Client(
        headers=headers, auth=("user", "secret"), cookies={"a": "secret"}, trust_env=False
    ) as client:
        KeyCache(server.url + JWKS, client, clock=ticker).keys()
    [asked] = server.asked
    assert asked.path == JWKS
    assert "secret" not in str(asked.headers)
    assert not {"authorization", "cookie"} & {name.lower() for name in asked.headers}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (send_body(write_jwks(KEY), 302, Location="/other.json"), "HTTP 302"),
        (send_body(write_jwks(KEY), 500), "HTTP 500"),
        (send_body(write_jwks(KEY).ljust(64 * 1024 + 1)), "more than 65536 bytes"),
        (trickle(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65_536), "more than 65536 bytes"),
        (send_body(b"<html>"), "JSONDecodeError"),
        (send_body(b"[" * 60_000), "RecursionError"),
        (send_body(b'{"keys": []}'), "no Ed25519 key"),
        (send_body(gzip.compress(write_jwks(KEY)), 200, Content_Encoding="gzip"), "Error"),
        (break_off(), "RemoteProtocolError"),
    ],
)
def test_keys_with_useless_answer_are_unavailable(cache, server, answer, reason):
    server.answer = answer
    with pytest.raises(KeysUnavailableError, match=f"/jwks.json: .*{reason}"):
        cache.keys()
    assert [asked.path for asked in server.asked] == [JWKS]


def test_keys_with_nobody_listening_are_unavailable(client, ticker):
    url = f"http://127.0.0.1:{find_closed_port()}"
    with pytest.raises(KeysUnavailableError, match="ConnectError"):
        KeyCache(url, client, clock=ticker).keys()


@pytest.mark.parametrize(
    "start", [b"", b"HTTP/1.1 200 OK\r\nX-Padding: ", b"HTTP/1.1 200 OK\r\n\r\n"]
)
def test_keys_from_trickling_server_give_up_in_time(server, client, ticker, start):
    server.answer = trickle(start)
    cache = KeyCache(server.url + JWKS, client, clock=ticker, timeout=timedelta(seconds=0.2))
    with pytest.raises(KeysUnavailableError):
        cache.keys()
    if start.endswith(b"\r\n\r\n"):
        assert server.hung_up.wait(PATIENCE), "it hangs up by itself"


def test_keys_from_silent_server_give_up_in_time(server, client, ticker):
    server.answer = hang
    cache = KeyCache(server.url + JWKS, client, clock=ticker, timeout=timedelta(seconds=0.1))
    began = time.monotonic()
    with pytest.raises(KeysUnavailableError):
        cache.keys()
    assert time.monotonic() - began < 2


def test_keys_never_fetched_are_tried_every_five_seconds(cache, server, ticker):
    server.answer = send_body(b"", 503)
    for _ in range(3):
        with pytest.raises(KeysUnavailableError, match="HTTP 503"):
            cache.keys()
    assert len(server.asked) == 1
    server.answer = send_body(write_jwks(KEY))
    ticker.now += 4.9
    with pytest.raises(KeysUnavailableError, match="HTTP 503"):
        cache.keys()
    ticker.now += 0.1
    assert cache.keys() == publish(KEY)


def test_keys_that_cannot_be_renewed_stay_in_use(cache, server, ticker):
    cache.keys()
    server.answer = send_body(b"", 503)
    ticker.now += 24 * 3600
    for _ in range(3):
        assert cache.keys() == publish(KEY)
    assert len(server.asked) == 2
    ticker.now += 60
    assert cache.keys() == publish(KEY)
    assert len(server.asked) == 3


def test_refetch_often_fetches_once_a_minute(cache, server, ticker):
    keys = cache.keys()
    server.answer = send_body(write_jwks(OTHER_KEY))
    ticker.now += 59.9
    assert not any(cache.refetch(keys) for _ in range(5))
    assert len(server.asked) == 1
    ticker.now += 0.1
    assert cache.refetch(keys)
    assert cache.keys() == publish(OTHER_KEY)
    assert len(server.asked) == 2


def test_refetch_failing_keeps_keys_and_waits_a_minute(cache, server, ticker):
    keys = cache.keys()
    server.answer = send_body(b"", 503)
    ticker.now += 60
    assert not any(cache.refetch(keys) for _ in range(5))
    ticker.now += 59.9
    assert not cache.refetch(keys)
    assert cache.keys() == keys
    assert len(server.asked) == 2


def test_refetch_after_another_threads_brings_its_keys(cache, server, ticker):
    tried = cache.keys()
    server.answer = send_body(write_jwks(OTHER_KEY))
    ticker.now += 60
    assert cache.refetch(tried)
    assert cache.refetch(tried)
    assert len(server.asked) == 2


def test_keys_asked_by_many_threads_are_fetched_once(cache, server):
    gate = Gate(server)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(cache.keys) for _ in range(8)]
        assert gate.arrived.wait(PATIENCE)
        gate.opened.set()
        assert [future.result(PATIENCE) for future in asked] == [publish(KEY)] * 8
    assert len(server.asked) == 1


def test_refetch_by_many_threads_waits_for_one_fetch(cache, server, ticker):
    tried = cache.keys()
    server.answer = send_body(write_jwks(OTHER_KEY))
    gate = Gate(server)
    ticker.now += 60
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(cache.refetch, tried) for _ in range(8)]
        assert gate.arrived.wait(PATIENCE)
        gate.opened.set()
        assert all(future.result(PATIENCE) for future in asked)
    assert len(server.asked) == 2


def test_keys_being_renewed_serve_other_threads_meanwhile(cache, server, ticker):
    old = cache.keys()
    server.answer = send_body(write_jwks(OTHER_KEY))
    gate = Gate(server)
    ticker.now += 24 * 3600
    with ThreadPoolExecutor(1) as pool:
        renewing = pool.submit(cache.keys)
        assert gate.arrived.wait(PATIENCE)
        assert cache.keys() == old
        assert not renewing.done()
        gate.opened.set()
        assert renewing.result(PATIENCE) == publish(OTHER_KEY)


def test_verify_returns_the_headers_of_a_genuine_delivery_and_refuses_an_altered_one(verifier):
    assert verifier.verify(sign(), BODY, NOW).request_id == "r-1"
    with pytest.raises(InvalidSignatureError, match="no key of fal fits"):
        verifier.verify(sign(), BODY + b" ", NOW)


def test_verify_after_rotation_refetches_once(verifier, server, ticker):
    verifier.verify(sign(), BODY, NOW)
    server.answer = send_body(write_jwks(KEY, OTHER_KEY))
    ticker.now += 60
    for key in (OTHER_KEY, KEY):
        assert verifier.verify(sign(key=key), BODY, NOW).user_id == "u-1"
    assert len(server.asked) == 2


def test_verify_of_garbage_flood_fetches_once_a_minute(verifier, server, ticker):
    for fetches in (1, 2):
        for _ in range(20):
            with pytest.raises(InvalidSignatureError):
                verifier.verify(sign(key=OTHER_KEY), BODY, NOW)
        assert len(server.asked) == fetches
        ticker.now += 60


def test_verify_with_no_keys_at_all_is_unavailable(verifier, server):
    server.answer = send_body(b"", 503)
    for _ in range(3):
        with pytest.raises(KeysUnavailableError):
            verifier.verify(sign(), BODY, NOW)
    assert len(server.asked) == 1


def test_verify_of_malformed_or_foreign_delivery_fetches_nothing(cache, server):
    verifier = WebhookVerifier(cache, user_id="u-1")
    for headers in (
        {},
        sign() | {f"{PREFIX}Signature": "00"},
        sign() | {f"{PREFIX}Timestamp": "soon"},
        sign(user_id="u-2"),
    ):
        with pytest.raises(InvalidSignatureError):
            verifier.verify(headers, BODY, NOW)
    assert server.asked == []


def test_verify_of_expected_account_passes_another_is_refused(cache):
    verifier = WebhookVerifier(cache, user_id="u-1")
    assert verifier.verify(sign(), BODY, NOW).user_id == "u-1"
    with pytest.raises(InvalidSignatureError, match="another fal account"):
        verifier.verify(sign(user_id="u-2"), BODY, NOW)


def test_verify_of_genuine_delivery_outside_its_window_is_stale(cache):
    for window, within, beyond in (
        (timedelta(minutes=5), (0, 300, -300), (301, -301, 86_400)),
        (SECOND, (1, -1), (2, -2)),
    ):
        verifier = WebhookVerifier(cache, window=window)
        for age in within:
            verifier.verify(sign(), BODY, NOW + age * SECOND)
        for age in beyond:
            with pytest.raises(StaleSignatureError, match="s old"):
                verifier.verify(sign(), BODY, NOW + age * SECOND)


@pytest.mark.parametrize("timestamp", ["0", "9" * 12])
def test_verify_of_farthest_times_is_stale(verifier, timestamp):
    signed = replace(UNSIGNED, timestamp=timestamp)
    headers = sign() | {f"{PREFIX}Timestamp": timestamp}
    headers[f"{PREFIX}Signature"] = KEY.sign(signed_message(signed, BODY)).hex()
    with pytest.raises(StaleSignatureError) as refused:
        verifier.verify(headers, BODY, NOW)
    assert refused.value.code == "stale_signature"
    assert isinstance(refused.value, InvalidSignatureError)


def test_verify_of_stale_garbage_is_invalid_and_never_refetches(verifier, server, ticker):
    verifier.verify(sign(), BODY, NOW)
    ticker.now += 3600
    with pytest.raises(InvalidSignatureError) as refused:
        verifier.verify(sign(key=OTHER_KEY), BODY, NOW + 301 * SECOND)
    assert not isinstance(refused.value, StaleSignatureError)
    assert len(server.asked) == 1


anything: st.SearchStrategy[Any] = st.text(st.characters(), max_size=30)
likely = {
    f"{PREFIX}Request-Id": visible | anything,
    f"{PREFIX}User-Id": visible | anything,
    f"{PREFIX}Timestamp": st.integers(-1, 10**13).map(str) | anything | st.just("1795435200"),
    f"{PREFIX}Signature": st.binary(min_size=64, max_size=64).map(bytes.hex) | anything,
}


@given(st.fixed_dictionaries({}, optional=likely) | st.fixed_dictionaries(likely), st.binary())
def test_verify_of_anything_unsigned_is_invalid(shared_verifier, headers, body):
    with pytest.raises(InvalidSignatureError):
        shared_verifier.verify(headers, body, NOW)
