"""The empirical audit of a study: what the mechanism that runs gives away, measured, beside what is claimed for it.

Three layers, none of which reads the noise that it should find:

1. Conformance: canaries beside one silo's records go through its local training; what their coordinates show is
   compared with every setting that the accountant was told (`strategies.privacy.conformance`).
2. One-run audit: half of the canaries, by secret coins, are in; whoever sees every noisy sum guesses which
   (`strategies.privacy.audit`).
3. Records: half of the silo's own units, by secret coins, are in; whoever sees the final model's losses guesses which.
   Nothing of it knows how training works, so it also sees what would leak past the clipping.

An audit finds faults; it never proves a claim.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.round import plan_of, read_records
from client.silo import Silo
from client.training.canaries import Canaries, Mask, Training, losses_of, observe
from client.training.device import device_of
from simulations.bench.machine import machine
from simulations.silos import complete, make_silos
from simulations.sources import read_dataset
from strategies.errors import DataError, SettingError
from strategies.privacy import audit as one_run
from strategies.privacy.accountant import epsilon
from strategies.privacy.audit import Guesses
from strategies.privacy.conformance import FALSE_ALARM, LEAST_VALUES, Claim, conformance
from strategies.privacy.profile import Profile, profile
from strategies.report.audit_page import render
from strategies.study import Study

DELTA = 1e-6  # the bounds lose 2 x canaries x delta, so delta must be small beside one over the canaries
CANARIES = 1000
_GUESSED = {"canaries": 0.1, "records": 0.25}  # of all at each end, fixed before anything is seen
_LEAST_UNITS = 20
_MOST_VALUES = 2**27  # steps times coordinates, which are held in memory: 512 MiB, a few times


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What an audit left: its folder, and audit.json."""

    folder: Path
    facts: dict[str, Any]

    @property
    def contradicted(self) -> bool:
        return bool(self.facts["contradicted"])


def audit(
    study: Study, base: Path, *, out: Path, canaries: int = CANARIES, advance: Callable[[int, int], None]
) -> Audited:
    """Audit the local training of a study at one simulated silo, over all of the study's rounds.

    Args:
        study: as written, with mechanism dp-sgd.
        base: folder that the study's paths are relative to.
        out: folder that holds the folders of audits.
        canaries: units of the audit's own, half of which are in the data.
        advance: is told of steps that were taken, and of how many in all.

    Raises:
        SettingError: the study has no per-step mechanism to audit.
        FedsiloError: as a run does.
    """
    require_auditable(study)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix="silos-of-audit-") as scratch:
        study, _ = complete(study, source := read_dataset(study, base), base)
        silo = Silo.open(make_silos(study, source, Path(scratch).absolute())[0])
        facts = audit_silo(study, silo, canaries=canaries, advance=advance)
    folder = out / f"audit-{study.file.study.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder.mkdir()
    (folder / "study.toml").write_text(study.text, encoding="utf-8")
    keep(facts, folder)
    return Audited(folder=folder, facts=facts)


def require_auditable(study: Study) -> None:
    """Raise SettingError unless the study makes its privacy in steps."""
    mechanism = study.file.privacy.mechanism
    if mechanism != "dp-sgd":
        raise SettingError(
            f"privacy.mechanism = '{mechanism}' is not allowed with an audit, which looks at the steps of dp-sgd; "
            "write mechanism = 'dp-sgd' to audit it"
        )


