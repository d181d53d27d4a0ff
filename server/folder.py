"""A run is a folder: study.toml, manifest.json, metrics.jsonl, model.safetensors, checkpoint/, statements/,
report.html, report.json, and signed.json, by which the coordinator signs all of them.

Every file is whole at any time, so a run that is interrupted leaves its finished rounds readable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server import checkpoint
from strategies.base import State
from strategies.errors import RunError
from strategies.layout import Layout
from strategies.manifest import Manifest
from strategies.proof.heads import Equivocation, Receipt
from strategies.proof.seal import NAME, seal
from strategies.report.page import render
from strategies.report.registry import registry_of_run
from strategies.study import Study


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder of one run.

    Args:
        path: where it is.
        key: the coordinator's, by which the folder is sealed with each report; None seals nothing.
    """

    path: Path
    key: Ed25519PrivateKey | None = field(default=None, repr=False)

    @classmethod
    def create(cls, parent: Path, study: Study, key: Ed25519PrivateKey | None = None) -> RunFolder:
        """Make ``<parent>/<study>-<utc time>`` and put the study in it.

        Raises:
            RunError: the folder cannot be made.
        """
        stem = f"{study.file.study.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        try:
            for path in (parent / stem, *(parent / f"{stem}-{number}" for number in range(2, 1000))):
                with suppress(FileExistsError):  # of a run that began in the same second
                    path.mkdir(parents=True)
                    break
            checkpoint.write_whole(path / "study.toml", study.text.encode())
        except OSError as error:
            raise RunError(
                f"the run folder {parent / stem} cannot be made: {error.strerror}; choose another with --out"
            ) from None
        return cls(path=path, key=key)

    def record_manifest(self, manifest: Manifest) -> None:
        """Keep what the silos have agreed on."""
        checkpoint.write_whole(self.path / "manifest.json", manifest.to_json().encode())

    def record_lines(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.jsonl as a whole: counts of a round complete the line of the round before."""
        text = "".join(json.dumps(line) + "\n" for line in lines)
        checkpoint.write_whole(self.path / "metrics.jsonl", text.encode())

    def record_round(
        self, lines: Sequence[Mapping[str, Any]], state: State, manifest: Manifest, layout: Layout, record: str = ""
    ) -> None:
        """Write the lines so far and save the state that the last one speaks of, with what a resumed run needs."""
        self.record_lines(lines)
        checkpoint.save(self.path / "checkpoint", state, manifest, record)
        checkpoint.save_model(self.path / "model.safetensors", layout, state.weights)

    def record_statement(self, silo: str, statement: str, ledger: str) -> None:
        """Keep what a silo states of the run, and the lines of its ledger that prove it."""
        checkpoint.write_whole(self.path / "statements" / f"{silo}.json", statement.encode())
        checkpoint.write_whole(self.path / "statements" / f"{silo}.ledger.jsonl", ledger.encode())

    def record_receipts(self, receipts: Sequence[Receipt]) -> None:
        """Append receipts of silos' heads."""
        with (self.path / "receipts.jsonl").open("ab") as file:
            file.write(b"".join(receipt.to_bytes() + b"\n" for receipt in receipts))

    def record_outcome(self, outcome: str, *, last: bool = False) -> None:
        """Append the signed record of a round.

        Args:
            outcome: its text.
            last: a run is taken up from it: what stands after it was not gone on from.
        """
        path = self.path / "outcomes.jsonl"
        if last:
            lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
            kept = lines[: lines.index(outcome)] if outcome in lines else lines
            checkpoint.write_whole(path, "".join(f"{line}\n" for line in kept).encode())
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{outcome}\n")

    def record_equivocation(self, silo: str, proof: Equivocation) -> None:
        """Keep the proof that a silo's ledger is kept twice."""
        checkpoint.write_whole(self.path / f"equivocation-{silo}.json", proof.to_bytes())

    def keep(self, name: str, data: bytes | None) -> None:
        """Write a file of the folder as a whole, on disk when this returns; None takes it away."""
        if data is None:
            (self.path / name).unlink(missing_ok=True)
        else:
            checkpoint.write_whole(self.path / name, data)

    def record_report(self, facts: Mapping[str, Any], *, page: bool = True) -> None:
        """Write the report as report.json, with `page` also as report.html and registry.yaml, and seal the folder."""
        checkpoint.write_whole(self.path / "report.json", json.dumps(facts, indent=2).encode())
        if page:
            checkpoint.write_whole(self.path / "report.html", render(facts).encode())
            checkpoint.write_whole(self.path / "registry.yaml", registry_of_run(facts).encode())
        if self.key is not None:
            self._seal(facts["run"]["id"], self.key)

    def _seal(self, run: str, key: Ed25519PrivateKey) -> None:
        """Sign the hash of every file of the folder."""
        files = [path for path in self.path.rglob("*") if path.is_file() and path != self.path / NAME]
        digests = {path.relative_to(self.path).as_posix(): _sha256(path) for path in files}
        checkpoint.write_whole(self.path / NAME, seal(run, digests, key))

    def report(self) -> dict[str, Any]:
        """Return the facts of the report."""
        facts: dict[str, Any] = json.loads((self.path / "report.json").read_text(encoding="utf-8"))
        return facts


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
