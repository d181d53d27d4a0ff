"""`approve`: what a study would do here, in the words of the person who answers for the data, and the signature."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from client.commands.access import (
    OfficerWord,
    SiloFolder,
    SiloWord,
    Words,
    console,
    open_silo,
    read_study,
    simulated,
)
from strategies.command import Json
from strategies.errors import Refusal, RefusalCode
from strategies.privacy.silo_level import warning

if TYPE_CHECKING:
    from client.silo import Silo
    from strategies.privacy.admission import Admission
    from strategies.study import Study


def approve(
    study: Annotated[Path, typer.Argument(help="The study file, byte for byte as the coordinator will send it.")],
    silo: SiloFolder = None,
    yes: Annotated[bool, typer.Option("--yes", help="Sign without asking.")] = False,
    silo_word: SiloWord = None,
    officer_word: OfficerWord = None,
    as_json: Json = False,
) -> None:
    """Show what a study would do with this silo's data and budget, and approve it with the officer's key.

    With --json and without --yes nothing is asked and nothing signed.
    """
    from client.approval import admit
    from client.approval import approve as sign
    from client.keys import officer_key

    parsed = read_study(study)
    found = open_silo(silo)
    words = Words(silo=silo_word, officer=officer_word)
    _record_policy(found, words)
    root = found.root()[0]
    with found.ledger() as ledger:
        ledger.require_usable()
        whole = ledger.balance(root).admission(parsed)
    _require_limits(found, parsed)
    facts = describe(found, parsed, whole)
    if not as_json:
        _show(facts)
    if not whole.fits:
        raise Refusal(RefusalCode.BUDGET, whole.sentence(f"at silo {found.name}"))
    signed = None
    if yes or (not as_json and typer.confirm("approve this study with the officer's key?", default=False)):
        word = None if simulated(found) else words.ask("officer")
        key = officer_key(found.folder / "keys", word, simulated=simulated(found))
        signed = sign(found, parsed, key)
        admit(found, parsed)  # what was written is what every request will be held to
    if as_json:
        print(json.dumps({**facts, "approved": None if signed is None else str(signed)}))
    elif signed is None:
        console().print("not approved; nothing was signed")
        raise typer.Exit(1)
    else:
        console().print(f"approved: {signed}", soft_wrap=True)


def _require_limits(silo: Silo, study: Study) -> None:
    """Raise for everything but a missing approval, which this command is about to make."""
    from dataclasses import replace

    from client.approval import admit

    require = silo.policy.require.model_copy(update={"approval": "automatic"})
    admit(replace(silo, policy=silo.policy.model_copy(update={"require": require})), study)


def _record_policy(silo: Silo, words: Words) -> None:
    """Record a changed policy where the silo's passphrase is at hand; else the next round does."""
    from dataclasses import replace

    word = None if simulated(silo) else words.given("silo")
    if simulated(silo) or word:
        with replace(silo, passphrase=word).ledger() as ledger:
            ledger.policy(silo.policy.sha256)


def describe(silo: Silo, study: Study, whole: Admission) -> dict[str, Any]:
    """Return what a study would do at a silo, as plain values."""
    root, place = silo.root()
    file = study.file
    return {
        "study": file.study.name,
        "digest": study.digest,
        "data_root": root,
        "path": str(silo.folder / place.path),
        "kind": file.data.kind,
        "columns": _columns(study),
        "unit": study.unit,
        "records_per_unit": file.data.max_records_per_unit,
        "model": file.model.name,
        "initial": file.model.initial_sha256,
        "strategy": file.strategy.name,
        "rounds": file.study.rounds,
        "releases_per_round": _releases(study),
        "secagg": file.secagg.enabled,
        "mechanism": file.privacy.mechanism,
        "warning": warning(study, file.cohort.min_silos),
        "max_colluding": file.secagg.max_colluding,
        "silos": _known(silo),
        "gate": whole.root.gate,
        "order": whole.root.order,
        "delta": whole.root.delta,
        "budget": _finite(whole.budget),
        "epsilon": {
            "pld_study": _finite(whole.pld_alone),
            "pld_to_date": _finite(whole.pld_after),
            "gate_before": _finite(whole.before),
            "gate_to_date": _finite(whole.after),
        },
        "fits": whole.fits,
        "largest_epsilon": whole.largest_epsilon,
        "rounds_that_fit": whole.rounds,
        "policy": silo.policy.sha256,
    }


