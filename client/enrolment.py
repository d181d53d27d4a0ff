"""What a silo has pinned of its coordinator, and the roster that it knows.

    coordinator/answer.json  coordinator/roster.jsonl      (folder mode 0700)

The answer is as its two readers have compared it, and is replaced by another comparison alone. The roster is the
answer's, or a longer one that the coordinator's key has signed since; it never gets shorter.

Guarantees: `require_enrolled` lets no manifest through that names a silo, a key or a ledger beside the roster.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from client.approval import approved_roster
from client.keys import check_folder, read_pin, read_private, write_private
from client.silo import Silo, replace_file
from strategies.enrolment import Answer, read_answer
from strategies.errors import ProtocolError, SettingError, VerificationError
from strategies.manifest import Manifest
from strategies.roster import Member, Roster, read_roster, roster_until
from strategies.study import Study

FOLDER = "coordinator"


@dataclass(frozen=True, kw_only=True)
class Enrolment:
    """A silo's side of the consortium.

    Args:
        folder: where it is kept.
        answer: what was pinned.
        roster: as new as it is known here.
        member: this silo in it.
    """

    folder: Path
    answer: Answer
    roster: Roster
    member: Member

    def known(self) -> frozenset[str]:
        """Return the hashes of this roster and of all that it has grown from."""
        return frozenset(hashlib.sha256(line).hexdigest() for line in self.roster.text.split(b"\n")[:-1])

    def learn(self, text: bytes) -> Enrolment:
        """Return the enrolment with a roster that the coordinator hands out, kept if it is longer.

        Raises:
            VerificationError: it does not continue the one that is known, or lacks this silo with its keys.
        """
        roster = read_roster(text, coordinator=self.answer.coordinator)
        if not roster.text.startswith(self.roster.text):
            if self.roster.text.startswith(roster.text):
                return self  # older, and true as far as it goes
            raise VerificationError("the roster is not a continuation of the one that is known here")
        found = roster.members.get(self.member.silo)
        if found != self.member:
            same = found is not None and found.ledger_id == self.member.ledger_id
            how = "has other keys in the roster by now" if same else "is not in the coordinator's roster any more"
            raise VerificationError(f"silo '{self.member.silo}' {how}")
        if roster.seq > self.roster.seq:
            replace_file(self.folder / "roster.jsonl", roster.text)
        return Enrolment(folder=self.folder, answer=self.answer, roster=roster, member=self.member)


def install(silo: Silo, answer: Answer, data: bytes, member: Member) -> Enrolment:
    """Pin an answer that was compared; an answer to a later request replaces the one before.

    Args:
        silo: whose.
        answer: as read.
        data: its bytes.
        member: this silo's own public keys.

    Raises:
        SettingError: the answer's roster does not hold this silo with its keys.
        VerificationError: it is not a continuation of what was pinned.
    """
    roster = answer.members()
    if roster.members.get(member.silo) != member:
        raise SettingError(f"the answer's roster does not hold silo '{member.silo}' with its keys; ask for it again")
    folder = silo.folder / FOLDER
    if (folder / "answer.json").exists():
        known = enrolment(silo.folder)
        if known.answer.coordinator != answer.coordinator:
            raise SettingError(f"{folder} pins another coordinator; move the folder away to change the coordinator")
        replace(known, member=member).learn(answer.roster.encode())  # whose keys may be new
        replace_file(folder / "answer.json", data)
    else:
        folder.mkdir(mode=0o700, exist_ok=True)
        check_folder(folder)
        write_private(folder / "answer.json", data)
        replace_file(folder / "roster.jsonl", answer.roster.encode())
    return enrolment(silo.folder)


def enrolment(silo: Path) -> Enrolment:
    """Read what a silo has pinned.

    Args:
        silo: its folder.

    Raises:
        SettingError: it is enrolled nowhere, or a file is open to others.
        VerificationError: a file does not hold.
    """
    folder = silo / FOLDER
    if not (folder / "answer.json").exists():
        raise SettingError(f"{silo} is not enrolled; run fedsilo-silo enrol, and then with --install ANSWER")
    answer = read_answer(read_private(folder / "answer.json"))
    roster = read_roster((folder / "roster.jsonl").read_bytes(), coordinator=answer.coordinator)
    if not roster.text.startswith(answer.roster.encode()):
        raise VerificationError(f"{folder / 'roster.jsonl'} does not continue the roster of answer.json; put it back")
    pin = read_pin(silo / "keys")
    for member in roster.members.values():
        if (member.ledger_id, member.first_key) == (pin.ledger_id, pin.ledger_key):
            return Enrolment(folder=folder, answer=answer, roster=roster, member=member)
    raise VerificationError(f"{folder / 'roster.jsonl'} does not hold this silo, or is another silo's")


def roster_of(silo: Path) -> Roster | None:
    """Return the roster that a silo knows; None where it is enrolled nowhere.

    Raises:
        SettingError, VerificationError: as `enrolment`.
    """
    return enrolment(silo).roster if (silo / FOLDER / "answer.json").exists() else None


def require_known(manifest: Manifest, study: Study, silo: Silo) -> None:
    """Raise where the silos of a masked study are not those that its approval was given for, or none are pinned.

    A coordinator that adds silos of its own to a sum learns what is left of it. So the roster that the officer saw
    counts, without those who have left it; only a simulated silo does without a roster.

    Raises:
        ProtocolError: there is no roster, or a silo joined it after the approval.
        Refusal: there is no approval that holds.
    """
    if not study.masked:
        return
    roster = roster_of(silo.folder)
    if roster is None:
        if silo.settings.ledger.durability == "power-loss":
            raise ProtocolError(
                "a sum hides this silo only among silos that it knows: enrol it with its coordinator, or write "
                "secagg.enabled = false into the study"
            )
        return
    approved = approved_roster(silo, study)
    if approved is not None:
        known = roster_until(roster, approved)
        ledgers = {silo: member.ledger_id for silo, member in known.members.items()} if known else {}
        strangers = [m.silo for m in manifest.roster if ledgers.get(m.silo) != m.ledger_id]
        if strangers:
            raise ProtocolError(
                f"silo '{strangers[0]}' of the run joined the roster after this study was approved; approve it again"
            )


def require_enrolled(manifest: Manifest, silo: Path) -> None:
    """Raise where a manifest's silos or coordinator are not those of the roster; a silo without one has no say.

    Raises:
        ProtocolError: a silo, a key or a ledger is not in it.
    """
    if not (silo / FOLDER / "answer.json").exists():
        return
    known = enrolment(silo)
    if manifest.coordinator != known.answer.coordinator:
        raise ProtocolError("the run's coordinator is not the pinned one")
    for member in manifest.roster:
        pinned = known.roster.members.get(member.silo)
        if pinned is None or (pinned.ledger_id, pinned.ledger_key) != (member.ledger_id, member.ledger_key):
            raise ProtocolError(f"silo '{member.silo}' of the run is not in the roster with this ledger and key")
