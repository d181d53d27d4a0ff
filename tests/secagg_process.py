"""A silo of secure aggregation in a process of its own, for its tests: messages on standard input, replies on output.

    python secagg_process.py FOLDER

FOLDER holds `silo.json` (name, key, members, set-up) and the rows in SQLite; all of a step is one transaction.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.secagg.errors import Code, SecaggError, notice
from strategies.secagg.rows import Change
from strategies.secagg.setup import Floors, Setup
from strategies.secagg.silo import SiloSession


class Rows:
    """The rows of one silo on disk."""

    def __init__(self, path: Path) -> None:
        self.base = sqlite3.connect(path, isolation_level=None)
        self.base.execute("create table if not exists rows (key text primary key, value blob not null)")

    def read(self, key: str) -> bytes | None:
        found = self.base.execute("select value from rows where key = ?", (key,)).fetchone()
        return None if found is None else bytes(found[0])

    def apply(self, changes: Iterable[Change]) -> bool:
        self.base.execute("begin immediate")
        for change in changes:
            if self.read(change.key) != change.expected:
                self.base.execute("rollback")
                return False
            if change.new is None:
                self.base.execute("delete from rows where key = ?", (change.key,))
            else:
                self.base.execute("replace into rows values (?, ?)", (change.key, change.new))
        self.base.execute("commit")
        return True


def answer(session: SiloSession, rows: Rows, verb: str, request: bytes, update: np.ndarray) -> bytes:
    if verb == "upload":
        claim = session.claim(request, model=bytes([1] * 32), config=bytes([2] * 32))
        if claim.resend:
            return rows.read(f"stored/{claim.t}") or b""
        if not rows.apply(claim.changes):
            return notice(Code.BURNT)
        step = session.mask(claim, (update, np.zeros(1)))
        stored = Change(key=f"stored/{claim.t}", expected=None, new=bytes(step.reply))
        return bytes(step.reply) if rows.apply((*step.changes, stored)) else notice(Code.BURNT)
    other = {"join": session.join, "unmask": session.unmask, "close": session.close}[verb](request)
    return other.reply if rows.apply(other.changes) else notice(Code.STATE)


def main(folder: Path) -> None:
    told = json.loads((folder / "silo.json").read_text(encoding="utf-8"))
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(told["key"]))
    rows = Rows(folder / "rows.db")
    session = SiloSession(
        name=told["name"],
        sign=key.sign,
        members={name: bytes.fromhex(member) for name, member in told["members"].items()},
        expected=Setup.from_bytes(told["setup"].encode()),
        floors=Floors(),
        read=rows.read,
    )
    for line in sys.stdin:
        verb, request = line.split()
        try:
            reply = answer(session, rows, verb, bytes.fromhex(request[1:]), np.array(told["update"]))
        except SecaggError as error:
            reply = notice(error.code)
        print("=" + reply.hex(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
