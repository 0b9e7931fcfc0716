"""Proxies and authorities of the environment: what leads where, and what ends the start."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness.tls import make_certificate, run_proxy, run_tls_end
from tests.harness.web import run_server, send_json
from worker.fal.http import build_client
from worker.ground.errors import InvalidSettingsError
from worker.ground.network import parse_date, read_network, read_retry_after
from worker.ground.settings import load_settings

PROXY = "http://proxy:3128"
NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("environ", "url", "is_proxied"),
    [
        ({"HTTPS_PROXY": PROXY}, "https://queue.fal.run", True),
        ({"HTTPS_PROXY": PROXY}, "http://queue.fal.run", False),
        ({"ALL_PROXY": PROXY}, "http://queue.fal.run", True),
        ({"all_proxy": "proxy:3128"}, "https://queue.fal.run", True),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, "https://queue.fal.run", False),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "a, fal.run"}, "https://queue.fal.run", False),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": ".FAL.run"}, "https://queue.fal.run", False),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "al.run"}, "https://queue.fal.run", True),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "fal.run:8443"}, "https://fal.run", True),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "fal.run:8443"}, "https://fal.run:8443", False),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "https://fal.run"}, "https://fal.run", False),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "fd00::/8"}, "https://[fd00::7]", False),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "fd00::/8"}, "https://[fe00::7]", True),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "[::1]"}, "https://[::1]:8001", False),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "[::1]:8001"}, "https://[::1]:8001", False),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, "https://10.1.2.3", False),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, "https://fal.run", True),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "::nonsense::[,//"}, "https://fal.run", True),
    ],
)
def test_proxy_leads_to_what_is_not_exempt(environ, url, is_proxied) -> None:
    parts = httpx.URL(url)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    proxy = read_network(environ).find_proxy(parts.scheme, parts.host, port)
    assert (proxy is not None) == is_proxied
    assert proxy is None or proxy.url == PROXY


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080"),
        ("https_proxy", "https://proxy:443"),
        ("HTTP_PROXY", "http://proxy:port"),
        ("HTTP_PROXY", "http://"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem"),
        ("SSL_CERT_FILE", __file__),
        ("SSL_CERT_DIR", "/nowhere"),
    ],
)
def test_variable_that_leads_nowhere_ends_the_start_by_its_name(monkeypatch, name, value) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()
    assert [violation.field for violation in caught.value.violations] == [name]


def test_password_of_a_proxy_is_not_shown(monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://user:secret@proxy")
    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(read_network({"ALL_PROXY": "http://user:secret@proxy"}))


def test_client_of_fal_goes_by_proxy_and_trusts_the_named_authority(monkeypatch, tmp_path) -> None:
    certificate = make_certificate(tmp_path, "queue.invalid")
    asked: list[list[str]] = []
    with run_server(send_json({"ok": True})) as server:
        target = ("127.0.0.1", httpx.URL(server.url).port or 0)
        with run_tls_end(target, certificate) as port, run_proxy(asked) as proxy:
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate))
            monkeypatch.setenv("HTTPS_PROXY", f"http://user:p%40ss@127.0.0.1:{proxy}")
            with build_client() as client:
                reply = client.get(f"https://queue.invalid:{port}/")
    assert reply.json() == {"ok": True}
    assert asked[0][0].split()[1] == f"queue.invalid:{port}"
    assert "Proxy-Authorization: Basic dXNlcjpwQHNz" in asked[0]


# ------------------------------------------------------------------ dates, and how long to wait


def test_retry_after_is_seconds_or_a_date_within_its_bound() -> None:
    later, earlier, past_bound = (
        format_datetime(NOW + timedelta(seconds=seconds), usegmt=True) for seconds in (9, -9, 9999)
    )
    for text, seconds in {
        " 7 ": 7,
        "0000000007": 7,
        later: 9,
        **dict.fromkeys(["3600", "3601", "9" * 5000, past_bound], 3600),
        **dict.fromkeys(["", "0", "-7", "7.5", "soon", "\u0667", "\u00b2", earlier], 0),
    }.items():
        assert read_retry_after(text, HOUR, NOW) == timedelta(seconds=seconds), text
    assert read_retry_after(None, HOUR, NOW) == timedelta()


@given(st.text() | st.text("0123456789 :GMTFrideca,-/*", max_size=40))
def test_parsing_any_date_never_raises(text) -> None:
    assert timedelta() <= read_retry_after(text, HOUR, NOW) <= HOUR
    assert getattr(parse_date(text), "tzinfo", UTC) is not None
