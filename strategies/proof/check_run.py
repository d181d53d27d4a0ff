"""Checks of a run folder: seal, agreement, statements with their ledgers, receipts, report and lines against them.

The report states upper bounds: what the coordinator asked for. A silo's ledger may hold less (a request was lost),
never more.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strategies.errors import FedsiloError, VerificationError
from strategies.manifest import Manifest
from strategies.privacy.accountant import epsilon
from strategies.privacy.dataroot import covers
from strategies.privacy.events import Event, from_json, merge
from strategies.proof.check_heads import check_equivocation, check_receipts
from strategies.proof.check_ledger import check_ledger, check_statement, compare_statement
from strategies.proof.check_outcomes import check_run_outcomes
from strategies.proof.entries import read_events
from strategies.proof.extract import entries
from strategies.proof.findings import ABSOLUTE, RELATIVE, Findings, Ledger
from strategies.proof.seal import NAME, read_seal
from strategies.proof.trust import Trust
from strategies.statement import SignedStatement

_NEEDED = (NAME, "study.toml", "manifest.json", "report.json")
_READ = (*_NEEDED, "metrics.jsonl", "receipts.jsonl", "outcomes.jsonl")
REPORT = "fedsilo-report/1"


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A folder's files, and what was read of them."""

    folder: str
    files: Mapping[str, bytes]
    manifest: Manifest
    report: Mapping[str, Any]

    def name(self, file: str) -> str:
        return f"{self.folder}/{file}"


def check_run(folder: str, files: Mapping[str, bytes], trust: Trust, found: Findings) -> None:
    """Check a whole run folder.

    Args:
        folder: its name, for sentences.
        files: bytes by path within it.
        trust: whose keys count.
        found: what is found.
    """
    for needed in _NEEDED:
        if not found.require(needed in files, f"{folder}/{needed}", "it is missing, so the folder proves nothing"):
            return
    try:
        sealed = read_seal(files[NAME])
        manifest = Manifest.from_json(files["manifest.json"].decode())
        report = read_report(files["report.json"])
    except (FedsiloError, UnicodeDecodeError) as error:
        found.fail(folder, str(error))
        return
    problem = sealed.problem({name: data for name, data in files.items() if name != NAME})
    found.require(problem is None, folder, problem or "")
    if trust.pinned:
        known = sealed.key in trust.coordinators
        found.require(known, f"{folder}/{NAME}", "it is signed by a key that is not the pinned coordinator's")
    holds = (sealed.run, sealed.key) == (manifest.run, manifest.coordinator)
    found.require(holds, f"{folder}/manifest.json", "it names another run or coordinator than the seal")
    digest = hashlib.sha256(files["study.toml"]).hexdigest()
    found.require(digest == manifest.study, f"{folder}/study.toml", "it is not the study that the silos agreed on")
    run = _Run(folder=folder, files=files, manifest=manifest, report=report)
    found.checked.append(f"{folder}: run {manifest.run}, {len(files)} files, signed by coordinator {sealed.key[:12]}")
    _statements(run, trust, found)
    _report(run, found)
    for name in (name for name in files if name.startswith("equivocation-")):
        check_equivocation(run.name(name), files[name], found)
    ours = [name for name in files if name in _READ or name.startswith(("statements/", "equivocation-"))]
    rest = sorted(set(files) - set(ours))
    if rest:
        found.note(f"{folder}: {', '.join(rest)}: bytes as signed, content not read")


def read_report(data: bytes) -> dict[str, Any]:
    """Read report.json.

    Raises:
        VerificationError: it is no report of a known form.
    """
    try:
        value = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise VerificationError("the report cannot be read") from None
    if not (isinstance(value, dict) and value.get("format") == REPORT):
        raise VerificationError("the file is no report of a known form")
    return value


def _no_number(text: str) -> Any:
    raise ValueError(text)


# --- statements ---------------------------------------------------------------------------------------------


