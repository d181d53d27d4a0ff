"""Twelve certificates and handshakes that must not be believed: a silo's node sends such a server not one byte of HTTP.

Oracle: the server's own record of what it read after a handshake; a good certificate on the same server is believed.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from client.fleet import Connection, TurnedAway, Unreachable

NODE = ec.generate_private_key(ec.SECP384R1())
NOW = datetime.now(UTC)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, kw_only=True)
class Made:
    """A certificate and what it is made with."""

    key: Key
    certificate: x509.Certificate

    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a certificate shall say."""

    names: tuple[x509.GeneralName, ...] = (x509.DNSName("localhost"),)
    begins: datetime = NOW - timedelta(hours=1)
    ends: datetime = NOW + timedelta(days=30)
    common: str = "server"
    authority: bool = False
    usages: tuple[x509.ObjectIdentifier, ...] = (x509.ExtendedKeyUsageOID.SERVER_AUTH,)


def make(order: Order, issuer: Made | None = None, key: Key | None = None) -> Made:
    """A certificate by an issuer, or by itself."""
    own = key or ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, order.common)])
    signer = issuer.key if issuer else own
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(order.begins)
        .not_valid_after(order.ends)
        .add_extension(x509.BasicConstraints(ca=order.authority, path_length=0 if order.authority else None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
        .add_extension(_usage(order.authority), True)
    )
    if order.names and not order.authority:
        builder = builder.add_extension(x509.SubjectAlternativeName(order.names), False)
    if order.usages and not order.authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage(order.usages), False)
    return Made(key=own, certificate=builder.sign(signer, SHA256()))


def _usage(authority: bool) -> x509.KeyUsage:
    names = "content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only"
    no = dict.fromkeys(names.split(), False)
    return x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **no)


def changed(made: Made) -> Made:
    """The certificate with one bit of its signature turned over."""
    data = bytearray(made.certificate.public_bytes(Encoding.DER))
    data[-1] ^= 1
    return Made(key=made.key, certificate=x509.load_der_x509_certificate(bytes(data)))


AUTHORITY = make(Order(common="authority", authority=True))
STRANGER = make(Order(common="authority", authority=True))
GOOD = Order()


def _request(one: ssl.SSLSocket) -> bytes:
    """One whole request: who answers and closes with bytes unread resets the connection, and the answer may be lost."""
    with one.makefile("rb") as stream:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = stream.readline()
            if not line:
                return head
            head += line
        length = next(
            (line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), b"0"
        )
        return head + stream.read(int(length))


class Server:
    """A TLS server of a few lines that answers 403 and keeps what it read."""

    def __init__(self, folder: Path, made: Made, *, change: Callable[[ssl.SSLContext], None] = lambda _: None) -> None:
        chain, key = folder / "chain.pem", folder / "key.pem"
        chain.write_bytes(made.pem())
        key.write_bytes(made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.set_ciphers("ALL:@SECLEVEL=0")
        self.context.load_cert_chain(chain, key)
        change(self.context)
        self.read = b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
                with self.context.wrap_socket(plain, server_side=True) as one:
                    self.read += _request(one)
                    one.sendall(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 6\r\n\r\nroster")
            except ssl.SSLError:
                continue
            except OSError:
                if self.listener.fileno() < 0:
                    return


def tls_12(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2


def tls_11(context: ssl.SSLContext) -> None:
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1


def connect(server: Server) -> Exception:
    connection = Connection(f"localhost:{server.port}", AUTHORITY.pem().decode(), NODE)
    try:
        connection.activate()
    except (Unreachable, TurnedAway) as error:
        return error
    finally:
        connection.close()
        server.listener.close()
    raise AssertionError("it was believed")


def test_a_good_certificate_is_believed(tmp_path: Path) -> None:
    server = Server(tmp_path, make(GOOD, AUTHORITY))
    assert isinstance(connect(server), TurnedAway)
    assert server.read.startswith(b"POST /v1/fleet/activate-node")


BAD: dict[str, Callable[[], Made]] = {
    "expired": lambda: make(replace(GOOD, ends=NOW - timedelta(minutes=5)), AUTHORITY),
    "not yet valid": lambda: make(replace(GOOD, begins=NOW + timedelta(hours=1)), AUTHORITY),
    "of another authority": lambda: make(GOOD, STRANGER),
    "self-signed": lambda: make(GOOD),
    "for another name": lambda: make(replace(GOOD, names=(x509.DNSName("fed.example.org"),)), AUTHORITY),
    "a common name alone": lambda: make(replace(GOOD, names=(), common="localhost"), AUTHORITY),
    "for clients": lambda: make(replace(GOOD, usages=(x509.ExtendedKeyUsageOID.CLIENT_AUTH,)), AUTHORITY),
    "of a server that plays authority": lambda: make(GOOD, make(replace(GOOD, common="middle"), AUTHORITY)),
    "RSA of 1024 bits": lambda: make(GOOD, AUTHORITY, rsa.generate_private_key(65537, 1024)),
    "changed after it was signed": lambda: changed(make(GOOD, AUTHORITY)),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_certificate_is_not_believed(tmp_path: Path, what: str) -> None:
    server = Server(tmp_path, BAD[what]())
    assert isinstance(connect(server), Unreachable)
    assert server.read == b""


@pytest.mark.parametrize("change", [tls_12, tls_11])
def test_an_older_protocol_is_not_spoken(tmp_path: Path, change: Callable[[ssl.SSLContext], None]) -> None:
    server = Server(tmp_path, make(GOOD, AUTHORITY), change=change)
    assert isinstance(connect(server), Unreachable)
    assert server.read == b""


def test_plain_http_is_not_spoken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        read: list[bytes] = []

        def serve() -> None:
            plain, _ = listener.accept()
            with plain:
                read.append(plain.recv(4096))
                plain.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        connection = Connection(f"localhost:{listener.getsockname()[1]}", AUTHORITY.pem().decode(), NODE)
        with pytest.raises(Unreachable):
            connection.activate()
        connection.close()
        thread.join(timeout=10)
    assert not read[0].startswith(b"POST"), "a TLS hello and nothing else"
