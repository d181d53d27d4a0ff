"""Which charts a data root has in the budget report: facts in, charts out, each with the reason where it is absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strategies.report.drawing import Chart
from strategies.report.guarantee import bars_of
from strategies.report.numbers import delta_text, percent, percent_left, plain
from strategies.report.privacy_charts import (
    budget_bar,
    growth_chart,
    profile_chart,
    roc_chart,
    steps_chart,
    ways_chart,
)

Facts = Mapping[str, Any]


def root_charts(root: Facts, identity: str) -> dict[str, Chart]:
    """Return the charts of one data root by name: bar, growth, profile, roc, steps, ways.

    Args:
        root: its facts.
        identity: distinct on the page.
    """
    at = f"at δ = {delta_text(root['budget']['delta'])}, per {root['unit']}"
    titles = {
        "bar": f"Budget: committed, reserved and free ({at})",
        "growth": f"ε after each reservation ({at})",
        "profile": f"Every pair of ε and δ, per {root['unit']}",
        "roc": f"What any attack can find, per {root['unit']}",
        "steps": f"ε by run and kind of release ({at})",
        "ways": f"ε of the same releases, counted otherwise ({at})",
    }
    charts = {name: Chart(key=f"{identity}-{name}", title=title, reason=_why(root)) for name, title in titles.items()}
    if root["spent"]["share"] is not None:
        charts["bar"] = _bar(root, f"{identity}-bar", titles["bar"])
    elif root["limit"]["epsilon"] is None:
        charts["bar"] = Chart(key=f"{identity}-bar", title=titles["bar"], reason="The budget has no limit.")
    numbers = root["numbers"]
    if numbers["profile"] is None:
        return charts
    growth = [(point["reservations"], point["epsilon_pld"], point["epsilon_gate"]) for point in root["growth"]]
    stated = (numbers["false_positive_rate"], numbers["true_positive_rate"])
    steps = _steps(root)
    return charts | {
        "growth": growth_chart(f"{identity}-growth", titles["growth"], growth, root["limit"]["epsilon"]),
        "profile": profile_chart(
            f"{identity}-profile", titles["profile"], numbers["profile"], (numbers["epsilon_pld"], numbers["delta"])
        ),
        "roc": roc_chart(f"{identity}-roc", titles["roc"], numbers["roc"], stated),
        "ways": ways_chart(f"{identity}-ways", titles["ways"], bars_of(numbers)),
        "steps": steps_chart(f"{identity}-steps", titles["steps"], steps)
        if len(steps) > 1
        else Chart(
            key=f"{identity}-steps",
            title=titles["steps"],
            reason="There is one run with one kind of release, so there is nothing to divide.",
        ),
    }


def _why(root: Facts) -> str:
    if not root["mechanisms"]:
        return "Nothing was reserved on these records."
    return "Something was released without protection, so no ε is bounded."


def _bar(root: Facts, key: str, title: str) -> Chart:
    spent = root["spent"]
    measure = (
        f"the Rényi divergence at order {plain(root['budget']['order'])}, in which releases add up"
        if root["budget"]["gate"] == "rdp"
        else "the plan's ε"
    )
    text = (
        f"{percent(spent['committed'])} committed, {percent(spent['reserved'])} reserved, "
        f"{percent_left(spent['free'])} free, as the gate counts: by {measure}. Lines at 80 % and 100 %."
    )
    return budget_bar(key, title, (spent["committed"], spent["reserved"], spent["free"]), text)


def _steps(root: Facts) -> list[tuple[str, float, float]]:
    """Label each part of the waterfall by its run, and by its kind where the run has several."""
    runs = [step["run"] for step in root["steps"]]
    return [
        (_label(step, several=runs.count(step["run"]) > 1), step["from"], step["to"])
        for step in root["steps"]
        if step["to"] is not None
    ]


def _label(step: Facts, *, several: bool) -> str:
    run = step["run"][:8] or "restored"
    if not several:
        return run
    kind = "sampled" if step["event"]["sampling_rate"] < 1 else "unsampled"
    return f"{run} {kind}, σ {plain(step['event']['noise_multiplier'])}"
