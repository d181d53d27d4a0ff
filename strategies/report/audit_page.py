"""The page of an audit: what was measured of a study's mechanism, beside what is claimed for it.

Guarantees: lower bounds are rounded down and the claim up; the page says "no contradiction" and never "proof"; the same
facts give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from strategies.report.declared import CONTRADICTED
from strategies.report.drawing import HALF, INK, MUTED, ONE, TWO, Chart, Size, chart, plot
from strategies.report.numbers import count, delta_text, floor, minute, percent, plain, privacy
from strategies.report.run_rows import row
from strategies.report.template import fill

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Facts = Mapping[str, Any]

_LAYERS = {
    "canaries": "canaries, every noisy sum seen",
    "records": "the silo's own units, the final model's losses seen",
}
_NOT_COVERED = (
    "What leaves beside the updates: metric counts have noise of their own, and masked sums and the ledger are tested "
    "elsewhere.",
    "Faults that move no canary: a record with more influence than its clipped gradient would show here only through "
    "the second attack, which is weak.",
    "Other silos, other machines and later versions: an audit speaks of the code and the machine that it ran on.",
)
_READING = (
    "A canary is a unit of the audit's own with a coordinate that no record touches; its whole gradient lies there, so "
    "that one noisy sum shows noise alone or noise plus one clip norm. It goes through what records go through.",
    "The interval of a check comes from what was measured alone. A check fails a mechanism that is as claimed once in "
    "a hundred thousand times at most, an attack once in a thousand; a bound at 95 % may pass a true claim oftener. Of "
    "shape, quietest step and the largest correlations, the last columns say what chance allows.",
    "The attack knows every noisy sum, more than a server ever sees, and guesses for the tenth of canaries that look "
    "most and the tenth that look least like members. Lower bounds: Steinke et al. 2023 (arXiv 2305.08846), for any "
    "mechanism; Mahloujifar et al. 2024 (arXiv 2410.22235), for Gaussian curves.",
    "One run seldom shows more than about two thirds of a true ε, and of few units next to nothing. A bound far below "
    "the claim is no sign of slack.",
    "The δ of this page is smaller than a study's, for the bounds lose twice the canaries times δ.",
)


def render(facts: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        facts: audit.json.
    """
    claim, own = facts["claim"], facts["canaries"]
    noise = next(check for check in facts["conformance"] if check["name"] == "noise")
    return fill(
        "audit",
        {
            "study": facts["study"],
            "digest": facts["study_digest"],
            "verdict": "contradiction" if facts["contradicted"] else "no contradiction",
            "finished": minute(facts["finished"]),
            "canaries": own["canaries"],
            "alarm": _alarm(facts) if facts["contradicted"] else None,
            "claimed": privacy(claim["epsilon"]),
            "delta": delta_text(claim["delta"]),
            "unit": facts["unit"],
            "bound": floor(own["epsilon_lower_bound"]),
            "gaussian": floor(own["epsilon_lower_bound_gaussian"]),
            "ceiling": floor(own["most_that_can_be_shown"]),
            "noise": plain(noise["measured"]),
            "noise_note": f"{plain(noise['low'])} to {plain(noise['high'])}, claimed {plain(noise['claimed'])}",
            "sentences": [f"{summary(facts)}."],
            "questions": [f"{check['name']}: {check['question']}" for check in facts["conformance"]],
            "not_covered": _NOT_COVERED,
            "conformance": _conformance(facts),
            "attacks": _attacks(facts),
            "charts": {"noise": _noise_chart(facts), "roc": _roc_chart(facts)},
            "audited": _audited(facts),
            "reading": _READING,
        },
    )


def summary(facts: Facts) -> str:
    """Return the outcome in a sentence or two, for this page and for a run's report."""
    claim, own = facts["claim"], facts["canaries"]
    if facts["contradicted"]:
        return f"What was measured contradicts the claim: {', '.join(_failed(facts))}. Nothing may rest on the claim"
    return (
        f"All {len(facts['conformance'])} checks of noise, clipping and sampling hold, and an attack on "
        f"{count(own['canaries'], 'canary').replace('canarys', 'canaries')} that saw every noisy sum of one silo shows "
        f"ε of at least {floor(own['epsilon_lower_bound'])} ({floor(own['epsilon_lower_bound_gaussian'])} for a "
        f"Gaussian curve), of the {privacy(claim['epsilon'])} that is claimed at δ = {delta_text(claim['delta'])}: no "
        "contradiction, which is no proof"
    )


def beside(facts: Facts) -> dict[str, Any]:
    """Return what a run's report says of an audit that stands beside it."""
    return {
        "status": CONTRADICTED if facts["contradicted"] else "run",
        "reason": f"{summary(facts)}; see audit.html beside this page",
        "file": "audit.json",
        "roc": facts["canaries"]["roc"],
    }


def _failed(facts: Facts) -> list[str]:
    found = [f"the check '{check['name']}'" for check in facts["conformance"] if not check["holds"]]
    return found + [f"the attack on {_LAYERS[key]}" for key in _LAYERS if facts[key]["contradicted"]]


def _alarm(facts: Facts) -> dict[str, Any]:
    return {
        "title": "Warning: the claim is contradicted",
        "sentences": (
            f"{summary(facts)}.",
            "Stop the study, keep this folder, and look for what changed: other code, another library, another device.",
        ),
    }


