"""Secure aggregation at the coordinator: one sum from its requests to its total.

Two exchanges when every silo answers, three when somebody is missing (strategies/secagg). Who is in a sum is fixed
once and written to the run folder before it is told to anybody; a sum that fails is given up, its number is used up,
and what silos have charged for it stays charged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from strategies import wire
from strategies.errors import RunError
from strategies.manifest import Manifest
from strategies.secagg.errors import SecaggError
from strategies.secagg.plan import digest_of_model, digest_of_settings, members_of, setup_of
from strategies.secagg.ring import Floats
from strategies.secagg.server import ServerSession
from strategies.secagg.sums import Phase, Sum
from strategies.study import Study

log = logging.getLogger("fedsilo.server")

Ask = Callable[[Mapping[str, wire.Instruction]], Mapping[str, wire.Reply]]  # by silo; who is silent is missing
Keep = Callable[[str, bytes | None], None]  # a file of the run folder, whole; None takes it away
_RUN, _SUM = "secagg/run.bin", "secagg/sum.bin"


@dataclass(frozen=True, kw_only=True)
class Summed:
    """What came of a sum.

    Args:
        vectors: the total, one array a segment; None when the sum was given up.
        survivors: silos whose vectors are in it.
        refused: refusal code by silo.
        reason: why it was given up, one word; empty when it was not.
    """

    vectors: tuple[Floats, ...] | None = None
    survivors: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


class Masking:
    """The coordinator's side of a run's sums.

    Args:
        study: the agreed study.
        manifest: the agreed run.
        parameters: of the model.
        key: the coordinator's, which signs every request.
        keep: where the state of a sum goes before it leaves.
    """

    def __init__(self, study: Study, manifest: Manifest, parameters: int, key: Ed25519PrivateKey, keep: Keep) -> None:
        self.refused: dict[str, str] = {}  # who was left out at the beginning, by silo
        self._manifest, self._keep = manifest, keep
        self._session = ServerSession(setup_of(study, manifest, parameters), key, members_of(manifest))
        self._records: dict[str, bytes] = {}  # by silo: of the last sum that its vector is in

    @classmethod
    def restored(
        cls, study: Study, manifest: Manifest, parameters: int, key: Ed25519PrivateKey, keep: Keep, snapshot: bytes
    ) -> Masking:
        """Go on after a restart; a sum that was under way is given up, its number stays used."""
        found = cls(study, manifest, parameters, key, keep)
        members = members_of(manifest)
        found._session = ServerSession.restore(setup_of(study, manifest, parameters), key, members, snapshot)
        return found

    @property
    def seated(self) -> tuple[str, ...]:
        """Silos that have a key in this run, sorted."""
        return tuple(sorted(self._session.seated))

    def set_up(self, ask: Ask) -> None:
        """Ask every silo for its key of this run.

        Raises:
            RunError: too few have one.
        """
        request = wire.Setup(manifest=self._manifest.to_json(), rules=wire.blob(self._session.invitation()))
        replies = ask({member.silo: request for member in self._manifest.roster})
        keys = {silo: reply.key.tobytes() for silo, reply in replies.items() if isinstance(reply, wire.Keyed)}
        self.refused = {silo: reply.code for silo, reply in replies.items() if isinstance(reply, wire.Refused)}
        try:
            left_out = self._session.admit(keys)
        except SecaggError as error:
            raise RunError(
                f"the run's secure aggregation cannot be set up: {error}; each silo's own log says why"
            ) from None
        for member in self._manifest.roster:
            if member.silo not in self._session.seated:
                code = "protocol" if member.silo in left_out else "silent"
                self.refused.setdefault(member.silo, code)
                log.warning("silo %s takes no part in secure aggregation (%s)", member.silo, self.refused[member.silo])
        self._keep(_RUN, self._session.snapshot())

    def run(self, kind: str, drafts: Mapping[str, wire.Train | wire.Count], number: int, ask: Ask) -> Summed:
        """Sum the vectors of a cohort.

        Args:
            kind: of the sum.
            drafts: the request for each silo, without what this protocol adds; all with one model.
            number: of the release, which the request names too.
            ask: the way to the silos.
        """
        if not drafts:
            return Summed(reason="cohort")
        draft = next(iter(drafts.values()))
        broadcast = draft.broadcast if isinstance(draft, wire.Train) else {}
        try:
            one = self._session.begin(
                kind,
                sorted(drafts),
                model=digest_of_model(draft.weights, broadcast),
                config=digest_of_settings(self._manifest, number),
            )
        except SecaggError as error:
            log.warning("%s %d: no sum is begun: %s", kind, number, error)
            return Summed(reason=str(error.code))
        self._kept(one)
        requests = {silo: self._with_sum(draft, one.request(silo), silo) for silo, draft in drafts.items()}
        replies = ask(requests)
        refused = {silo: reply.code for silo, reply in replies.items() if isinstance(reply, wire.Refused)}
        one.collect({silo: upload for silo, reply in replies.items() if (upload := _upload(reply, number)) is not None})
        self._open(one, ask)
        self._keep(_SUM, None)  # masked vectors and shares, needed no more
        for silo, code in one.refused.items():
            log.warning("%s %d: silo %s refuses to open the sum (%s)", kind, number, silo, code)
        if one.phase is not Phase.DONE:
            log.warning("%s %d: the sum is given up (%s); its cost stays charged", kind, number, one.reason)
            return Summed(refused=refused, reason=str(one.reason))
        total = one.total()
        self._records |= dict.fromkeys(total.survivors, one.record())
        for silo, code in total.blamed.items():
            log.warning("%s %d: what silo %s sent does not hold (%s)", kind, number, silo, code)
        return Summed(vectors=total.vectors, survivors=total.survivors, refused=refused)

    def record_for(self, silo: str) -> wire.Blob:
        """Return the signed record of the last sum that a silo's vector is in, once; empty when there is none."""
        return wire.blob(self._records.pop(silo, b""))

    def _open(self, one: Sum, ask: Ask) -> None:
        """Walk a sum from its uploads to its total, or give it up; who is silent is asked once more."""
        again = True
        while one.phase in (Phase.FULL, Phase.VIEW, Phase.OPEN):
            self._kept(one)
            before, manifest = one.phase, self._manifest.to_json()
            requests = {
                silo: wire.Unmask(manifest=manifest, request=wire.blob(r)) for silo, r in one.requests().items()
            }
            replies = ask(requests)
            shares = {silo: reply.reply.tobytes() for silo, reply in replies.items() if isinstance(reply, wire.Share)}
            if one.receive(shares) is before:
                if not again:
                    one.abort()
                again = False

    def _with_sum(self, draft: wire.Train | wire.Count, request: bytes, silo: str) -> wire.Train | wire.Count:
        return replace(draft, sum=wire.blob(request), record=self.record_for(silo))

    def _kept(self, one: Sum) -> None:
        self._keep(_RUN, self._session.snapshot())
        self._keep(_SUM, one.snapshot())


def _upload(reply: wire.Reply, number: int) -> bytes | None:
    if isinstance(reply, wire.MaskedUpdate) and reply.round == number:
        return reply.upload.tobytes()
    if isinstance(reply, wire.MaskedCounts) and reply.number == number:
        return reply.upload.tobytes()
    return None
