"""The tables of a run's report: mechanism, simulation, identity, what was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strategies.report.numbers import NOTHING, count, delta_text, minute, plain, privacy

Facts = Mapping[str, Any]


def row(name: str, value: object, note: str = "") -> dict[str, str]:
    """Return a line of a table of pairs."""
    return {"name": name, "value": str(value), "note": note}


def mechanism_rows(facts: Facts, private: bool) -> list[dict[str, str]]:
    """Return how the privacy is made."""
    values, run = facts["privacy"], facts["run"]
    at = f"at δ = {delta_text(values['delta'])}, per {values['unit']}"
    notes = (facts.get("simulation") or {}).get("read_off_the_data", ())
    read_off = any("expected_batch_size" in note for note in notes)
    steps = row(
        "Steps",
        f"{values['steps_per_round']} in each round",
        f"{values['steps_per_round'] * run['rounds_planned']} in the {run['rounds_planned']} planned rounds",
    )
    size = values["expected_batch_size"]
    batch = row(
        "Expected batch size",
        NOTHING if size is None else plain(size),
        "read off the data: not private" if read_off else "a public number of the study",
    )
    masked = (
        row("Secure aggregation", "on")
        if values["secure_aggregation"]
        else row(
            "Secure aggregation", "off", f"the server sees each silo's update{', protected by its noise' * private}"
        )
    )
    rows = [
        row("Mechanism", values["mechanism"]),
        row("Sampling rate", values["sampling_rate"], "of each step"),
        steps,
        batch,
        masked,
    ]
    if not private:
        return [*rows, *_counts(facts)]
    target, planned, whole = values["target_epsilon"], values["epsilon_if_completed"], values["silo_level"]
    unit = (
        []
        if values["unit"] == "record" or whole
        else [row(f"Records of one {values['unit']}", f"{values['max_records_per_unit']} at most", "clipped as one")]
    )
    return [
        row(
            "Mechanism",
            values["mechanism"],
            "Gaussian noise on a sum of clipped " + ("updates" if whole else "gradients"),
        ),
        row("Noise multiplier", values["noise_multiplier"], "standard deviation of the noise / clip norm"),
        row("Clip norm", values["clip_norm"], f"L2, of each {'silo in each round' if whole else 'unit in each step'}"),
        *_whole(facts),
        *unit,
        *rows[1:4],
        row("Sampling as implemented", values["sampling"]),
        row("Source of noise", values["noise"]),
        row("Floating point", values["floating_point"]),
        row(
            "Accountant",
            values["accountant"].upper(),
            "privacy loss distributions (PLD) are tight; Rényi differential privacy (RDP) is the looser second opinion",
        ),
        row("ε if all rounds run", privacy(planned), at),
        row(
            "ε asked for",
            NOTHING if target is None else privacy(target),
            "the study sets the noise multiplier instead" if target is None else at,
        ),
        *_counts(facts),
        masked,
    ]


def _whole(facts: Facts) -> list[dict[str, str]]:
    """What there is to say where a silo's whole update is noised."""
    values, whole = facts["privacy"], facts["privacy"]["silo_level"]
    if not whole:
        return []
    return [
        row(
            "Charged for one unit",
            f"noise multiplier {plain(whole['unit_noise_multiplier'])}, once a round",
            "one unit can move a silo's clipped update from any end of the ball to any other, twice the clip norm; no "
            "sample amplifies",
        ),
        row(
            "ε of a silo's updates",
            privacy(whole["epsilon"]),
            f"at δ = {delta_text(values['delta'])}, neighbours: one silo's updates are zero; against the same observer",
        ),
        row(
            "Noise of a round's mean",
            plain(whole["noise_on_mean"]),
            f"standard deviation on each parameter, with {count(whole['silos'], 'silo')} a round",
        ),
    ]


def _counts(facts: Facts) -> list[dict[str, str]]:
    """The release of metric counts, if the study has one."""
    counted, values = facts.get("evaluation"), facts["privacy"]
    if not counted:
        return []
    return [
        row(
            "Metric counts",
            f"{counted['counts']} of each model, noise multiplier {plain(counted['noise_multiplier'])}",
            f"one {values['unit']} moves them by at most {plain(counted['sensitivity'])} (L2); all releases of counts "
            f"alone: ε = {privacy(counted['epsilon'])} at δ = {delta_text(values['delta'])}, per {values['unit']}; "
            "every ε on this page that speaks of the run has them in it",
        )
    ]


def simulation_rows(facts: Facts | None) -> dict[str, Any] | None:
    """Return how the silos were made; None outside a simulation."""
    if not facts:
        return None
    dropout = facts["dropout"]
    return {
        "notes": facts["read_off_the_data"],
        "rows": [
            row("Data set", facts["dataset"]),
            row("Partition", facts["partition"], f"into {count(facts['silos'], 'silo')}"),
            row("Engine", facts["engine"]),
            row("Simulated dropout", plain(dropout), "chance of a silo to miss a round"),
            row("Test records", facts["test_records"]),
            row(
                "Ledger durability",
                facts["durability"],
                "survives a crash of the program, not a loss of power" if facts["durability"] == "process" else "",
            ),
        ],
    }


def identity_rows(run: Facts) -> list[dict[str, str]]:
    """Return what the page speaks of."""
    return [
        row("Run", run["id"]),
        row("Study digest", run["study_digest"], "SHA-256 of the study file"),
        row("Manifest digest", run["manifest_digest"], "SHA-256 of what the silos agreed on"),
        row("Code version", run["code"]),
        row("Model before", run["model_in"] or NOTHING, "SHA-256 of the weights before the first round"),
        row("Model after", run["model_out"] or NOTHING, "SHA-256 of the weights after the last finished round"),
        row("Started", minute(run["started"])),
        row("Finished", minute(run["finished"])),
    ]


def trained_rows(study: Facts) -> list[dict[str, str]]:
    """Return what was trained."""
    target = [] if study["target"] is None else [row("Target", study["target"])]
    return [
        row("Task", study["task"], f"on {study['kind']} data"),
        *target,
        row("Features", study["features"]),
        row("Model", study["model"], count(study["parameters"], "parameter")),
        row("Strategy", study["strategy"], f"{study['weights']} weights"),
        row("Optimizer", study["optimizer"]),
    ]
