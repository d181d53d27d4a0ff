"""A silo's check of what its coordinator says of the round before, before it trains the next or takes its leave.

    state/<run>/outcome.json  the last record, which names all before it     given.json  the model that was given last
    state/<run>/fork.jsonl    two records of one round: `fedsilo-verify check` shows it to anybody

Refused is a record that is missing, forged, of another run or round; one that names another answer of this silo than
its ledger does, or leaves it out although the coordinator has acknowledged it; one whose model is not the model of the
request, or that began with another one than this silo was given; one that does not continue the records before.

After two records of one round the silo takes no further part in the run.

Limits: an answer that the coordinator denies to have received cannot be told from one that was late: the log says so.
That silos were told different stories shows when their last records are compared, with each other or the run folder.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from client.ledger import Ledger
from client.silo import Silo, replace_file
from strategies.errors import ProtocolError, VerificationError
from strategies.layout import Vector
from strategies.manifest import Manifest
from strategies.proof.outcomes import SignedOutcome, follows, fork, model_hash, read_outcome
from strategies.study import Study


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a request says of the round before.

    Args:
        text: the record; empty where there is no round before.
        round: the round that it must speak of; 0 for none.
        weights: the model that came with it.
        received: last release that the coordinator says it has; 0 for none.
    """

    text: str
    round: int
    weights: Vector
    received: int


def require_true(told: Told, manifest: Manifest, silo: Silo, ledger: Ledger, study: Study) -> None:
    """Return when what the coordinator says of the round before agrees with what this silo knows; keep it.

    Args:
        told: what the request says.
        manifest: the agreed run.
        silo: who was told.
        ledger: its, open.
        study: the agreed study.

    Raises:
        ProtocolError: it does not; nothing is trained.
    """
    if told.round == 0:
        if told.text:
            raise ProtocolError("the request brings a record of a round before the first")
        return
    try:
        signed = read_outcome(told.text)
    except (VerificationError, UnicodeEncodeError) as error:
        raise ProtocolError(f"the record of round {told.round} does not hold: {error}") from None
    said, about = signed.outcome, (manifest.run, manifest.digest(), told.round)
    if signed.key != manifest.coordinator:
        raise ProtocolError(f"the record of round {told.round} is not signed by the coordinator of this run")
    if (said.run, said.manifest, said.round) != about:
        raise ProtocolError(f"the record is not of round {told.round} of this run")
    _require_one_story(signed, silo)
    if said.after != model_hash(told.weights):
        raise ProtocolError(f"the model that came is not the one that the record of round {said.round} names")
    if said.used and len(said.used) < study.file.cohort.min_silos:
        raise ProtocolError(f"the record of round {said.round} uses fewer answers than cohort.min_silos")
    if not said.arrived.keys() <= {member.silo for member in manifest.roster}:
        raise ProtocolError(f"the record of round {said.round} names a silo that is not in this run")
    _require_own(signed, told.received, silo, ledger, masked=study.masked)
    _put(silo.state(said.run).folder / "outcome.json", signed.text)


def keep_given(silo: Silo, run: str, round: int, weights: Vector) -> None:
    """Note the model that a round was asked with."""
    _put(silo.state(run).folder / "given.json", json.dumps({"round": round, "model": model_hash(weights)}))


def _require_one_story(signed: SignedOutcome, silo: Silo) -> None:
    """Raise where it contradicts the record of before, or the model that this silo was given."""
    said, folder = signed.outcome, silo.state(signed.outcome.run).folder
    path, last = folder / "fork.jsonl", _last(folder)
    if path.exists():
        raise ProtocolError(f"the coordinator has signed two records of one round of this run; both are kept in {path}")
    two = fork([last, signed]) if last is not None else None
    if two is not None:
        replace_file(path, "".join(f"{one.text}\n" for one in two).encode())
        silo.log(logging.ERROR, f"the coordinator has signed two records of round {said.round}: the proof is {path}")
        raise ProtocolError(f"the coordinator has signed two records of round {said.round}; both are kept in {path}")
    if last is not None and said.round < last.outcome.round:
        raise ProtocolError(f"the record of round {said.round} is older than one that was seen")
    if last is not None and said.round == last.outcome.round + 1:
        why = follows(last, signed)
        if why is not None:
            raise ProtocolError(f"the record of round {said.round} does not continue the one before: {why}")
    given = _given(folder)
    if given is not None and given[0] == said.round and given[1] != said.before:
        raise ProtocolError(f"round {said.round} began with another model than the one that this silo was given")


def _require_own(signed: SignedOutcome, received: int, silo: Silo, ledger: Ledger, *, masked: bool) -> None:
    """Raise where it speaks of this silo's answer otherwise than the ledger."""
    said, name = signed.outcome, silo.name
    released = ledger.entry(run=said.run, round=said.round, kind="release")
    own, stated = released.body["sha256"] if released is not None else None, said.arrived.get(name)
    if stated is not None and stated != own:
        raise ProtocolError(f"the record of round {said.round} names an answer that this silo has not given")
    if own is not None and stated is None:
        if received == said.round:
            raise ProtocolError(f"the record of round {said.round} leaves out an answer that was acknowledged")
        silo.log(logging.WARNING, f"run {said.run[:8]} round {said.round}: this silo's answer was late, or left out")
    if stated is not None and said.used and name not in said.used and not masked:  # masked: its own record says so
        raise ProtocolError(f"the record of round {said.round} leaves an answer that arrived out of the model")


def _last(folder: Path) -> SignedOutcome | None:
    """Return the last record that was seen; what a loss of power has left unreadable counts for nothing."""
    try:
        return read_outcome((folder / "outcome.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, VerificationError):
        return None


def _given(folder: Path) -> tuple[int, str] | None:
    """Return the round that was asked last and the hash of its model."""
    try:
        value = json.loads((folder / "given.json").read_bytes())
        return int(value["round"]), str(value["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _put(path: Path, text: str) -> None:
    """Replace a file; it need not survive a loss of power."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