def _statements(run: _Run, trust: Trust, found: Findings) -> None:
    members = {member.silo: member for member in run.manifest.roster}
    named = {f"statements/{silo}{end}" for silo in members for end in (".json", ".ledger.jsonl")}
    for name in sorted(name for name in run.files if name.startswith("statements/") and name not in named):
        found.fail(run.name(name), "it is of no silo of this run")
    signed: dict[str, SignedStatement] = {}
    ledgers: dict[str, Ledger] = {}
    for silo, member in members.items():
        name, lines = f"statements/{silo}.json", f"statements/{silo}.ledger.jsonl"
        if name not in run.files:
            found.note(
                f"{run.folder}: silo {silo} has made no statement; its epsilon is what the coordinator asked for"
            )
            continue
        statement = check_statement(run.name(name), run.files[name], trust, found)
        if statement is None:
            continue
        signed[silo] = statement
        stated = statement.statement
        agreed = (silo, run.manifest.run, run.manifest.study, run.manifest.digest())
        holds = (stated.silo, stated.run, stated.study, stated.manifest) == agreed
        found.require(holds, run.name(name), "it is of another silo, run, study or agreement")
        found.require(
            stated.ledger_id == member.ledger_id, run.name(name), "its ledger is not the one that was agreed on"
        )
        if not found.require(lines in run.files, run.name(lines), "the ledger's lines are missing"):
            continue
        ledger = check_ledger(run.name(lines), run.files[lines], trust, found, whole=False)
        if ledger is None:
            continue
        ledgers[silo] = ledger
        found.require(ledger.chain.hash == stated.hash, ledger.file, "it does not end where the statement speaks of")
        found.require(member.ledger_key in ledger.chain.keys, ledger.file, "its key is not the one that was agreed on")
        compare_statement(run.name(name), statement, ledger, found)
        _agreement(run, ledger, found)
    _receipts(run, ledgers, found)
    _outcomes(run, ledgers, found)
    _spent_to_date(run, signed, found)
    _silos_of_the_report(run, signed, found)
    _lines(run, ledgers, found)


def _agreement(run: _Run, ledger: Ledger, found: Findings) -> None:
    """Every reservation of this run cites the agreement of the folder."""
    for entry in entries(ledger.lines):
        if entry.kind == "reserve" and entry.run == run.manifest.run:
            holds = entry.manifest == run.manifest.digest()
            found.require(holds, ledger.file, "the reservation cites another agreement", entry.seq)


def _receipts(run: _Run, ledgers: Mapping[str, Ledger], found: Findings) -> None:
    if "receipts.jsonl" not in run.files:
        found.note(f"{run.folder}: no witness has kept a head of this run")
        return
    witnesses = {run.manifest.coordinator, *(member.ledger_key for member in run.manifest.roster)}
    own = {member.ledger_id for member in run.manifest.roster}
    file = run.name("receipts.jsonl")
    for receipt in check_receipts(file, run.files["receipts.jsonl"], found):
        head = receipt.head.head
        found.require(receipt.witness in witnesses, file, "a receipt is signed by nobody of this run", head.seq)
        found.require(head.ledger_id in own, file, "a receipt is of a ledger that is not in this run", head.seq)
    for ledger in ledgers.values():
        late = [
            head.head.seq
            for where, head in found.heads
            if where == file and head.head.ledger_id == ledger.chain.pins.ledger_id and head.head.seq > ledger.chain.seq
        ]
        for seq in late[:1]:
            found.fail(ledger.file, f"a witness has kept a head at position {seq}; the ledger ends before it", seq)


def _outcomes(run: _Run, ledgers: Mapping[str, Ledger], found: Findings) -> None:
    """The records lead from one model to the next, and in a complete run to the model of the report."""
    file, about = run.name("outcomes.jsonl"), run.report.get("run", {})
    records = check_run_outcomes(file, run.files.get("outcomes.jsonl", b""), run.manifest, ledgers, found)
    if about.get("status") == "complete" and run.report.get("rounds"):
        whole = len(records) == len(run.report["rounds"])
        if found.require(whole, file, "it has not one record for each round of the report"):
            same = records[-1].outcome.after == about.get("model_out")
            found.require(same, file, "the last record ends with another model than the report")


def _spent_to_date(run: _Run, signed: Mapping[str, SignedStatement], found: Findings) -> None:
    """No statement says less than a head of its ledger had said before, and at one position both say the same."""
    heads = [head.head for where, head in found.heads if where == run.name("receipts.jsonl")]
    for silo, statement in signed.items():
        stated, file = statement.statement, run.name(f"statements/{silo}.json")
        for head in heads:
            if head.ledger_id != stated.ledger_id or head.seq > stated.seq:
                continue
            events = head.spent.get(stated.data_root, ())
            holds = covers(stated.to_date, events) and (head.seq < stated.seq or events == stated.to_date)
            sentence = f"it states another sum to date than the ledger's head at position {head.seq}, which it signed"
            if not found.require(holds, file, sentence, head.seq):
                break


