"""The coordinator's own certificate authority and server certificate (X.509, RFC 5280; P-384, SHA-384).

    <folder>/keys/ca.key  keys/server.key (0600, PKCS 8)    ca.crt  server.crt (public)

Silos pin `ca.crt` and trust no other authority. The authority may sign for servers alone and for no further authority;
a name is taken from the subject's alternative names, never from its common name.
"""

from __future__ import annotations

import ipaddress
import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.checkpoint import write_whole
from strategies.errors import SettingError

_AUTHORITY_LIFE = timedelta(days=3650)
_SERVER_LIFE = timedelta(days=365)
_RENEWAL = timedelta(days=60)  # before its end
_SKEW = timedelta(hours=1)  # of clocks


def make_authority(folder: Path, name: str) -> None:
    """Make key and certificate of the authority; what is there is kept."""
    if (folder / "ca.crt").exists():
        return
    key = generate_private_key(SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Fedsilo {name}")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA384())
    )
    write_secret(folder / "keys" / "ca.key", _pem(key))
    write_whole(folder / "ca.crt", certificate.public_bytes(Encoding.PEM))


def certify(folder: Path, hosts: Sequence[str]) -> bool:
    """Make the server's certificate if it is missing, near its end, or for other names; return whether it is new.

    Args:
        folder: the coordinator's.
        hosts: names and addresses that silos use; those of this machine's loopback are added.
    """
    wanted = _names((*hosts, "localhost", "127.0.0.1"))
    path = folder / "server.crt"
    if path.exists() and (folder / "keys" / "server.key").exists() and _still_good(path, wanted):
        return False
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    signer = read_key(folder / "keys" / "ca.key")
    key = generate_private_key(SECP384R1())
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Fedsilo server")]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(min(now + _SERVER_LIFE, authority.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName(wanted), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, SHA384())
    )
    write_secret(folder / "keys" / "server.key", _pem(key))
    write_whole(path, certificate.public_bytes(Encoding.PEM))
    return True


def _still_good(path: Path, wanted: list[x509.GeneralName]) -> bool:
    found = x509.load_pem_x509_certificate(path.read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return found.not_valid_after_utc - datetime.now(UTC) > _RENEWAL and list(names) == wanted


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            found.append(x509.DNSName(host))
    return found


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


# --- secrets ------------------------------------------------------------------------------------------------


def read_key(path: Path) -> EllipticCurvePrivateKey:
    """Return a private key of this folder.

    Raises:
        SettingError: it is missing, is no such key, or others may read it.
    """
    try:
        key = load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise SettingError(f"{path} holds no elliptic-curve key; put the coordinator's own file back from its backup")
    return key


def read_secret(path: Path) -> bytes:
    """Return the bytes of a file that its owner alone can read.

    Raises:
        SettingError: it is missing, a link, or others may read it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SettingError(f"{path} cannot be read ({error.strerror}); put it back from its backup") from None
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if stat.S_IMODE(facts.st_mode) & 0o077 or facts.st_uid != os.geteuid():
            raise SettingError(
                f"{path} may be read by others, or is another user's; chown it and run chmod 0600 {path}"
            )
        return file.read()


def write_secret(path: Path, data: bytes) -> None:
    """Replace a file of mode 0600 as a whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    part.replace(path)


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