def _columns(study: Study) -> list[str]:
    """Return what of the files is read, as the study calls it."""
    from client.data.tabular import columns_of

    data = study.file.data
    if data.kind == "tabular":
        return columns_of(study)
    own: dict[str, list[str | None]] = {
        "text": [data.text],
        "sequences": [data.record, data.time, data.event, data.value, *data.features],
    }
    target = data.target or "labels"
    return list(dict.fromkeys(name for name in (*own.get(data.kind, [data.kind]), target, data.unit) if name))


def _releases(study: Study) -> list[str]:
    training, privacy = study.file.training, study.file.privacy
    noise = f"noise {study.noise_multiplier:g} x clip norm {privacy.clip_norm:g}"
    found = [
        {
            "dp-sgd": f"one model update: {training.steps} steps, each with {noise} on a sample of rate "
            f"{training.sampling_rate:g}",
            "local-gaussian": f"one model update, clipped as a whole, with {noise}",
            "distributed-gaussian": f"one model update, clipped as a whole, with a share of {noise} under its mask",
            "central-gaussian": f"one model update, clipped as a whole, EXACT: the server is trusted to add {noise} "
            "to the sum",
            "none": "one model update WITHOUT differential privacy",
        }[privacy.mechanism]
    ]
    if study.release == "noisy":
        found.append(f"metric counts with noise {study.file.evaluation.noise_multiplier:g} x their sensitivity")
    elif study.release == "masked":
        found.append(
            f"metric counts of the held-out units WITHOUT noise, in a sum over at least {study.file.cohort.min_silos} "
            "silos"
        )
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4f}"


def _show(facts: dict[str, Any]) -> None:
    table = Table(title=f"study {facts['study']}", title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    epsilon, columns = facts["epsilon"], facts["columns"]
    unit = facts["unit"] + (
        f", of each at most {facts['records_per_unit']} records" if facts["unit"] != "record" else ""
    )
    gate = f"gate rdp at order {facts['order']:g}" if facts["gate"] == "rdp" else "gate preregistered"
    rows = [
        ("digest", facts["digest"]),
        ("reads", f"{facts['data_root']}: {facts['path']} ({facts['kind']})"),
        (f"{len(columns)} columns", ", ".join(columns)),
        ("protects", unit),
        ("model", facts["model"] + (f", starting from {facts['initial']}" if facts["initial"] else "")),
        ("strategy", f"{facts['strategy']}, {facts['rounds']} rounds"),
        ("leaves each round", "; ".join(facts["releases_per_round"])),
        ("seen by the server", _seen(facts)),
        *([("in a sum with", ", ".join(facts["silos"]) or "no roster is known here")] if facts["secagg"] else []),
        ("this study, PLD", f"epsilon {_number(epsilon['pld_study'])} at delta {facts['delta']:g}, at worst"),
        ("all to date, PLD", f"epsilon {_number(epsilon['pld_to_date'])} with it"),
        (
            "all to date, gate",
            f"epsilon {_number(epsilon['gate_to_date'])} with it ({_number(epsilon['gate_before'])} before) of "
            f"{_number(facts['budget'])}; {gate}",
        ),
        ("fits", "yes, to its end" if facts["fits"] else "NO"),
        ("would fit at most", _at_most(facts)),
        *([("warning", facts["warning"])] if facts["warning"] else []),
    ]
    for row in rows:
        table.add_row(*row)
    console().print(table)


def _known(silo: Silo) -> list[str]:
    """Return the silos of the roster as it is known here: with masks, the approval is for sums over these alone."""
    from client.enrolment import roster_of

    roster = roster_of(silo.folder)
    return sorted(roster.members) if roster else []


def _seen(facts: dict[str, Any]) -> str:
    if not facts["secagg"]:
        return "this silo's own update"
    exact = "exact " * (facts["mechanism"] == "central-gaussian")
    return f"only {exact}sums over silos, as long as at most {facts['max_colluding']} of them collude with it"


def _at_most(facts: dict[str, Any]) -> str:
    rounds = f"{facts['rounds_that_fit']} rounds with this noise"
    largest = facts["largest_epsilon"]
    return f"{rounds}, or privacy.epsilon = {largest:g} for {facts['rounds']} rounds" if largest else rounds
