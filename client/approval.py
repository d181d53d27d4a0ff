"""What the data-protection officer has approved: `approved/<study digest>.json`, one signed file a study.

An approval names the study's digest, the data root, the policy in force, the silo's ledger and the roster as it is
known then, and is signed by the officer's key (Ed25519, RFC 8032) over a domain tag and these, in canonical JSON. It
says nothing of another study, data root, policy or silo, nor (under masks) of silos that joined the roster after it. To
withdraw one, remove its file.

Guarantees: `admit` is asked with every request of a server. Where the policy asks for approvals, nothing is reserved,
read or trained for a study without one that holds at that moment.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies.errors import Refusal, RefusalCode, VerificationError
from strategies.proof.canonical import dump, load
from strategies.proof.entries import ZERO, is_hex, public_hex, signed_by
from strategies.study import Study

if TYPE_CHECKING:
    from client.silo import Silo

_DOMAIN = b"fedsilo/approval/1\0"
_FIELDS = {"version", "ledger_id", "study", "data_root", "policy", "roster", "time"}
_LARGEST_BYTES = 65536


@dataclass(frozen=True, kw_only=True)
class Approval:
    """What an officer signs.

    Args:
        ledger_id: of the silo's ledger, 64 hex digits.
        study: the study's digest.
        data_root: the data set that it may read.
        policy: SHA-256 of the policy under which it was approved.
        roster: hash of the last line of the roster that was known then; 64 zeros where the silo is enrolled nowhere.
        time: UTC, for people.
    """

    ledger_id: str
    study: str
    data_root: str
    policy: str
    roster: str
    time: str
    version: int = 1

    def signed(self, officer: Ed25519PrivateKey) -> bytes:
        """Return the file's bytes."""
        value = asdict(self)
        signature = officer.sign(_DOMAIN + dump(value)).hex()
        return dump({"approval": value, "key": public_hex(officer), "signature": signature})


def read_approval(data: bytes, officer: str) -> Approval:
    """Read an approval that the officer's public key (64 hex digits) has signed.

    Raises:
        VerificationError: it is none, or another key or no key has signed it.
    """
    value = load(data)
    if not (isinstance(value, dict) and value.keys() == {"approval", "key", "signature"}):
        raise VerificationError("it is no signed approval")
    fields = value["approval"]
    sound = isinstance(fields, dict) and fields.keys() == _FIELDS and fields["version"] == 1
    sound = sound and all(is_hex(fields[name]) for name in ("ledger_id", "study", "policy", "roster"))
    sound = sound and all(type(fields[name]) is str for name in ("data_root", "time"))
    if not sound or type(fields["version"]) is not int or not is_hex(value["signature"], 128):
        raise VerificationError("it has other fields or values than an approval")
    if value["key"] != officer:
        raise VerificationError("it is signed by another key than that of this silo's officer")
    if not signed_by(value["signature"], officer, _DOMAIN + dump(fields)):
        raise VerificationError("its signature does not hold")
    return Approval(**fields)


def path_of(silo: Silo, digest: str) -> Path:
    """Return where the approval of a study lies."""
    return silo.folder / "approved" / f"{digest}.json"


def approve(silo: Silo, study: Study, officer: Ed25519PrivateKey) -> Path:
    """Sign and keep the approval of a study under the present policy; return its file.

    Raises:
        Refusal: the policy does not allow the study, or the key is not the officer's (`approval`).
        LedgerError, SettingError: the ledger cannot be read.
    """
    from client.enrolment import roster_of
    from client.silo import replace_file

    root = silo.root()[0]
    silo.policy.admit(study, data_root=root, approved=True)
    with silo.ledger() as ledger:
        pins, key = ledger.pins, ledger.officer
    if public_hex(officer) != key:
        raise Refusal(RefusalCode.APPROVAL, "keys/officer.pem is not the officer's key that the ledger names")
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    roster = roster_of(silo.folder)
    approval = Approval(
        ledger_id=pins.ledger_id,
        study=study.digest,
        data_root=root,
        policy=silo.policy.sha256,
        roster=roster.hash if roster else ZERO,
        time=now,
    )
    path = path_of(silo, study.digest)
    replace_file(path, approval.signed(officer))
    return path


def admit(silo: Silo, study: Study) -> None:
    """Return when a study keeps the policy's limits, protects the registered unit and, where asked for, is approved.

    Raises:
        Refusal: with code `policy`, `approval`, `study` or `budget` (no registered data root).
        LedgerError, SettingError: the ledger cannot be read.
    """
    root = silo.root()[0]
    silo.policy.admit(study, data_root=root, approved=True)
    if study.file.training.expected_batch_size is None:
        raise Refusal(
            RefusalCode.STUDY,
            "training.expected_batch_size is missing: a deployed study names one public number of units a step",
        )
    with silo.ledger() as ledger:
        registered, pins, officer = ledger.balance(root).root, ledger.pins, ledger.officer
    if study.unit != registered.unit:
        raise Refusal(
            RefusalCode.POLICY,
            f"data root '{root}' was registered with data.unit '{registered.unit}'; the study protects '{study.unit}'",
        )
    gate = silo.policy.budget[root].gate
    if gate != registered.gate:
        raise Refusal(
            RefusalCode.POLICY,
            f"policy.toml has budget.{root}.gate = '{gate}', and the data root was registered with "
            f"'{registered.gate}' for its whole life; write that into policy.toml",
        )
    if silo.policy.require.approval == "required":
        _require_approval(silo, study, ledger_id=pins.ledger_id, officer=officer)


def approved_roster(silo: Silo, study: Study) -> str | None:
    """Return the hash of the roster under which a study is approved; None where the policy asks for no approval.

    Raises:
        Refusal: there is no approval that holds.
        LedgerError, SettingError: the ledger cannot be read.
    """
    if silo.policy.require.approval != "required":
        return None
    with silo.ledger() as ledger:
        return _require_approval(silo, study, ledger_id=ledger.pins.ledger_id, officer=ledger.officer).roster


def _require_approval(silo: Silo, study: Study, *, ledger_id: str, officer: str) -> Approval:
    path, remedy = path_of(silo, study.digest), "use fedsilo-silo approve"
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_BYTES)
    except FileNotFoundError:
        raise Refusal(
            RefusalCode.APPROVAL, f"study {study.digest[:12]} has not been approved at this silo; {remedy}"
        ) from None
    except OSError as error:
        raise Refusal(RefusalCode.APPROVAL, f"{path} cannot be read ({error.strerror}); {remedy}") from None
    try:
        approval = read_approval(data, officer)
    except VerificationError as error:
        raise Refusal(RefusalCode.APPROVAL, f"{path} does not hold: {error}; {remedy} with the officer's key") from None
    if (approval.ledger_id, approval.study, approval.data_root) != (ledger_id, study.digest, silo.root()[0]):
        raise Refusal(
            RefusalCode.APPROVAL, f"{path} approves something else than this study on this data root; {remedy}"
        )
    if approval.policy != silo.policy.sha256:
        raise Refusal(
            RefusalCode.APPROVAL,
            f"study {study.digest[:12]} was approved on {approval.time[:10]} under another policy.toml "
            f"(SHA-256 {approval.policy[:12]}, now {silo.policy.sha256[:12]}); a changed policy asks for a new "
            f"approval: {remedy}",
        )
    return approval
