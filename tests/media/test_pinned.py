"""The connection to a pinned address: whose certificate counts, and what it takes along."""

import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typing_extensions import override

from tests.harness.sinks import MemorySink
from tests.harness.tls import run_proxy
from tests.media.conftest import MediaServer
from worker.ground.errors import MediaRefusedError, MediaUnavailableError
from worker.media.download import DownloadLimits, download_video
from worker.media.hosts import parse_media_hosts
from worker.media.pinned import MediaClient

HOST = "cdn.invalid"
LIMITS = DownloadLimits(timedelta(seconds=30), 1024 * 1024)
VIDEO = b"video" * 50_000
PEM = serialization.Encoding.PEM
AUTHORIZATION = "Proxy-Authorization: Basic dXNlcjpwQHNz"


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        self.certificate = self._sign(self._name, self._key.public_key(), [], is_authority=True)

    def issue(self, path: Path, *names: str) -> Path:
        """A file with a key and a certificate for these names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        alternatives = [name_alternative(name) for name in names]
        certificate = self._sign(subject, key.public_key(), alternatives, is_authority=False)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        return path

    def trust(self) -> ssl.SSLContext:
        pem = self.certificate.public_bytes(serialization.Encoding.PEM).decode()
        return ssl.create_default_context(cadata=pem)

    def _sign(self, subject, key, alternatives, *, is_authority) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
        return builder.sign(self._key, hashes.SHA256())


def name_alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class TlsServer(MediaServer):
    """Remembers which name each caller asked for in its greeting."""

    def __init__(self, certificate: Path) -> None:
        super().__init__()
        self.greeted: list[str | None] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.sni_callback = lambda _socket, name, _context: self.greeted.append(name)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    @override
    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever does not trust us hangs up, and so does whoever has no time left."""
        self.hung_up.set()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def start_tls(authority, tmp_path) -> Iterator[Callable[..., TlsServer]]:
    running: list[tuple[TlsServer, Thread]] = []

    def start(*names: str) -> TlsServer:
        server = TlsServer(authority.issue(tmp_path / f"{len(running)}.pem", *names))
        server.serve("/v", send_video)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        running.append((server, thread))
        thread.start()
        return server

    yield start
    for server, thread in running:
        server.stop()
        thread.join()


def send_video(handler):
    handler.answer(Content_Length=str(len(VIDEO)))
    handler.wfile.write(VIDEO)


def fetch(server, tls, host=HOST, limits=LIMITS, **options):
    sink, place = MemorySink(), f"{host}:{server.server_port}"
    client = MediaClient(tls=tls, resolve=lambda *_: ["127.0.0.1"], sleep=lambda _: None, **options)
    hosts = parse_media_hosts(place)
    download_video(f"https://{place}/v", sink, client=client, hosts=hosts, limits=limits)
    return bytes(sink.content)


def test_download_over_tls_checks_the_certificate_against_the_name(authority, start_tls):
    server = start_tls(HOST)
    assert fetch(server, authority.trust()) == VIDEO
    assert server.greeted == [HOST]
    assert server.received[0]["Host"] == f"{HOST}:{server.server_port}"


@pytest.mark.parametrize("name", ["other.invalid", "127.0.0.1"])
def test_download_over_tls_from_another_name_is_refused_unasked(authority, start_tls, name):
    """That the address is in the certificate is of no use: nobody asked for an address."""
    server = start_tls(name)
    with pytest.raises(MediaUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(server, authority.trust())
    assert server.received == []


def test_download_over_tls_from_an_address_checks_the_address(authority, start_tls):
    server = start_tls("127.0.0.1")
    assert fetch(server, authority.trust(), "127.0.0.1") == VIDEO
    with pytest.raises(MediaUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(start_tls(HOST), authority.trust(), "127.0.0.1")


def test_download_over_tls_from_an_unknown_authority_is_refused_unasked(start_tls):
    server = start_tls(HOST)
    with pytest.raises(MediaUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(server, MediaClient().tls)
    assert server.received == []


def test_download_over_tls_dripping_headers_ends_at_the_total_limit(authority, start_tls):
    server = start_tls(HOST)

    def drip(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Endless: ")
        while not handler.server.closing.wait(0.02):
            handler.wfile.write(b"x")

    server.serve("/v", drip)
    limits = DownloadLimits(timedelta(seconds=0.5), LIMITS.max_bytes)
    with pytest.raises(MediaUnavailableError, match="longer than its time limit"):
        fetch(server, authority.trust(), limits=limits)
    assert server.hung_up.wait(10)


def test_client_trusts_known_authorities_and_checks_names():
    tls = MediaClient().tls
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert tls.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert tls.get_ca_certs()


def test_download_goes_by_proxy_and_trusts_the_named_authority(
    authority, start_tls, tmp_path, monkeypatch
):
    """As the submission did, which was paid for; the proxy looks up the name."""
    server = start_tls(HOST)
    asked: list[list[str]] = []
    (tmp_path / "ca.pem").write_bytes(authority.certificate.public_bytes(PEM))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    place = f"{HOST}:{server.server_port}"
    with run_proxy(asked) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:p%40ss@127.0.0.1:{proxy}")
        client, sink = MediaClient(resolve=never, sleep=lambda _: None), MemorySink()
        hosts = parse_media_hosts(place)
        download_video(f"https://{place}/v", sink, client=client, hosts=hosts, limits=LIMITS)
    assert bytes(sink.content) == VIDEO
    assert asked[0][0] == f"CONNECT {place} HTTP/1.1"
    assert AUTHORIZATION in asked[0]
    assert "Proxy-Authorization" not in server.received[0]


def test_download_by_proxy_from_an_address_of_version_6_checks_that_address(
    authority, start_tls, monkeypatch
):
    """In a request the address stands in brackets, in its certificate it does not."""
    server, asked = start_tls("::1"), list[list[str]]()
    with run_proxy(asked) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy}")
        place, sink = f"[::1]:{server.server_port}", MemorySink()
        client, hosts = MediaClient(tls=authority.trust()), parse_media_hosts(place)
        download_video(f"https://{place}/v", sink, client=client, hosts=hosts, limits=LIMITS)
    assert bytes(sink.content) == VIDEO
    assert asked[0][:2] == [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]


def test_download_by_proxy_of_an_address_is_checked_all_the_same(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    hosts = parse_media_hosts("169.254.169.254:80")
    client = MediaClient(sleep=lambda _: None)
    with pytest.raises(MediaRefusedError, match="no public address"):
        download_video(
            "http://169.254.169.254:80/v", MemorySink(), client=client, hosts=hosts, limits=LIMITS
        )


def never(*_):
    raise AssertionError("the proxy looks up the name")
