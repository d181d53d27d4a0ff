"""Checks of the coordinator's records of rounds, alone and against the silos' ledgers of a run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from strategies.errors import VerificationError
from strategies.manifest import Manifest
from strategies.proof.entries import read
from strategies.proof.findings import Findings, Ledger
from strategies.proof.outcomes import SignedOutcome, follows, read_outcome


def check_outcomes(file: str, data: bytes, found: Findings) -> list[SignedOutcome]:
    """Check a file of records, one a line, of rounds that follow each other; return those that hold."""
    records: list[SignedOutcome] = []
    try:
        for number, line in enumerate(data.decode().splitlines(), 1):
            try:
                records.append(read_outcome(line))
            except VerificationError as error:
                raise VerificationError(f"line {number}: {error}") from None
    except (VerificationError, UnicodeDecodeError) as error:
        found.fail(file, str(error))
    for before, after in pairwise(records):
        if after.outcome.round == before.outcome.round + 1:
            why = follows(before, after)
            found.require(why is None, file, f"the record of round {after.outcome.round}: {why}")
    found.outcomes += [(file, record) for record in records]
    found.checked.append(f"{file}: {len(records)} records of rounds, signed")
    return records


def check_run_outcomes(
    file: str, data: bytes, manifest: Manifest, ledgers: Mapping[str, Ledger], found: Findings
) -> list[SignedOutcome]:
    """Check the records of a run folder: one a round from the first on, each answer as its silo's ledger has it."""
    records = check_outcomes(file, data, found)
    rounds = [record.outcome.round for record in records]
    found.require(rounds == list(range(1, len(rounds) + 1)), file, "its records are not of one round after the other")
    released = {silo: _releases(ledger, manifest.run) for silo, ledger in ledgers.items()}
    for record in records:
        said, what = record.outcome, f"the record of round {record.outcome.round}"
        own = (record.key, said.run, said.manifest) == (manifest.coordinator, manifest.run, manifest.digest())
        found.require(own, file, f"{what} is of another run, agreement or coordinator")
        for silo, digest in said.arrived.items():
            if silo in released:
                sentence = f"{what} names another answer of {silo} than its ledger"
                found.require(released[silo].get(said.round) == digest, file, sentence)
    return records


def _releases(ledger: Ledger, run: str) -> dict[int, str]:
    entries = [read(line).entry for line in ledger.lines]
    return {entry.round: entry.body["sha256"] for entry in entries if entry.kind == "release" and entry.run == run}
