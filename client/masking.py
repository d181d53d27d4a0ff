"""Secure aggregation at the silo: the session of a run over the rows of this silo's ledger.

A sum is claimed in the transaction that reserves its cost, before a record is read; it is masked in the one that
records the release; shares and signatures leave after the row that rules out any other answer is durable. Two copies of
a request, also in two processes, meet at the compare-and-set, and one of them is refused.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import numpy as np

from client.ledger import Ledger
from client.silo import Silo
from strategies import wire
from strategies.errors import ProtocolError
from strategies.layout import Vector
from strategies.manifest import Manifest
from strategies.privacy.distributed import add_share
from strategies.secagg.claims import Claim, Noise
from strategies.secagg.plan import REACH, digest_of_model, digest_of_settings, members_of, setup_of, shares_of
from strategies.secagg.ring import Words
from strategies.secagg.setup import Floors
from strategies.secagg.silo import SiloSession
from strategies.study import Study

Masked = TypeVar("Masked", wire.MaskedUpdate, wire.MaskedCounts)


def session_of(silo: Silo, study: Study, manifest: Manifest, parameters: int, ledger: Ledger) -> SiloSession:
    """Return this silo's side of a run.

    Args:
        silo: whose policy gives the floors.
        study: the agreed study.
        manifest: the agreed run.
        parameters: of the model.
        ledger: open; holds the rows and signs.

    Raises:
        ProtocolError: the study has no secure aggregation.
    """
    if not study.masked:
        raise ProtocolError("a message of secure aggregation came, and the study has none")

    def read(key: str) -> bytes | None:
        return ledger.row(manifest.run, key)

    require = silo.policy.require
    return SiloSession(
        name=silo.name,
        sign=ledger.sign,
        members=members_of(manifest),
        expected=setup_of(study, manifest, parameters),
        floors=Floors(least=require.min_cohort, max_colluding=require.min_colluding),
        read=read,
    )


def claim(
    session: SiloSession, kind: str, request: wire.Train | wire.Count, manifest: Manifest, ledger: Ledger
) -> Claim:
    """Check the sum that a request names, and what came of the one before it, if the request says so.

    The claim's changes go with the reservation.

    Args:
        session: of the run.
        kind: that such a request must be of: how a sum is protected goes with what is put into it.
        request: as it came.
        manifest: the agreed run.
        ledger: open.

    Raises:
        ProtocolError: the sum is not taken part in.
    """
    settle(session, request.record, manifest, ledger)
    number = request.round if isinstance(request, wire.Train) else request.number
    broadcast = request.broadcast if isinstance(request, wire.Train) else {}
    found = session.claim(
        request.sum.tobytes(),
        model=digest_of_model(request.weights, broadcast),
        config=digest_of_settings(manifest, number),
    )
    if found.kind != kind:
        raise ProtocolError(f"the request asks for {kind}, and the sum that it names is of {found.kind}")
    return found


def within_reach(before: Vector, after: Vector, weight: float) -> tuple[Vector, int]:
    """Return the weights after training, with moves that a masked sum cannot hold cut to what it can, and how many.

    Args:
        before: weights that the server sent.
        after: weights after training.
        weight: of the silo, which its update is multiplied by.
    """
    most = np.float32(REACH / weight)
    moved = after - before
    far = np.abs(moved) > most
    return np.where(far, before + np.clip(moved, -most, most), after), int(far.sum())


def noise_of(study: Study, manifest: Manifest, parameters: int, claim: Claim) -> Noise | None:
    """Return what adds this silo's share of the noise to its update's words; None where a sum has no such noise."""
    shares = shares_of(study, setup_of(study, manifest, parameters), len(claim.cohort))
    if shares is None:
        return None

    def add(words: Words) -> None:
        add_share(words[:parameters], shares)

    return add


def settle(session: SiloSession, record: wire.Blob, manifest: Manifest, ledger: Ledger) -> None:
    """Check the coordinator's record of the last sum, where there is one.

    Raises:
        ProtocolError: it is not of what this silo has sent.
    """
    if record.size:
        ledger.change(manifest.run, session.close(record.tobytes()).changes)


def same_again(claim: Claim, stored: bytes | None, kind: type[Masked]) -> Masked:
    """Return the reply that was made for a claim before, byte for byte.

    Raises:
        ProtocolError: it is not there any more; the sum's number is used up.
    """
    if stored is not None:
        reply = wire.unpack(stored, (kind,))
        if hashlib.sha256(reply.upload.data).digest() == claim.upload:
            return reply
    raise ProtocolError("the masked reply of this sum is lost here; its number is used up")