def require_enough(study: Study, silo: Silo, canaries: int) -> None:
    """Raise unless an audit of so many canaries at this silo would say something, within memory.

    Raises:
        DataError, SettingError: with what would do.
    """
    units, steps = read_records(silo, study).train.units, study.file.study.rounds * study.file.training.steps
    if units < _LEAST_UNITS:
        raise DataError(
            f"{silo.name} has {units} training units and an audit needs {_LEAST_UNITS}; lower simulation.silos"
        )
    least, most = -(-LEAST_VALUES // steps), _MOST_VALUES // (2 * steps)
    if not least <= canaries <= most:
        raise SettingError(
            f"canaries = {canaries} is not allowed with {steps} steps: it must be from {least} to {most}, so that "
            "there is enough to see and it fits into memory; write --canaries accordingly, or change study.rounds"
        )


def audit_silo(study: Study, silo: Silo, *, canaries: int, advance: Callable[[int, int], None]) -> dict[str, Any]:
    """Return audit.json: the three layers on the records of one silo. Arguments as in `audit`."""
    part = read_records(silo, study).train
    require_enough(study, silo, canaries)
    rounds = range(1, study.file.study.rounds + 1)
    plans = tuple(plan_of(study, silo.name, number) for number in rounds)
    both = 2 * sum(plan.steps for plan in plans)
    training = Training(
        study=study,
        part=part,
        plans=plans,
        device=device_of(silo.settings.device, silo.settings.memory_fraction),
        advance=lambda steps: advance(steps, both),
    )
    event = study.update_event(study.unit_noise_multiplier)
    events = (event,) * len(plans)
    curve = profile(events, DELTA)
    assert curve is not None  # Gaussian releases have one
    claim = Claim(
        noise_multiplier=event.noise_multiplier, sampling_rate=event.sampling_rate, steps=event.steps * len(plans)
    )
    claimed = {"epsilon": epsilon(events, DELTA), "delta": DELTA}
    included = _coins(canaries)
    rows = study.file.data.max_records_per_unit + 1 if study.file.data.unit else 1
    seen = observe(training, Canaries(included=included, controls=canaries, rows=rows))
    checks = conformance(seen.observations, claim)
    score = one_run.scores(seen.canaries_TC, sampling_rate=claim.sampling_rate, noise_multiplier=seen.noise)
    in_data = _coins(part.units)
    loss = losses_of(training, in_data)
    layers = {
        "canaries": _layer("canaries", score, included, curve),
        "records": _layer("records", -loss, in_data, curve),
    }
    return {
        **_what(study, silo, part.units),
        "claim": {**claimed, **asdict(claim), "epsilon_at_study_delta": epsilon(events, study.file.privacy.delta)},
        "study_delta": study.file.privacy.delta,
        "conformance": [asdict(check) for check in checks],
        **layers,
        "roc_bound": [[rate, curve.power(rate)] for rate in np.linspace(0, 1, 41).tolist()],
        "histogram": _histogram(seen.observations.untouched_TK, claim.noise_multiplier),
        "false_alarm": {"each_check": FALSE_ALARM, "each_attack": one_run.FALSE_ALARM},
        "contradicted": not all(check.holds for check in checks) or any(e["contradicted"] for e in layers.values()),
    }


def keep(facts: Mapping[str, Any], folder: Path) -> None:
    """Write audit.json and audit.html."""
    (folder / "audit.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    (folder / "audit.html").write_text(render(facts), encoding="utf-8")


def _what(study: Study, silo: Silo, units: int) -> dict[str, Any]:
    training, privacy = study.file.training, study.file.privacy
    return {
        "study": study.file.study.name,
        "study_digest": study.digest,
        "dataset": study.file.simulation.dataset,
        "model": study.file.model.name,
        "optimizer": training.optimizer,
        "clip_norm": privacy.clip_norm,
        "unit": study.unit,
        "silo": silo.name,
        "silo_units": units,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
    }


def _coins(count: int) -> Mask:
    """Return fair coins from the operating system: the mechanism must have no way to know them."""
    bits = np.unpackbits(np.frombuffer(secrets.token_bytes(-(-count // 8)), dtype=np.uint8))
    return bits[:count].astype(np.bool_)


def _layer(name: str, score: NDArray[np.float64], included: Mask, curve: Profile) -> dict[str, Any]:
    guesses = one_run.guess(score, included, max(1, round(_GUESSED[name] * len(score))))
    perfect = Guesses(canaries=guesses.canaries, made=guesses.made, correct=guesses.made)
    return {
        **asdict(guesses),
        "included": int(included.sum()),
        "epsilon_lower_bound": one_run.lower_bound(guesses, DELTA),
        "epsilon_lower_bound_gaussian": one_run.gaussian_lower_bound(guesses, DELTA),
        "most_that_can_be_shown": one_run.gaussian_lower_bound(perfect, DELTA),
        "can_contradict": one_run.contradicts(perfect, curve, one_run.FALSE_ALARM),
        "roc": [list(pair) for pair in one_run.rates(score, included)],
        "contradicted": one_run.contradicts(guesses, curve, one_run.FALSE_ALARM),
    }


def _histogram(values: NDArray[np.floating], claimed: float) -> dict[str, list[float]]:
    """Return how often the untouched coordinates fell into bins of a quarter of the claimed noise, as densities."""
    edges = claimed * np.linspace(-5, 5, 41)
    counts, _ = np.histogram(values, edges)
    density = counts / (values.size * np.diff(edges))
    return {"edges": edges.tolist(), "density": density.tolist()}
