"""A silo's keys and ledger in a folder, for the tests of the ledger and the processes that they start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.keys import Passphrases, make_keys, officer_key
from client.ledger import Durability, Ledger, Place
from strategies.privacy.dataroot import DataRoot
from strategies.privacy.events import Event, Gaussian

RUN = "0" * 32
ROOT = DataRoot(name="records", unit="record", epsilon=8.0, delta=1e-5)
COST: tuple[Event, ...] = (Gaussian(noise_multiplier=2.0, sampling_rate=0.5, steps=5),)
GRANTS = ROOT.rounds_that_fit((), COST, 100)
WORDS = Passphrases(silo=b"silo", officer=b"officer")


def place_in(folder: Path, durability: Durability = "process") -> Place:
    """Where the ledger of a folder is; the tests' own disk may be any file system."""
    word = None if durability == "process" else WORDS.silo
    return Place(
        path=folder / "ledger.db", keys=folder / "keys", durability=durability, passphrase=word, allow_volatile=True
    )


def officer_of(place: Place) -> Ed25519PrivateKey:
    """The officer's key."""
    simulated = place.durability == "process"
    return officer_key(place.keys, None if simulated else WORDS.officer, simulated=simulated)


def made(folder: Path, durability: Durability = "process", roots: Sequence[DataRoot] = (ROOT,)) -> Place:
    """Make keys and ledger and register data roots."""
    place = place_in(folder, durability)
    simulated = durability == "process"
    make_keys(place.keys, Passphrases() if simulated else WORDS, simulated=simulated)
    Ledger.create(place, silo="north", officer=officer_of(place))
    with Ledger.open(place) as ledger:
        for root in roots:
            ledger.register(root, officer=officer_of(place), units=None if simulated else [root.name.encode()])
    return place


@contextmanager
def opened(place: Place, **changes: object) -> Iterator[Ledger]:
    """The ledger, with some of its place changed."""
    with Ledger.open(replace(place, **changes)) as ledger:  # type: ignore[arg-type]
        yield ledger


def reserve(ledger: Ledger, round: int, *, run: str = RUN, root: str = "records", **more: object) -> int:
    """Reserve the usual round."""
    return ledger.reserve(data_root=root, run=run, round=round, events=COST, **more)  # type: ignore[arg-type]


def release(ledger: Ledger, round: int, *, run: str = RUN) -> int:
    """Release the usual round."""
    return ledger.release(data_root="records", run=run, round=round, sha256="ab" * 32)


def steps(ledger: Ledger) -> list[tuple[str, int]]:
    """Kind and round of every entry that belongs to a round."""
    return [(entry.kind, entry.round) for entry in ledger.entries() if entry.run]


def forget() -> None:
    """Forget what this process has verified, as a new process would."""
    from client import ledger_book

    ledger_book._known.clear()
