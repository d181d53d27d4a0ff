"""The entry of a run or a silo for the registry of differential-privacy deployments (NIST and OpenDP), as YAML.

The keys are those of the registry's entries: product, dp_flavor, privacy_loss, model, accounting, implementation. Every
value comes from the report's facts. PyYAML's safe dumper writes it; nothing is ever read with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from strategies.report.guarantee import tier

Facts = Mapping[str, Any]

_INPUT = "add or remove one unit of a silo's records"
_NOTHING = "not stated"


def registry_of_run(facts: Facts) -> str:
    """Return the YAML of a run's report.

    Args:
        facts: as `report_facts` returns them.
    """
    values, run, study = facts["privacy"], facts["run"], facts["study"]
    private = values["mechanism"] != "none"
    numbers = facts["numbers"] or {}
    parameters = [_parameters(numbers)] if private and numbers else []
    return _dump(
        {
            "tier": _tier(numbers),
            "product": {
                "name": run["study"],
                "description": f"federated learning of {study['model']} ({study['task']} on {study['kind']} data)",
                "data_curator": [silo["name"] for silo in facts["silos"]],
                "run": run["id"],
                "study_digest": run["study_digest"],
                "software": f"Fedsilo {run['code']}",
                "date": run["finished"],
            },
            "dp_flavor": _flavor(values["unit"], facts["unprotected"]),
            "privacy_loss": _loss(values["unit"], parameters, values["max_records_per_unit"]),
            "model": {
                **_model("masked sums" if values["secure_aggregation"] else "each silo's update by itself"),
                **_trusted(values["mechanism"]),
            },
            "accounting": {
                "post_processing": "the server's averaging and every use of the model",
                "composition": f"{values['accountant'].upper()} over all releases of the run",
            },
            "implementation": {
                "pre_processing_eda_hyperparameter_tuning": facts["tuning"],
                "mechanisms": [_mechanism(values)],
                "justification": facts["support"],
            },
        }
    )


def _mechanism(values: Facts) -> str:
    if values["mechanism"] == "none":
        return "none"
    noise = f"Gaussian noise of {values['noise_multiplier']} clip norms (L2 {values['clip_norm']}) on "
    if values["silo_level"]:
        return f"{values['mechanism']}: {noise}a silo's whole update, once a round"
    return (
        f"DP-SGD: {noise}a Poisson sample of rate {values['sampling_rate']}, {values['steps_per_round']} steps a round"
    )


def _trusted(mechanism: str) -> dict[str, str]:
    """What differs from noise of each silo's own."""
    if mechanism == "central-gaussian":
        return {
            "name": "central: the server adds the noise to the sum of the silos' clipped updates",
            "actors": "silos (trusted with their own records), server (trusted to add the noise)",
        }
    if mechanism == "distributed-gaussian":
        return {"name": "distributed: each silo adds a share of the noise, and the server sees sums alone"}
    return {}


def registry_of_budget(facts: Facts) -> str:
    """Return the YAML of a silo's budget report: one entry a data root.

    Args:
        facts: as `budget_facts` returns them. Of a ledger that does not verify, no loss is stated.
    """
    verified = facts["ledger"]["verified"]
    return _dump([_entry(facts, root, verified) for root in facts["roots"]])


def _entry(facts: Facts, root: Facts, verified: bool) -> dict[str, Any]:
    numbers, budget = root["numbers"], root["budget"]
    releases = [
        f"Gaussian noise of {event['noise_multiplier']} sensitivities, Poisson sample of rate "
        f"{event['sampling_rate']}, "
        f"{event['steps']} times"
        if event["kind"] == "gaussian"
        else f"{event['what']}, exact"
        + (
            f" in a sum over at least {event['silos']} silos, {event['times']} times"
            if event["kind"] == "summed"
            else ", unprotected"
        )
        for event in root["mechanisms"]
    ]
    parameters = [_parameters(numbers)] if verified else []
    if verified and budget["epsilon"] is not None:
        parameters.append({"kind": "budget", "epsilon": budget["epsilon"], "delta": budget["delta"]})
    return {
        "tier": _tier(numbers) if verified else _NOTHING,
        "product": {
            "name": f"{facts['silo']}: {root['name']}",
            "description": f"{len(root['runs'])} runs of federated learning on one data root",
            "data_curator": [facts["silo"]],
            "ledger": facts["ledger"]["id"],
            "head": facts["ledger"]["head"],
            "software": f"Fedsilo {facts['code']}",
            "date": facts["as_of"] or _NOTHING,
        },
        "dp_flavor": _flavor(root["unit"], facts["unprotected"]),
        "privacy_loss": _loss(root["unit"], parameters, None),
        "model": _model("what each study says"),
        "accounting": {
            "post_processing": "all that is done with what was sent",
            "composition": f"PLD of all entries; gate {budget['gate']}"
            + (f" of order {budget['order']}" if budget["order"] else ""),
        },
        "implementation": {
            "pre_processing_eda_hyperparameter_tuning": facts["tuning"],
            "mechanisms": releases,
            "justification": facts["support"],
        },
    }


def _parameters(numbers: Facts) -> dict[str, Any]:
    return {
        "kind": "released to date",
        "epsilon": "unbounded" if numbers["epsilon_pld"] is None else numbers["epsilon_pld"],
        "delta": numbers["delta"],
        "epsilon_rdp": numbers["epsilon_rdp"],
        "epsilon_without_amplification": numbers["epsilon_without_amplification"],
        "gaussian_mu": numbers["gaussian_mu"],
    }


def _tier(numbers: Facts) -> str:
    value = numbers.get("epsilon_pld")
    return _NOTHING if value is None else tier(value)


def _flavor(unit: str, unprotected: Sequence[str]) -> dict[str, Any]:
    return {
        "name": "approximate differential privacy",
        "input_metric": "symmetric distance between sets of units",
        "bound_on_input_distance": f"1 {unit}",
        "output_measure": "hockey-stick divergence",
        "data_domain": "records as the study's public schema describes them",
        "unprotected_quantities": list(unprotected),
    }


def _loss(unit: str, parameters: Sequence[Facts], records: int | None) -> dict[str, Any]:
    what = "one record" if unit == "record" else f"all records of one value of '{unit}' in one silo"
    return {
        "privacy_unit": unit,
        "privacy_unit_description": f"{what}; {_INPUT}"
        + (f"; {records} of them in a step at most" if records and unit != "record" else ""),
        "privacy_parameters": [dict(one) for one in parameters],
    }


def _model(seen: str) -> dict[str, Any]:
    return {
        "name": "local: each silo adds its noise before anything leaves",
        "actors": f"silos (trusted with their own records), server (sees {seen}; not trusted for privacy)",
        "release_type": "a model update a round, interactive",
        "data_source_type": "static",
        "access_type": "non-interactive for those who receive the model",
    }


def _dump(value: Any) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)
    return text
