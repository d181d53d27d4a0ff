"""The facts of a run, once, for both forms of its report: report.json is this value, report.html is drawn from it.

Every privacy number is computed from the events that a silo may have released, at worst, and rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from strategies import wire
from strategies.counts import CountLayout
from strategies.manifest import Manifest
from strategies.privacy.accountant import epsilon
from strategies.privacy.events import Event, Gaussian, merge, to_json
from strategies.privacy.silo_level import noise_on_mean, silo_epsilon, silos_a_round, warning
from strategies.report import declared, hostile
from strategies.report.guarantee import guarantee, odds, part_of_total, tier
from strategies.secagg.plan import setup_of
from strategies.sections import Mechanism
from strategies.study import Study

FORMAT = "fedsilo-report/1"


def report_facts(
    *,
    study: Study,
    manifest: Manifest,
    status: str,
    started: datetime,
    finished: datetime,
    lines: Sequence[Mapping[str, Any]],
    silos: Mapping[str, Mapping[str, Any]],
    refusals: Sequence[str],
    parameters: int,
) -> dict[str, Any]:
    """Return the facts as plain values.

    Args:
        study: the study.
        manifest: what the silos agreed on.
        status: complete or interrupted.
        started: UTC.
        finished: UTC.
        lines: metrics.jsonl.
        silos: by name: `rounds` asked, whether it was asked to close (`closed`), `refusal` code or None, `statement` or
            None.
        refusals: codes of the nodes that never joined.
        parameters: length of the model's vector.
    """
    last = lines[-1] if lines else None
    rows = [_silo(study, name, facts) for name, facts in sorted(silos.items())]
    return {
        "format": FORMAT,
        "run": {
            **_run(study, manifest),
            "status": status,
            "started": started.isoformat(timespec="seconds"),
            "finished": finished.isoformat(timespec="seconds"),
            "rounds_done": len(lines),
        },
        "study": {**_trained(study), "parameters": parameters},
        "privacy": {**_privacy(study), "silo_level": _silo_level(study, len(silos), parameters)},
        "silos": rows,
        "tier": _tier(rows),
        "numbers": _worst(study, silos),
        "steps": _steps(study, silos),
        "never_joined": list(refusals),
        "rounds": [dict(line) for line in lines],
        "metrics": dict(last["metrics"]) if last else {},
        "loss": last["loss"] if last else None,
        "groups": last.get("groups") if last else None,
        "silo_metrics": last.get("silo_metrics") if last else None,
        "evaluation": _evaluation(study),
        "releases": _releases(study),
        "unprotected": _unprotected(study),
        "not_covered": _not_covered(study, len(silos)),
        **_stated(study, manifest, parameters),
        "accuracy_interval": None,
        "baselines": None,
    }


def _run(study: Study, manifest: Manifest) -> dict[str, Any]:
    return {
        "id": manifest.run,
        "study": study.file.study.name,
        "study_digest": study.digest,
        "rounds_planned": study.file.study.rounds,
        "code": manifest.code,
        "manifest_digest": manifest.digest(),
        "model_in": None,  # whoever holds the weights fills these in
        "model_out": None,
    }


def _trained(study: Study) -> dict[str, Any]:
    return {
        "task": study.file.study.task,
        "kind": study.file.data.kind,
        "target": study.file.data.target,
        "features": len(study.file.data.features),
        "model": study.file.model.name,
        "strategy": study.file.strategy.name,
        "weights": study.file.strategy.weights,
        "optimizer": study.file.training.optimizer,
    }


def _stated(study: Study, manifest: Manifest, parameters: int) -> dict[str, Any]:
    """What has to be said beside the numbers."""
    masked = study.file.secagg.enabled
    return {
        "trust": [list(pair) for pair in declared.trust(study.file.privacy.mechanism, masked=masked)],
        "tuning": declared.TUNING,
        "audit": dict(declared.AUDIT),
        "secure_aggregation": {
            "enabled": masked,
            "evidence": "the total by itself is private only through its noise"
            if masked
            else "no masks, so there is no transcript; what protects an update is its noise",
            "min_silos": study.file.cohort.min_silos,
            **(_masks(study, manifest, parameters) if masked else {}),
        },
        "void": list(declared.VOID) if study.private else [],
        "support": declared.SUPPORT,
    }


def _masks(study: Study, manifest: Manifest, parameters: int) -> dict[str, Any]:
    """The rules of the run's masks; who was in each sum stands with the rounds."""
    rules = setup_of(study, manifest, parameters)
    return {
        "max_colluding": rules.max_colluding,
        "silos": rules.silos,
        "threshold": rules.threshold(rules.silos),
        "rules": rules.digest().hex(),
    }


