"""The seal of a run folder: the SHA-256 of every file in it, signed by the coordinator's key.

`signed.json` names all files of the folder, so that one that was changed, added or taken away is seen. A folder that
somebody has sealed anew is told by the key alone, which a reader must know from elsewhere (the roster, a pins file).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.errors import VerificationError
from strategies.proof.canonical import dump, load
from strategies.proof.entries import is_hex, public_hex, signed_by

FORMAT = "fedsilo-run/1"
NAME = "signed.json"
_DOMAIN = b"fedsilo/run/1\0"


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What the coordinator has signed of a run folder.

    Args:
        run: identity of the run.
        files: SHA-256 by path within the folder.
        key: the coordinator's public key, 64 hex digits.
    """

    run: str
    files: Mapping[str, str]
    key: str

    def problem(self, files: Mapping[str, bytes]) -> str | None:
        """Return what of a folder is not as it was signed: the first file in order, or None."""
        for name in sorted(self.files.keys() | files.keys()):
            if name not in files:
                return f"{name} is missing"
            if name not in self.files:
                return f"{name} is not among the files that were signed"
            if hashlib.sha256(files[name]).hexdigest() != self.files[name]:
                return f"{name} is not as it was signed"
        return None


def seal(run: str, digests: Mapping[str, str], key: Ed25519PrivateKey) -> bytes:
    """Return the bytes of `signed.json`.

    Args:
        run: identity of the run.
        digests: SHA-256 by path within the folder, without the seal itself.
        key: the coordinator's.
    """
    value = {"format": FORMAT, "run": run, "files": dict(digests)}
    return dump({"sealed": value, "key": public_hex(key), "signature": key.sign(_DOMAIN + dump(value)).hex()})


def read_seal(data: bytes) -> Seal:
    """Read a seal and check its signature.

    Raises:
        VerificationError: it is none, or its signature does not hold.
    """
    value = load(data)
    if not (isinstance(value, dict) and value.keys() == {"sealed", "key", "signature"}):
        raise VerificationError("the file is no seal of a run folder")
    sealed, key, signature = value["sealed"], value["key"], value["signature"]
    if not (isinstance(sealed, dict) and sealed.keys() == {"format", "run", "files"} and sealed["format"] == FORMAT):
        raise VerificationError("the file is no seal of a run folder of a known form")
    files = sealed["files"]
    sound = isinstance(files, dict) and all(map(is_hex, files.values())) and is_hex(sealed["run"], 32)
    if not (sound and is_hex(key) and is_hex(signature, 128)):
        raise VerificationError("the seal of the run folder has a value that it cannot have")
    if not signed_by(signature, key, _DOMAIN + dump(sealed)):
        raise VerificationError("the seal of the run folder is not signed by the key that it names")
    return Seal(run=sealed["run"], files=files, key=key)
