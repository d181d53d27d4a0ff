"""A silo's change of keys: new ones are made, the old ledger key signs them over, and with the coordinator's answer
they take its place.

    keys/next/   ledger.pem  transport.pem   (mode 0700; there from the request to the answer)

Until the answer is installed the silo works with its old keys; from the coordinator's line of the roster on the gateway
lets in the new ones alone. The answer is pinned first, then comes the ledger's entry, then the files move: a change
that broke off is finished by installing the answer again, and until then no node of the silo is let in.

Guarantees: the ledger, its identity and its budget stay; what the old key has signed holds, as the ledger leads from
one key to the next.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.keys import check_folder, ledger_key, make_next_keys, read_pin, sync_folder, transport_key
from client.silo import Silo
from strategies.proof.entries import public_hex
from strategies.roster import Handover, Member

NEXT = "next"


def own(silo: Silo) -> Member:
    """Return this silo as a roster names it, by the keys of now.

    Raises:
        SettingError: a key is not right.
    """
    return _member(silo, silo.folder / "keys")


def pending(silo: Silo) -> Member | None:
    """Return this silo as a roster will name it once its change of keys is done; None where none was asked for.

    Raises:
        SettingError: a key is not right.
    """
    folder = silo.folder / "keys" / NEXT
    return _member(silo, folder) if (folder / "transport.pem").exists() else None


def ask(silo: Silo) -> Handover:
    """Return the signed request for new keys, which are made once and are on disk when this returns.

    Raises:
        SettingError: a key is not right.
        LedgerError: the ledger is frozen: its key signs nothing.
    """
    keys, plain = silo.folder / "keys", _plain(silo)
    old = ledger_key(keys, silo.passphrase, simulated=plain)
    with silo.ledger() as ledger:
        ledger.require_usable()
    make_next_keys(keys / NEXT, silo.passphrase, simulated=plain)
    wanted = _member(silo, keys / NEXT)
    handover = Handover(
        silo=wanted.silo,
        ledger_id=wanted.ledger_id,
        before=public_hex(old),
        ledger_key=wanted.ledger_key,
        transport_key=wanted.transport_key,
    )
    return handover.signed(old, ledger_key(keys / NEXT, silo.passphrase, simulated=plain))


def take_over(silo: Silo) -> None:
    """Put the new keys in force, while no node runs; a second time goes on where the first broke off.

    Raises:
        SettingError: a key is not right.
        LedgerError: the ledger is frozen.
    """
    keys, plain = silo.folder / "keys", _plain(silo)
    check_folder(keys / NEXT)
    if (keys / NEXT / "ledger.pem").exists():
        new = ledger_key(keys / NEXT, silo.passphrase, simulated=plain)
        with silo.ledger() as ledger:
            if ledger.key_in_force != public_hex(new):
                ledger.rotate(new)
        (keys / NEXT / "ledger.pem").replace(keys / "ledger.pem")
        sync_folder(keys)
    (keys / NEXT / "transport.pem").replace(keys / "transport.pem")
    sync_folder(keys)
    (keys / NEXT).rmdir()


def _member(silo: Silo, folder: Path) -> Member:
    keys, plain = silo.folder / "keys", _plain(silo)
    pin = read_pin(keys)
    moved = not (folder / "ledger.pem").exists()  # of a change that broke off between its two files
    ledger = ledger_key(keys if moved else folder, silo.passphrase, simulated=plain)
    point = transport_key(folder, silo.passphrase, simulated=plain).public_key()
    return Member(
        silo=silo.name,
        ledger_key=public_hex(ledger),
        dpo_key=pin.dpo_key,
        ledger_id=pin.ledger_id,
        transport_key=point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint).hex(),
        first_key=pin.ledger_key,
    )


def _plain(silo: Silo) -> bool:
    return silo.settings.ledger.durability == "process"