def _tier(silos: Sequence[Mapping[str, Any]]) -> str | None:
    """The word for the worst silo's epsilon; None where nothing was asked or something is not bounded."""
    values = [silo["epsilon"] for silo in silos if silo["rounds"]]
    return tier(max(values)) if values and None not in values else None


def _privacy(study: Study) -> dict[str, Any]:
    privacy, training = study.file.privacy, study.file.training
    by_unit = study.private and not study.silo_level
    return {
        "mechanism": privacy.mechanism,
        "unit": study.unit,
        "neighbouring": "add-or-remove-one",
        "delta": privacy.delta,
        "target_epsilon": privacy.epsilon,
        "accountant": privacy.accountant,
        "noise_multiplier": study.noise_multiplier,
        "clip_norm": privacy.clip_norm,
        "sampling_rate": training.sampling_rate,
        "steps_per_round": training.steps,
        "expected_batch_size": training.expected_batch_size,
        "max_records_per_unit": study.file.data.max_records_per_unit,
        "epsilon_if_completed": _number(_epsilon(study, study.total_events())),
        "sampling": "each unit by itself with the sampling rate (Poisson), from "
        + ("operating-system entropy" if by_unit else "the study's seed, so it is known to all"),
        "noise": f"Gaussian: {declared.NOISE}" if study.private else "none",
        "floating_point": None if not study.private else _floating_point(study),
        "observer": list(declared.observed(privacy.mechanism)),
        "secure_aggregation": study.file.secagg.enabled,
    }


def _floating_point(study: Study) -> str:
    return declared.FLOATING_POINT_OF_SUMS if study.silo_level else declared.FLOATING_POINT


def _silo_level(study: Study, members: int, parameters: int) -> dict[str, Any] | None:
    """What has to be said where a silo's whole update is noised; None elsewhere."""
    if not study.silo_level:
        return None
    silos = silos_a_round(study, members)
    return {
        "unit_noise_multiplier": study.unit_noise_multiplier,
        "epsilon": _number(silo_epsilon(study)),
        "silos": silos,
        "noise_on_mean": noise_on_mean(study, silos),
        "warning": warning(study, silos, parameters),
    }


def _evaluation(study: Study) -> dict[str, Any] | None:
    """What is released of the silos' own evaluation; None for nothing."""
    evaluation = study.file.evaluation
    if study.release != "noisy":
        return None
    layout = CountLayout.of(study)
    return {
        "release": evaluation.release,
        "noise_multiplier": evaluation.noise_multiplier,
        "sensitivity": layout.sensitivity,
        "counts": layout.size,
        "epsilon": _number(_epsilon(study, study.all_count_events())),
        "groups": list(evaluation.groups),
    }


def _released(study: Study, facts: Mapping[str, Any]) -> tuple[Event, ...]:
    """Return what a silo may have released, at worst."""
    events = study.round_events() * int(facts["rounds"])
    if facts["closed"]:
        events = (*events, *study.closing_events())
    if not study.private:  # also before its first round, such a run has no bound
        events = (*events, *study.round_events()[:1])
    return events


