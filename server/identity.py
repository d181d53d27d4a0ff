"""The coordinator's own key (Ed25519): it signs the lists of heads, its receipts and the run folders.

    <folder>/key.pem (0600)  <folder>/pins.json (public, for those who check)

The folder stands beside the runs; a simulation has one, too. It protects no record: whoever steals the key can sign run
folders in the coordinator's name, and nothing of a silo.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from strategies.errors import SettingError
from strategies.proof.canonical import dump
from strategies.proof.entries import public_hex

FOLDER = "coordinator"  # within the folder that holds the runs
_LARGEST_BYTES = 65536


def coordinator_key(folder: Path) -> Ed25519PrivateKey:
    """Return the coordinator's private key, made when there is none yet.

    Raises:
        SettingError: the key cannot be made or read, or others may read it.
    """
    path = folder / "key.pem"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            facts, data = os.fstat(descriptor), os.read(descriptor, _LARGEST_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SettingError(f"the coordinator's key {path} cannot be had ({error.strerror})") from None
    if stat.S_IMODE(facts.st_mode) & 0o077 or facts.st_uid != os.geteuid():
        raise SettingError(f"{path} may be read by others, or is another user's; chown it and run chmod 0600 {path}")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingError(f"{path} holds no Ed25519 key; put the coordinator's own file back from its backup")
    return key


def _make(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    part = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(descriptor)
    try:
        os.link(part, path)  # the first of two processes wins
        path.with_name("pins.json").write_bytes(dump({"coordinator": public_hex(key), "silos": []}))
    except FileExistsError:
        pass
    finally:
        part.unlink()
