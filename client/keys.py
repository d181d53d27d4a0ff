"""The three keys of a silo, made on site: ledger (Ed25519), officer (Ed25519), transport (P-384).

    keys/ledger.pem  keys/officer.pem  keys/transport.pem  keys/fingerprint.key  keys/pin.json

PKCS 8 (RFC 5958) in PEM, encrypted with a passphrase that the caller hands in as bytes; only a simulated silo
(durability `process`) has them unencrypted. `fingerprint.key` keys the sketch of units; `pin.json` says which ledger is
this silo's, outside the ledger's own file. The officer's key is asked for at registrations and restores alone and may
be kept elsewhere.

Guarantees: a key file that others could read, that is a link, or that belongs to another user is not used.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from strategies.errors import SettingError, VerificationError
from strategies.proof.canonical import dump, load
from strategies.proof.chain import Pins
from strategies.proof.entries import is_hex, public_hex

_LARGEST_BYTES = 65536
_PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey


@dataclass(frozen=True, kw_only=True)
class PublicKeys:
    """What of the keys may be shown to anybody, in hex: two Ed25519 keys and an uncompressed P-384 point."""

    ledger: str
    officer: str
    transport: str


@dataclass(frozen=True, kw_only=True)
class Passphrases:
    """Of the two who hold keys; None leaves a simulated silo's keys unencrypted."""

    silo: bytes | None = None
    officer: bytes | None = None


def make_keys(folder: Path, passphrases: Passphrases, *, simulated: bool = False) -> PublicKeys:
    """Make all keys of a silo in `folder` (made with mode 0700), each file with mode 0600.

    Args:
        folder: the silo's keys folder; a folder that is there must hold no key.
        passphrases: of the silo (ledger and transport) and of the officer.
        simulated: allows keys without passphrase.

    Raises:
        SettingError: there are keys already, a passphrase is missing, or the folder cannot be written.
    """
    if not simulated and not (passphrases.silo and passphrases.officer):
        raise SettingError(
            f"the keys of {folder} need two passphrases, the silo's and the officer's; only a simulated silo "
            "(durability = 'process') has keys without one"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"{folder} cannot be made: {error.strerror}") from None
    check_folder(folder)
    ledger, officer, transport = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), _p384()
    _write_key(folder / "ledger.pem", ledger, passphrases.silo, durable=not simulated)
    _write_key(folder / "officer.pem", officer, passphrases.officer, durable=not simulated)
    _write_key(folder / "transport.pem", transport, passphrases.silo, durable=not simulated)
    write_private(folder / "fingerprint.key", secrets.token_bytes(32), durable=not simulated)
    point = transport.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return PublicKeys(ledger=public_hex(ledger), officer=public_hex(officer), transport=point.hex())


