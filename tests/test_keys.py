"""Laws of the key files: nobody else reads them, none is replaced, and each refusal says how to repair (T32).

Oracles: the operating system's own modes and owners, cryptography's PEM reader, the openssl command.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.keys import (
    Passphrases,
    PublicKeys,
    _write_key,
    fingerprint_key,
    ledger_key,
    make_keys,
    officer_key,
    read_pin,
    transport_key,
    write_pin,
)
from strategies.errors import SettingError
from strategies.proof.chain import Pins
from strategies.proof.entries import public_hex

SILO, OFFICER = b"correct horse", b"battery staple"
WORDS = Passphrases(silo=SILO, officer=OFFICER)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    make_keys(tmp_path / "keys", WORDS)
    return tmp_path / "keys"


def test_three_keys_of_three_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    public = make_keys(folder, WORDS)
    assert public_hex(ledger_key(folder, SILO)) == public.ledger
    assert public_hex(officer_key(folder, OFFICER)) == public.officer != public.ledger
    assert transport_key(folder, SILO).public_key().public_numbers().x == int(public.transport[2:98], 16)
    assert len(fingerprint_key(folder)) == 32
    assert {path.name for path in folder.iterdir()} == {"ledger.pem", "officer.pem", "transport.pem", "fingerprint.key"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
    assert all(path.stat().st_nlink == 1 for path in folder.iterdir())


def test_the_files_are_encrypted_pkcs8(keys: Path) -> None:
    for name in ("ledger.pem", "officer.pem", "transport.pem"):
        assert (keys / name).read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    if shutil.which("openssl"):
        command = ["openssl", "pkey", "-in", str(keys / "ledger.pem"), "-passin", "stdin", "-noout", "-text_pub"]
        done = subprocess.run(command, input=SILO, capture_output=True, check=True)
        digits = "".join(done.stdout.decode().split("pub:")[1].split()).replace(":", "")
        assert digits == public_hex(ledger_key(keys, SILO))


def test_two_silos_share_no_secret(tmp_path: Path) -> None:
    first, second = (make_keys(tmp_path / name, Passphrases(), simulated=True) for name in ("a", "b"))
    assert not set(first.__dict__.values()) & set(second.__dict__.values())
    assert fingerprint_key(tmp_path / "a") != fingerprint_key(tmp_path / "b")


def test_keys_are_never_replaced(keys: Path) -> None:
    before = (keys / "ledger.pem").read_bytes()
    with pytest.raises(SettingError, match=r"ledger\.pem exists already and is never replaced"):
        make_keys(keys, WORDS)
    assert (keys / "ledger.pem").read_bytes() == before
    assert not list(keys.glob(".*"))


@pytest.mark.parametrize(
    "words", [Passphrases(), Passphrases(silo=SILO), Passphrases(officer=OFFICER), Passphrases(silo=b"", officer=b"")]
)
def test_a_real_silo_has_passphrases(words: Passphrases, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="need two passphrases"):
        make_keys(tmp_path / "keys", words)
    assert not (tmp_path / "keys").exists()


def mode(path: str, bits: int) -> Callable[[Path], None]:
    return lambda keys: (keys / path).chmod(bits)


def linked(keys: Path) -> None:
    (keys / "ledger.pem").rename(keys.parent / "elsewhere.pem")
    (keys / "ledger.pem").symlink_to(keys.parent / "elsewhere.pem")


def linked_folder(keys: Path) -> None:
    keys.rename(keys.parent / "elsewhere")
    keys.symlink_to(keys.parent / "elsewhere")


def folder_as_key(keys: Path) -> None:
    (keys / "ledger.pem").unlink()
    (keys / "ledger.pem").mkdir(0o700)


def fifo(keys: Path) -> None:
    (keys / "ledger.pem").unlink()
    os.mkfifo(keys / "ledger.pem", 0o600)


def written(content: bytes) -> Callable[[Path], None]:
    def write(keys: Path) -> None:
        (keys / "ledger.pem").write_bytes(content)

    return write


def other_curve(keys: Path) -> None:
    (keys / "ledger.pem").unlink()
    _write_key(keys / "ledger.pem", generate_private_key(SECP256R1()), SILO)


def unencrypted(keys: Path) -> None:
    (keys / "ledger.pem").unlink()
    _write_key(keys / "ledger.pem", Ed25519PrivateKey.generate(), None)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "key for all": (mode("ledger.pem", 0o644), r"has mode 0644, so others may reach it; run chmod 0600 .*ledger\.pem"),
    "key for the group": (mode("ledger.pem", 0o640), "has mode 0640"),
    "key to run": (mode("ledger.pem", 0o700), "has mode 0700"),
    "folder for all": (mode(".", 0o777), r"has mode 0777, so others may reach it; run chmod 0700 .*keys"),
    "folder to enter": (mode(".", 0o711), "has mode 0711"),
    "a link": (linked, "it is a link, which is not followed"),
    "the folder a link": (linked_folder, "is not a folder"),
    "missing": (lambda keys: (keys / "ledger.pem").unlink(), "put it back from the backup of the keys"),
    "no folder": (lambda keys: shutil.rmtree(keys), "make it with fedsilo-silo init"),
    "a folder": (folder_as_key, "is no ordinary file"),
    "damaged": (
        written(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        "the passphrase is wrong or the file is damaged",
    ),
    "empty": (written(b""), "the passphrase is wrong or the file is damaged"),
    "another kind": (other_curve, "holds no Ed25519 key"),
    "not encrypted": (unencrypted, "is not encrypted; only a simulated silo"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_key_that_is_not_kept_well_is_not_used(what: str, keys: Path) -> None:
    spoil, sentence = BROKEN[what]
    spoil(keys)
    with pytest.raises(SettingError, match=sentence):
        ledger_key(keys, SILO)


def test_a_pipe_under_a_keys_name_does_not_hang(keys: Path) -> None:
    fifo(keys)
    with pytest.raises(SettingError, match="is no ordinary file"):
        ledger_key(keys, SILO)


def test_another_users_key_is_not_used(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(SettingError, match=r"belongs to user .*, not to 4711 who runs this; chown it"):
        ledger_key(keys, SILO)


@pytest.mark.parametrize("word", [b"incorrect mule", OFFICER])
def test_a_wrong_passphrase_says_so_and_nothing_of_itself(word: bytes, keys: Path) -> None:
    with pytest.raises(SettingError, match="the passphrase is wrong") as refused:
        ledger_key(keys, word)
    assert word.decode() not in str(refused.value)
    assert refused.value.__cause__ is None


def test_no_passphrase_is_asked_for_by_name(keys: Path) -> None:
    with pytest.raises(SettingError, match=r"ledger\.pem needs its passphrase"):
        ledger_key(keys, None)
    with pytest.raises(SettingError, match="is encrypted, and no passphrase was given"):
        ledger_key(keys, None, simulated=True)


def test_an_unencrypted_key_serves_a_simulated_silo_alone(tmp_path: Path) -> None:
    public = make_keys(tmp_path / "keys", Passphrases(), simulated=True)
    assert isinstance(public, PublicKeys)
    assert public_hex(ledger_key(tmp_path / "keys", None, simulated=True)) == public.ledger
    with pytest.raises(SettingError, match="needs its passphrase"):
        ledger_key(tmp_path / "keys", None)


def test_the_transport_key_is_on_p384(keys: Path) -> None:
    (keys / "transport.pem").unlink()
    _write_key(keys / "transport.pem", generate_private_key(SECP256R1()), SILO)
    with pytest.raises(SettingError, match="holds no P-384 key"):
        transport_key(keys, SILO)


def test_the_pin_is_written_once(keys: Path) -> None:
    pins = Pins(ledger_id="a" * 64, ledger_key="b" * 64, dpo_key="c" * 64)
    with pytest.raises(SettingError, match=r"pin\.json cannot be read"):
        read_pin(keys)
    write_pin(keys, pins)
    assert read_pin(keys) == pins
    with pytest.raises(SettingError, match="never replaced"):
        write_pin(keys, pins)
    for content in (b"", b"[]", b"{}", b'{"dpo_key":"c","ledger_id":"a","ledger_key":"b"}', b'{"dpo_key": 1}'):
        (keys / "pin.json").write_bytes(content)
        with pytest.raises(SettingError, match=r"pin\.json is damaged"):
            read_pin(keys)


def test_the_fingerprint_key_is_whole(keys: Path) -> None:
    (keys / "fingerprint.key").write_bytes(b"short")
    with pytest.raises(SettingError, match="is damaged"):
        fingerprint_key(keys)
