"""Every error of Fedsilo, in one tree.

    FedsiloError                 exit code   who reads it
    ├── SettingError (ValueError)    2       whoever wrote the setting: name, value, what is allowed, remedy
    │   └── StudyError               2       all problems of one study file at once, each with its line
    ├── DataError                    2       the silo alone: may name a row or a file, never travels
    ├── Refusal                      3       both sides: a code from a fixed list, no text on the wire
    ├── ProtocolError                1       a peer sent what the protocol does not allow
    ├── AccountingError              1       a privacy number cannot be had; nothing is trained (fail closed)
    ├── RunError                     1       the run cannot go on
    ├── LedgerError                  1       the silo's ledger is frozen, damaged or cannot be written; nothing leaves
    ├── VerificationError            4       a signed record does not hold: chain, signature, key or form
    └── NotBuiltError                1       a command whose part of the system is not there yet

Guarantees: a `Refusal` carries nothing but its code to the other side, so no error text leaves a silo.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any


class FedsiloError(Exception):
    """Base of all errors that are shown as one sentence and no traceback."""

    exit_code = 1


class SettingError(FedsiloError, ValueError):
    """A setting has a value that is not allowed; the sentence names the setting, the value and the remedy."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong in a study file."""

    sentence: str
    line: int | None = None

    def __str__(self) -> str:
        return self.sentence if self.line is None else f"line {self.line}: {self.sentence}"


class StudyError(SettingError):
    """A study file is not valid; carries every problem that was found, in the order of the file."""

    def __init__(self, problems: Iterable[Problem], *, source: str = "study.toml") -> None:
        self.problems = tuple(sorted(problems, key=lambda p: p.line or 0))
        self.source = source
        super().__init__("\n".join(f"{source}, {p}" if p.line else f"{source}: {p}" for p in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:  # it crosses processes
        return partial(StudyError, source=self.source), (self.problems,)


class DataError(FedsiloError):
    """The records of a silo cannot be used; the sentence may name a row, so it stays inside the silo."""

    exit_code = 2


class RefusalCode(StrEnum):
    """Why a silo does not take part; the only thing about a refusal that leaves the silo."""

    POLICY = "policy"  # the silo's policy does not allow this study
    APPROVAL = "approval"  # nobody at the silo has approved this study
    BUDGET = "budget"  # the study does not fit into what is left of the privacy budget
    LEDGER = "ledger"  # the silo's ledger is frozen, damaged or cannot be written
    DATA = "data"  # the silo's records do not fit the study's schema, or cannot be read
    STUDY = "study"  # the study itself is not valid here, or is not the one that was agreed
    PROTOCOL = "protocol"  # the request does not follow the protocol (wrong run, round, layout, digest)
    INTERNAL = "internal"  # anything else; the silo's own log says what


class Refusal(FedsiloError):
    """A silo says no.

    Args:
        code: what the other side is told.
        reason: a sentence for the silo's own log and terminal; it never leaves the silo.
    """

    exit_code = 3

    def __init__(self, code: RefusalCode, reason: str) -> None:
        self.code = code
        super().__init__(reason)

    def __reduce__(self) -> tuple[Any, ...]:  # it crosses processes
        return Refusal, (self.code, str(self))


class ProtocolError(FedsiloError):
    """A peer's message does not follow the protocol."""


class AccountingError(FedsiloError):
    """A privacy loss cannot be computed, or is not a finite number; no release may rest on it."""


class RunError(FedsiloError):
    """A run cannot start or cannot go on."""


class LedgerError(FedsiloError):
    """A silo's ledger is frozen, damaged or cannot be written; nothing is released until it has been verified."""


class VerificationError(FedsiloError):
    """A signed record does not hold: its form, its place in the chain, its signature or its key."""

    exit_code = 4


class NotBuiltError(FedsiloError):
    """A command that the interface names and this version does not contain yet."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``did you mean X?`` for the allowed name that looks most like `name`, or all of them."""
    names = sorted(allowed)
    if not names:
        return "there is none"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"allowed are {', '.join(names)}"
