"""TLS in front of a server that speaks none: a certificate of the run's own, and what ends it."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CHUNK = 65536


@dataclass(frozen=True)
class Certificate:
    """Signed by itself, so it is its own authority."""

    certificate: Path
    key: Path


def make_certificate(directory: Path, *names: str) -> Certificate:
    """For these host names and addresses alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker of a test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([name_host(name) for name in names]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    made = Certificate(directory / "broker.pem", directory / "broker.key")
    made.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return made


def name_host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@contextmanager
def run_tls_end(target: Path | tuple[str, int], certificate: Certificate) -> Iterator[int]:
    """A port on loopback that speaks TLS and passes the content on to `target`, as stunnel does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=_accept, args=(listener, context, target), daemon=True)
        accepting.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def _accept(
    listener: socket.socket, context: ssl.SSLContext, target: Path | tuple[str, int]
) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_pass_on, args=(plain, context, target), daemon=True).start()


def _pass_on(plain: socket.socket, context: ssl.SSLContext, target: Path | tuple[str, int]) -> None:
    with plain, suppress(OSError):
        outer = context.wrap_socket(plain, server_side=True)
        with outer, _connect(target) as inner:
            back = threading.Thread(target=_copy, args=(inner, outer), daemon=True)
            back.start()
            _copy(outer, inner)
            back.join()


def _connect(target: Path | tuple[str, int]) -> socket.socket:
    if isinstance(target, tuple):
        return socket.create_connection(target)
    inner = socket.socket(socket.AF_UNIX)
    inner.connect(str(target))
    return inner


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(CHUNK):
            sink.sendall(chunk)
    for one in (source, sink):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@contextmanager
def run_proxy(asked: list[list[str]]) -> Iterator[int]:
    """A proxy's port on loopback. Every CONNECT leads to the port it names, on this machine."""

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                caller, _ = listener.accept()
                threading.Thread(target=tunnel, args=(caller,), daemon=True).start()

    def tunnel(caller: socket.socket) -> None:
        with caller, suppress(OSError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += caller.recv(1)
            asked.append(head.decode().split("\r\n"))
            port = int(asked[-1][0].split()[1].rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port)) as inner:
                caller.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                back = threading.Thread(target=_copy, args=(inner, caller), daemon=True)
                back.start()
                _copy(caller, inner)
                back.join()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve, args=(listener,), daemon=True)
        serving.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()