def _silo(study: Study, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    delta, events = study.file.privacy.delta, _released(study, facts)
    return {
        "name": name,
        "rounds": facts["rounds"],
        "refusal": facts["refusal"],
        "unit": study.unit,
        "delta": delta,
        "epsilon": _number(_epsilon(study, events)),
        "epsilon_rdp": _number(epsilon(events, delta, accountant="rdp")),
        "epsilon_without_amplification": _number(epsilon(events, delta, amplification=False)),
        "odds": odds(_epsilon(study, events)),
        "events": [to_json(event) for event in merge(events)],
        "statement": facts["statement"],
    }


def _worst_events(study: Study, silos: Mapping[str, Mapping[str, Any]]) -> tuple[Event, ...]:
    released = [_released(study, facts) for facts in silos.values() if facts["rounds"]]
    return max(released, key=lambda events: _epsilon(study, events), default=())


def _worst(study: Study, silos: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The numbers of the silo that has released most; None where nothing was, or nothing is bounded."""
    events = _worst_events(study, silos)
    return guarantee(events, study.file.privacy.delta) if events and study.private else None


def _steps(study: Study, silos: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The worst silo's epsilon built up by kind of release, by PLD."""
    events = _worst_events(study, silos) if study.private else ()
    counts = [event for event in events if event in study.count_events() and isinstance(event, Gaussian)]
    training = [event for event in events if event not in study.count_events()]
    parts, before, so_far = [], 0.0, list[Event]()
    for name, some in (("model updates", training), ("metric counts", counts)):
        if some:
            so_far += some
            after = epsilon(so_far, study.file.privacy.delta)
            parts.append({"name": name, **part_of_total(before, after)})
            before = after
    return parts


def _epsilon(study: Study, events: Sequence[Event]) -> float:
    return epsilon(events, study.file.privacy.delta, accountant=study.file.privacy.accountant)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


_WHAT_TRAVELS = {
    "Accept.silo": "name of the silo",
    "Accept.weight": "declared weight (a setting of the silo, no count of records)",
    "Accept.head": "where the silo's ledger stands, signed: position, hash, what was released by data root",
    "Update.silo": "name of the silo",
    "Update.round": "number of the round",
    "Update.head": "where the silo's ledger stands, signed: position, hash, what was released by data root",
    "Update.countersigned": "signatures on the heads of the other silos' ledgers",
    "Update.update": "model update of the round, clipped and noised before it was used",
    "Update.counts": "metric counts of the model that the silo received, on its held-out records, noised",
    "Keyed.silo": "name of the silo",
    "Keyed.key": "the silo's key for the masks of this run, signed",
    "MaskedUpdate.silo": "name of the silo",
    "MaskedUpdate.round": "number of the round",
    "MaskedUpdate.head": "where the silo's ledger stands, signed: position, hash, what was released by data root",
    "MaskedUpdate.countersigned": "signatures on the heads of the other silos' ledgers",
    "MaskedUpdate.upload": "model update of the round, clipped and noised before it was used, in a sum over silos",
    "MaskedCounts.silo": "name of the silo",
    "MaskedCounts.number": "number of the round whose model was counted, after those of all rounds",
    "MaskedCounts.head": "where the silo's ledger stands, signed: position, hash, what was released by data root",
    "MaskedCounts.countersigned": "signatures on the heads of the other silos' ledgers",
    "MaskedCounts.upload": "metric counts of a model, on its held-out records, in a sum over silos",
    "Share.silo": "name of the silo",
    "Share.reply": "shares of masks, and a signature on who is in the sum: random numbers and names",
    "Farewell.silo": "name of the silo",
    "Farewell.head": "where the silo's ledger stands, signed: position, hash, what was released by data root",
    "Farewell.countersigned": "signatures on the heads of the other silos' ledgers",
    "Farewell.statement": "what the silo's own ledger says was spent, signed",
    "Farewell.ledger": "the lines of the silo's ledger that concern this run: settings, what was released and when; of "
    "all others hashes alone",
    "Farewell.counts": "metric counts of the final model, on its held-out records, noised",
    "Attested.silo": "name of the silo",
    "Attested.head": "where the silo's ledger stands, signed: position, hash, what was released by data root",
    "Attested.countersigned": "signatures on the heads of the other silos' ledgers",
    "Refused.code": "whether the silo refused, and one word of a fixed list why ('data' depends on its records)",
}


_UPDATE: dict[Mechanism, tuple[wire.Protection, str]] = {
    "local-gaussian": (wire.Protection.RELEASED, "model update of the round, clipped and noised as a whole"),
    "central-gaussian": (
        wire.Protection.EXACT,
        "model update of the round, clipped as a whole and without noise, which the server is trusted to add",
    ),
    "distributed-gaussian": (
        wire.Protection.RELEASED,
        "model update of the round, clipped as a whole, with a share of the noise of the sum",
    ),
    "none": (wire.Protection.EXACT, "model update of the round, without any protection"),
}


def _releases(study: Study) -> list[dict[str, str]]:
    rows = []
    masked = {wire.Keyed, wire.MaskedUpdate, wire.MaskedCounts, wire.Share}
    for reply in wire.REPLIES:
        if reply in (masked if not study.masked else {wire.Update}):
            continue  # no such message is sent in this study
        for entry in fields(reply):
            name, protection = f"{reply.__name__}.{entry.name}", entry.metadata["privacy"]
            what = _WHAT_TRAVELS[name]
            if name == "MaskedCounts.upload" and study.release != "masked":
                protection = wire.Protection.RELEASED if study.release == "noisy" else wire.Protection.PUBLIC
                what = (
                    f"{what}, noised" if study.release == "noisy" else "nothing: this study releases no metric counts"
                )
            elif name == "MaskedCounts.upload":
                what = f"{what}, without noise: no epsilon covers the held-out units"
            elif entry.name == "counts":
                if not study.closing_events():
                    protection, what = wire.Protection.PUBLIC, "nothing: this study releases no metric counts"
            elif protection == wire.Protection.RELEASED and study.file.privacy.mechanism in _UPDATE:
                protection, what = _UPDATE[study.file.privacy.mechanism]
                what += ", in a sum over silos" * study.masked
            rows.append({"field": name, "what": what, "seen": str(entry.metadata["seen"]), "privacy": str(protection)})
    return rows


def _unprotected(study: Study) -> list[str]:
    found = [row["what"] for row in _releases(study) if row["privacy"] == wire.Protection.EXACT]
    found += [
        "that the silo took part, in which rounds, and how long each of its replies took",
        "the study's schema: names, bounds and categories of the columns",
    ]
    if study.file.strategy.weights == "declared":
        found.append("the weight that each silo declares")
    if not study.private:
        found.insert(0, "the model updates themselves: this run has no differential privacy")
    return found


def _not_covered(study: Study, members: int) -> list[str]:
    if not study.private:
        return ["Nothing is covered: this run trained without differential privacy."]
    unit = study.unit
    found = [
        "Choices made by looking at the records before the study (features, bounds, model) are not accounted, nor are "
        "runs outside this silo's ledger.",
        hostile.sentence(study, members),
        "The server and whoever reads its memory see each silo's update by itself; what protects it is its noise."
        if not study.file.secagg.enabled and study.file.privacy.mechanism != "central-gaussian"
        else "The server and whoever reads its memory see what silos send without noise, which no number here covers."
        if study.file.privacy.mechanism == "central-gaussian"
        else "Silos that collude beyond the study's limit can unmask an update; what protects it then is its noise.",
        "The silo's own disk, keys and administrators are trusted.",
    ]
    if unit == "record":
        found.insert(
            0,
            "The unit of privacy is one record: somebody with several records is protected less, about in "
            "proportion. Name [data] unit to protect whole persons.",
        )
    else:
        found.insert(
            0, f"Somebody who stands under several values of '{unit}', or in several silos, is protected less."
        )
    return found
