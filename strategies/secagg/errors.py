"""What a side of secure aggregation refuses, one code a check.

Guarantees: an error's text is made of its code's fixed sentence and the public names of silos. No value, share, seed or
key can stand in it, and only the code may travel (`notice`).
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from strategies.errors import ProtocolError
from strategies.secagg.encoding import Bytes, enc, take


class Code(StrEnum):
    """Why a message was refused."""

    MALFORMED = "malformed"
    SIGNATURE = "signature"
    SIZE = "size"
    MANIFEST = "manifest"
    FLOOR = "floor"
    ROOM = "room"
    RUN_USED = "run-used"
    NOT_JOINED = "not-joined"
    DIRECTORY = "directory"
    ENTRY = "entry"
    OWN_KEY = "own-key"
    LOW_ORDER = "low-order"
    KIND = "kind"
    COHORT = "cohort"
    THRESHOLD = "threshold"
    MODEL = "model"
    CONFIG = "config"
    EXACT_COHORT = "exact-cohort"
    OTHER_SUM = "other-sum"
    BURNT = "burnt"
    OVER = "over"
    ORDER = "order"
    CLAIM = "claim"
    STATE = "state"
    CONTEXT = "context"
    BOXES = "boxes"
    VIEW = "view"
    EXACT_VIEW = "exact-view"
    CERTIFICATE = "certificate"
    ALARM = "alarm"
    RECORD = "record"
    UPLOAD = "upload"
    COMMITMENT = "commitment"
    ABSENT = "absent"
    BOX = "box"
    SHARE = "share"
    REPLY = "reply"
    TOTAL = "total"


_SENTENCES = {
    Code.MALFORMED: "the bytes are no message of this protocol",
    Code.SIGNATURE: "the message is not signed by the one who should have sent it",
    Code.SIZE: "more than 128 silos; a larger cohort needs several runs",
    Code.MANIFEST: "the run's set-up is not the one that was agreed here",
    Code.FLOOR: "the run's set-up is below what is allowed here",
    Code.ROOM: "a sum of all silos could wrap in the ring; its bound must be lower",
    Code.RUN_USED: "the identity of the run was used before",
    Code.NOT_JOINED: "this silo has not joined the run",
    Code.DIRECTORY: "the directory of keys is missing, or is not the one that this run began with",
    Code.ENTRY: "an entry of the directory of keys does not hold",
    Code.OWN_KEY: "the directory of keys has another key for this silo",
    Code.LOW_ORDER: "a key of the directory is no usable point of the curve",
    Code.KIND: "the run's set-up knows no sum of this kind",
    Code.COHORT: "the cohort is too small, not sorted, or not of this run",
    Code.THRESHOLD: "the cohort is too small for the silos that may collude",
    Code.MODEL: "the model that came is not the one that was signed",
    Code.CONFIG: "the settings that came are not those that were signed",
    Code.EXACT_COHORT: "a sum without noise has another cohort than the first one of this run",
    Code.OTHER_SUM: "the number of the sum was used for another one",
    Code.BURNT: "the sum was begun here and not finished; its number is used up",
    Code.OVER: "the sum is over here",
    Code.ORDER: "the number of the sum is not above the last one, or beyond the plan",
    Code.CLAIM: "the sum is not claimed durably, or was masked already",
    Code.STATE: "the sum has gone another way here, or is not as far",
    Code.CONTEXT: "the message is of another sum",
    Code.BOXES: "the message has other boxes than its answer needs",
    Code.VIEW: "the set of survivors is not one that this silo can back",
    Code.EXACT_VIEW: "a sum without noise has no survivors' sum",
    Code.CERTIFICATE: "too few silos have signed this set of survivors",
    Code.ALARM: "more boxes fail to open than silos may collude: silos were asked for different sums",
    Code.RECORD: "the record of the sum is not of what this silo has sent",
    Code.UPLOAD: "the upload does not hold",
    Code.COMMITMENT: "two silos have committed to different seeds of their pair",
    Code.ABSENT: "too few silos are left",
    Code.BOX: "more silos than may collude could not open a silo's boxes",
    Code.SHARE: "a share, or a seed, is not the one that was committed to",
    Code.REPLY: "a reply does not hold",
    Code.TOTAL: "the total is no sum of vectors of this ring",
}


class SecaggError(ProtocolError):
    """A message of secure aggregation does not follow the protocol.

    Args:
        code: which check it did not pass.
        silos: whom the check points at; public names.
    """

    def __init__(self, code: Code, silos: Iterable[str] = ()) -> None:
        self.code = code
        self.silos = tuple(silos)
        named = f" ({', '.join(self.silos)})" if self.silos else ""
        super().__init__(f"secure aggregation: {_SENTENCES[code]}{named}")


_LONGEST = max(len(enc("fsa1/refused", code.value)) for code in Code)


def notice(code: Code) -> bytes:
    """Return the reply that says that a request was refused: the code and nothing else."""
    return enc("fsa1/refused", code.value)


def noticed(reply: Bytes) -> Code | None:
    """Return the code of such a reply; None when it is another one."""
    if len(reply) > _LONGEST:
        return None
    try:
        domain, code = take(reply, 2)
        return Code(code.decode()) if domain == b"fsa1/refused" else None
    except ValueError:
        return None