def _conformance(facts: Facts) -> dict[str, Any]:
    return {
        "id": "",
        "label": "Checks",
        "caption": "Measured on coordinates of the audit's own, beside what the accountant was told.",
        "columns": [("Check", ""), ("Measured", ""), ("Interval", ""), ("Claimed", ""), ("Holds", "")],
        "rows": [
            (
                check["name"],
                plain(check["measured"]),
                f"{plain(check['low'])} to {plain(check['high'])}",
                plain(check["claimed"]),
                "yes" if check["holds"] else "NO",
            )
            for check in facts["conformance"]
        ],
    }


def _attacks(facts: Facts) -> dict[str, Any]:
    delta = delta_text(facts["claim"]["delta"])
    return {
        "id": "",
        "label": "Attacks",
        "caption": f"Lower bounds at 95 % confidence and δ = {delta}; claimed is {privacy(facts['claim']['epsilon'])}. "
        "On canaries the attack sees every noisy sum; on records, the silo's own units, the final model's losses.",
        "columns": [
            ("Attack on", ""),
            ("In the data", "by fair coins"),
            ("Guesses right", ""),
            ("ε at least", "any mechanism"),
            ("ε at least", "Gaussian curve"),
            ("Could have shown", "all guesses right"),
            ("Contradicts", "once in 1,000 by chance"),
        ],
        "rows": [
            (
                key,
                f"{facts[key]['included']} of {facts[key]['canaries']}",
                f"{facts[key]['correct']} of {facts[key]['made']}",
                floor(facts[key]["epsilon_lower_bound"]),
                floor(facts[key]["epsilon_lower_bound_gaussian"]),
                floor(facts[key]["most_that_can_be_shown"]),
                "YES" if facts[key]["contradicted"] else "no" if facts[key]["can_contradict"] else "too few to tell",
            )
            for key in _LAYERS
        ],
    }


def _audited(facts: Facts) -> list[dict[str, str]]:
    claim = facts["claim"]
    at_study = f"ε = {privacy(claim['epsilon_at_study_delta'])} at δ = {delta_text(facts['study_delta'])}"
    return [
        row("Data", facts["dataset"], f"{facts['silo']} with {count(facts['silo_units'], 'training unit')}"),
        row("Model", facts["model"], f"trained with {facts['optimizer']}"),
        row("Noise multiplier", plain(claim["noise_multiplier"]), f"clip norm {plain(facts['clip_norm'])}"),
        row("Sampling rate", claim["sampling_rate"], f"{claim['steps']} steps in all"),
        row("Claimed by these steps", at_study, f"per {facts['unit']}"),
        row("Machine", facts["machine"]["processor"], f"torch {facts['machine']['versions']['torch']}"),
    ]


def _noise_chart(facts: Facts) -> Chart:
    """Draw the density of the untouched coordinates and of the noise that is claimed."""
    edges, density = facts["histogram"]["edges"], facts["histogram"]["density"]
    sigma = facts["claim"]["noise_multiplier"]
    points = [edges[0] + (edges[-1] - edges[0]) * i / 200 for i in range(201)]
    size = Size(width=HALF, height=250, top=52)

    def draw(figure: Figure) -> None:
        axes = plot(figure, size, "noisy sum at an untouched coordinate, in clip norms", "density")
        axes.stairs(density, edges, fill=True, color=ONE, alpha=0.35, label="measured")
        claimed = [math.exp(-((x / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi)) for x in points]
        axes.plot(points, claimed, color=TWO, linewidth=2, linestyle=(0, (6, 3)), label="claimed")
        axes.set_xlim(edges[0], edges[-1])
        figure.legend(loc="upper left", ncols=2)

    noise = next(check for check in facts["conformance"] if check["name"] == "noise")
    text = (
        f"Where no canary is, there is noise alone: its standard deviation is {plain(noise['measured'])} clip norms, "
        f"claimed are {plain(noise['claimed'])}."
    )
    return chart("noise", "The noise that was added, in clip norms", text, size, draw)


def _roc_chart(facts: Facts) -> Chart:
    """Draw what the attacks reached under what no attack can pass."""
    size = Size(width=HALF, height=250, top=72)
    looks = {"canaries": (TWO, "-", "canaries"), "records": (INK, (0, (6, 3)), "the silo's own units")}

    def draw(figure: Figure) -> None:
        axes = plot(figure, size, "false-positive rate", "true-positive rate")
        axes.plot(*zip(*facts["roc_bound"], strict=True), color=ONE, linewidth=2.4, label="bound of the claim")
        for key, (colour, style, label) in looks.items():
            axes.plot(*zip(*facts[key]["roc"], strict=True), color=colour, linewidth=1.6, linestyle=style, label=label)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.3, linestyle=(0, (2, 2)), label="blind guess")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        figure.legend(loc="upper left", ncols=2)

    own = facts["canaries"]
    text = (
        f"Of the guesses on canaries {percent(own['correct'] / own['made'])} were right. A curve is made of "
        f"{own['canaries']} canaries or {facts['records']['canaries']} units, so chance can move it; only the bounds "
        "of the table count."
    )
    return chart("audit-roc", f"What the attacks found, per {facts['unit']}", text, size, draw)