def make_next_keys(folder: Path, passphrase: bytes | None, *, simulated: bool = False) -> None:
    """Make the keys of ledger and transport that will follow those of now; those that are there are kept.

    Args:
        folder: beside the keys of now, made with mode 0700.
        passphrase: the silo's, which stays.
        simulated: allows keys without passphrase.

    Raises:
        SettingError: the folder is not right, or cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise SettingError(f"{folder} cannot be made: {error.strerror}") from None
    check_folder(folder)
    made: dict[str, _PrivateKey] = {"ledger.pem": Ed25519PrivateKey.generate(), "transport.pem": _p384()}
    for name, key in made.items():
        if not (folder / name).exists():
            _write_key(folder / name, key, passphrase, durable=not simulated)
    if not simulated:
        sync_folder(folder.parent)


def _p384() -> EllipticCurvePrivateKey:
    return generate_private_key(SECP384R1())


def ledger_key(folder: Path, passphrase: bytes | None, *, simulated: bool = False) -> Ed25519PrivateKey:
    """Return the key that signs the ledger, its heads and the silo's messages.

    Raises:
        SettingError: the file, its owner or mode, or the passphrase is not right; the sentence says how to repair it.
    """
    return _ed25519(folder / "ledger.pem", passphrase, simulated)


def officer_key(folder: Path, passphrase: bytes | None, *, simulated: bool = False) -> Ed25519PrivateKey:
    """Return the data-protection officer's key.

    Raises:
        SettingError: as for `ledger_key`.
    """
    return _ed25519(folder / "officer.pem", passphrase, simulated)


def transport_key(folder: Path, passphrase: bytes | None, *, simulated: bool = False) -> EllipticCurvePrivateKey:
    """Return the key of the silo's node.

    Raises:
        SettingError: as for `ledger_key`.
    """
    path = folder / "transport.pem"
    key = _read_key(path, passphrase, simulated)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise SettingError(f"{path} holds no P-384 key; put the silo's own file back from its backup")
    return key


def fingerprint_key(folder: Path) -> bytes:
    """Return the secret of the sketch of units, 32 bytes.

    Raises:
        SettingError: the file is not right.
    """
    secret = read_private(folder / "fingerprint.key")
    if len(secret) != 32:
        raise SettingError(f"{folder / 'fingerprint.key'} is damaged; put it back from the backup of the keys")
    return secret


def write_pin(folder: Path, pins: Pins, *, durable: bool = True) -> None:
    """Say which ledger is this silo's; once.

    Raises:
        SettingError: there is a pin already.
    """
    value = {"ledger_id": pins.ledger_id, "ledger_key": pins.ledger_key, "dpo_key": pins.dpo_key}
    write_private(folder / "pin.json", dump(value), durable=durable)


def read_pin(folder: Path) -> Pins:
    """Return which ledger is this silo's.

    Raises:
        SettingError: the file is missing or not right.
    """
    path = folder / "pin.json"
    try:
        value = load(read_private(path))
        if value.keys() == {"ledger_id", "ledger_key", "dpo_key"} and all(map(is_hex, value.values())):
            return Pins(**value)
    except (VerificationError, AttributeError):
        pass
    raise SettingError(f"{path} is damaged; put it back from the backup of the keys")


# --- files --------------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Raise unless `folder` is a folder of this user that no other can enter.

    Raises:
        SettingError: it is not; the sentence says how to repair it.
    """
    try:
        facts = folder.lstat()
    except OSError as error:
        raise SettingError(f"{folder} cannot be read ({error.strerror}); make it with fedsilo-silo init") from None
    if not stat.S_ISDIR(facts.st_mode):
        raise SettingError(f"{folder} is not a folder (a link is not followed); keep the keys in a folder of the silo")
    _check_owner(folder, facts, 0o700)


def read_private(path: Path) -> bytes:
    """Return the bytes of a file that this user alone can read, in a folder that this user alone can enter.

    Raises:
        SettingError: the file is missing, a link, another user's, or open to others.
    """
    check_folder(path.parent)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        how = "it is a link, which is not followed" if path.is_symlink() else error.strerror
        raise SettingError(f"{path} cannot be read ({how}); put it back from the backup of the keys") from None
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise SettingError(f"{path} is no ordinary file; put it back from the backup of the keys")
        _check_owner(path, facts, 0o600)
        return os.read(descriptor, _LARGEST_BYTES)
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a new file of mode 0600, synced if it shall be durable; what is there already stays as it is.

    Raises:
        SettingError: the file is there already, or cannot be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(descriptor)
        os.link(part, path)  # fails where the name is taken, as a rename would not
        if durable:
            sync_folder(path.parent)
    except FileExistsError:
        raise SettingError(f"{path} exists already and is never replaced; use a new folder") from None
    except OSError as error:
        raise SettingError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            part.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_owner(path: Path, facts: os.stat_result, mode: int) -> None:
    if facts.st_uid != os.geteuid():
        raise SettingError(f"{path} belongs to user {facts.st_uid}, not to {os.geteuid()} who runs this; chown it")
    if stat.S_IMODE(facts.st_mode) & ~mode:
        found = stat.S_IMODE(facts.st_mode)
        raise SettingError(f"{path} has mode {found:04o}, so others may reach it; run chmod {mode:04o} {path}")


def _write_key(path: Path, key: _PrivateKey, passphrase: bytes | None, *, durable: bool = True) -> None:
    protection = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection), durable=durable)


def _read_key(path: Path, passphrase: bytes | None, simulated: bool) -> object:
    data = read_private(path)
    if not passphrase and not simulated:
        raise SettingError(f"{path} needs its passphrase; hand it over by a file descriptor, a credential or a prompt")
    try:
        return load_pem_private_key(data, password=passphrase or None)
    except TypeError:  # encrypted and no passphrase given, or the other way round
        how = "is not encrypted" if passphrase else "is encrypted, and no passphrase was given"
        raise SettingError(f"{path} {how}; only a simulated silo has keys without passphrase") from None
    except ValueError:
        raise SettingError(f"{path} cannot be opened: the passphrase is wrong or the file is damaged") from None


def _ed25519(path: Path, passphrase: bytes | None, simulated: bool) -> Ed25519PrivateKey:
    key = _read_key(path, passphrase, simulated)
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingError(f"{path} holds no Ed25519 key; put the silo's own file back from its backup")
    return key