# --- report and lines ---------------------------------------------------------------------------------------


def _silos_of_the_report(run: _Run, signed: Mapping[str, SignedStatement], found: Findings) -> None:
    file = run.name("report.json")
    try:
        rows = {str(row["name"]): row for row in run.report["silos"]}
        names = {member.silo for member in run.manifest.roster}
        found.require(rows.keys() == names, file, "it has other silos than the agreement")
        for silo, row in rows.items():
            statement = signed[silo].statement if silo in signed else None
            events = tuple(from_json(value) for value in row["events"])
            found.loss(
                file, f"the epsilon of {silo}", row["epsilon"], events, row["delta"], accountant=_accountant(run)
            )
            found.loss(file, f"the RDP epsilon of {silo}", row["epsilon_rdp"], events, row["delta"], accountant="rdp")
            plain = row["epsilon_without_amplification"]
            what = f"the epsilon without amplification of {silo}"
            found.loss(file, what, plain, events, row["delta"], amplification=False)
            facts = json.loads(json.dumps(statement.facts())) if statement else None
            found.require(row["statement"] == facts, file, f"it shows another statement of {silo} than the signed one")
            if statement is not None:
                holds = covers(events, statement.events) and row["delta"] == statement.delta
                sentence = f"the ledger of {silo} has more of this run than the coordinator says that it asked for"
                found.require(holds, file, sentence)
                found.require(
                    row["unit"] == statement.unit, file, f"it names another unit of {silo} than the statement"
                )
    except (FedsiloError, KeyError, TypeError, AttributeError, ValueError) as error:
        found.fail(file, f"its silos cannot be read ({type(error).__name__})")


def _accountant(run: _Run) -> str:
    return str(run.report["privacy"]["accountant"])


def _report(run: _Run, found: Findings) -> None:
    file, manifest = run.name("report.json"), run.manifest
    try:
        about = run.report["run"]
        for key, value in (
            ("id", manifest.run),
            ("study_digest", manifest.study),
            ("manifest_digest", manifest.digest()),
            ("code", manifest.code),
        ):
            found.require(about[key] == value, file, f"run.{key} is not that of the agreement")
        if about["status"] != "complete":
            found.note(f"{run.folder}: the run was interrupted; the silos have made no statements of it")
    except (KeyError, TypeError) as error:
        found.fail(file, f"it cannot be read ({type(error).__name__})")


def _lines(run: _Run, ledgers: Mapping[str, Ledger], found: Findings) -> None:
    """The lines are those of the report, and no epsilon in them is below what the ledger had reserved by then."""
    file = run.name("metrics.jsonl")
    try:
        lines = [
            json.loads(line, parse_constant=_no_number) for line in run.files.get("metrics.jsonl", b"").splitlines()
        ]
        found.require(lines == run.report["rounds"], file, "its lines are not those of the report")
        if not lines:
            return
        rows, last = {row["name"]: row for row in run.report["silos"]}, lines[-1]["epsilon"]
        whole = run.report["run"]["status"] == "complete"  # else the report may count a round that has no line
        for silo, value in last.items():
            holds = value == rows[silo]["epsilon"] if whole else value <= rows[silo]["epsilon"]
            found.require(holds, file, f"the last line has another epsilon of {silo}")
        for silo, ledger in ledgers.items():
            events = _by_round(ledger, run.manifest.run)
            for line in lines:
                # the counts of the end stand in the last line, as a round of their own after it
                known = merge(e for n, es in events.items() if n <= line["round"] or line is lines[-1] for e in es)
                least = epsilon(known, rows[silo]["delta"], accountant=_accountant(run))  # type: ignore[arg-type]
                if known and not _at_least(line["epsilon"].get(silo, 0.0), least):
                    sentence = f"line {line['round']} states less of {silo} than its ledger had reserved: {least}"
                    found.fail(file, sentence)
                    break
    except (FedsiloError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        found.fail(file, f"its lines cannot be read ({type(error).__name__})")


def _by_round(ledger: Ledger, run: str) -> dict[int, tuple[Event, ...]]:
    own = (entry for entry in entries(ledger.lines) if entry.kind == "reserve" and entry.run == run)
    return {entry.round: read_events(entry.body["events"]) for entry in own}


def _at_least(stated: float | None, least: float) -> bool:
    if stated is None or not math.isfinite(least):
        return stated is None
    return stated >= least - max(ABSOLUTE, RELATIVE * least)
