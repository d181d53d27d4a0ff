"""Checks of any files together: each by its kind, then all against each other.

Guarantees: a file of a kind that is not known here makes the check fail; nothing is concluded from what is not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from strategies.proof.check_heads import check_equivocation, check_list, check_receipts
from strategies.proof.check_ledger import check_ledger, check_statement, compare_statement
from strategies.proof.check_outcomes import check_outcomes
from strategies.proof.check_run import REPORT, check_run
from strategies.proof.findings import Findings
from strategies.proof.trust import Trust
from strategies.statement import SignedStatement

Given = bytes | Mapping[str, bytes]  # a file, or a run folder's files by path


def check(given: Mapping[str, Given], trust: Trust) -> Findings:
    """Check files and run folders.

    Args:
        given: by name.
        trust: whose keys count.
    """
    found, statements, plain = Findings(), dict[str, SignedStatement](), dict[str, bytes]()
    for name, content in given.items():
        if isinstance(content, bytes):
            _check_file(name, content, trust, found, statements, plain)
        else:
            check_run(name, content, trust, found)
    for name, signed in statements.items():
        own = [ledger for ledger in found.ledgers if ledger.chain.pins.ledger_id == signed.statement.ledger_id]
        for ledger in own[:1]:
            compare_statement(name, signed, ledger, found)
        if not own:
            found.note(f"{name}: the ledger's own lines were not given; what it states rests on its signature")
    for name, content in plain.items():
        _cited(name, content, statements, found)
    found.cross_check()
    if not trust.pinned:
        found.note("keys are not pinned: whoever made this file could have signed it anew")
    return found


def _check_file(
    name: str,
    data: bytes,
    trust: Trust,
    found: Findings,
    statements: dict[str, SignedStatement],
    plain: dict[str, bytes],
) -> None:
    kind = kind_of(name, data)
    if kind == "ledger":
        check_ledger(name, data, trust, found)
    elif kind == "receipts":
        check_receipts(name, data, found)
    elif kind == "list":
        check_list(name, data, found)
    elif kind == "outcomes":
        check_outcomes(name, data, found)
    elif kind == "equivocation":
        check_equivocation(name, data, found)
    elif kind == "statement":
        signed = check_statement(name, data, trust, found)
        if signed is not None:
            statements[name] = signed
    elif kind in ("study", "policy"):
        plain[name] = data
    elif kind == "report":
        found.fail(name, "a report is proved by its run folder, which is signed as a whole; give the folder")
    else:
        found.fail(name, "it is of no kind that is known here; nothing is concluded from it")


def kind_of(name: str, data: bytes) -> str | None:
    """Return what a file is, by its form: ledger, receipts, outcomes, list, equivocation, statement, report, study or
    policy."""
    if name.endswith(".toml"):
        return "policy" if name.endswith("policy.toml") else "study"
    value = _json(data)
    if isinstance(value, dict) and value.get("format") == REPORT:
        return "report"
    forms = {
        ("key", "list", "signature"): "list",
        ("equivocation",): "equivocation",
        ("key", "signature", "statement"): "statement",
    }
    if isinstance(value, dict) and tuple(sorted(value)) in forms:
        return forms[tuple(sorted(value))]
    first = _json(data.split(b"\n", 1)[0])
    if not isinstance(first, dict):
        return None
    lines = {("entry", "signatures"): "ledger", ("head", "signature", "witness"): "receipts"}
    lines |= {("key", "outcome", "signature"): "outcomes"}
    return lines.get(tuple(sorted(first)))


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _cited(name: str, data: bytes, statements: Mapping[str, SignedStatement], found: Findings) -> None:
    """A study or policy that is given beside statements or ledgers must be the one that they cite."""
    digest = hashlib.sha256(data).hexdigest()
    cited = {signed.statement.study for signed in statements.values()}
    cited |= {signed.statement.policy for signed in statements.values()}
    cited |= {ledger.chain.policy for ledger in found.ledgers}
    found.require(digest in cited, name, "no statement or ledger that was given cites it")
    found.checked.append(f"{name}: SHA-256 {digest}")
