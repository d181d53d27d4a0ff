"""Checks of what witnesses keep: receipts, lists of heads, and proofs that a ledger is kept twice."""

from __future__ import annotations

from strategies.errors import VerificationError
from strategies.proof.canonical import load
from strategies.proof.findings import Findings
from strategies.proof.heads import Receipt, SignedHead, equivocation
from strategies.proof.lists import read_list
from strategies.proof.verdict import lines_of


def check_receipts(file: str, data: bytes, found: Findings) -> list[Receipt]:
    """Check a file of receipts, one a line; return those that hold."""
    receipts = []
    try:
        for number, line in enumerate(lines_of(data), 1):
            try:
                receipts.append(Receipt.from_bytes(line))
            except VerificationError as error:
                raise VerificationError(f"line {number}: {error}") from None
    except VerificationError as error:
        found.fail(file, str(error))
    found.heads += [(file, receipt.head) for receipt in receipts]
    found.checked.append(f"{file}: {len(receipts)} receipts, both signatures of each hold")
    return receipts


def check_list(file: str, data: bytes, found: Findings) -> None:
    """Check a signed list of heads, as silos keep the last one."""
    try:
        heads = read_list(data.decode())
    except (VerificationError, UnicodeDecodeError) as error:
        found.fail(file, str(error))
        return
    found.heads += [(file, head) for head in heads.heads.values()]
    found.checked.append(f"{file}: heads of {len(heads.heads)} ledgers, all signatures hold")


def check_equivocation(file: str, data: bytes, found: Findings) -> None:
    """Check a proof that somebody keeps two ledgers under one name; a proof that holds is a failure of that ledger."""
    try:
        value = load(data)
        pair = value["equivocation"]
        first, second = (SignedHead.from_value(one) for one in pair)
    except (VerificationError, TypeError, ValueError, KeyError) as error:
        found.fail(file, f"it is no pair of heads ({error})")
        return
    if equivocation(first, second) is None or first.key != second.key:
        found.fail(file, "the two heads do not contradict each other, or are signed by different keys")
        return
    found.heads += [(f"{file} (first)", first), (f"{file} (second)", second)]
    found.checked.append(f"{file}: a proof that ledger {first.head.ledger_id[:12]} is kept twice")
