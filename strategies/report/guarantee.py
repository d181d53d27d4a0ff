"""What a list of releases guarantees, in all the numbers that a report must give (run and budget report share it).

Sources: NIST SP 800-226 (epsilon, delta, unit); TensorFlow Privacy's statement (with and without amplification); Gomez
et al. 2025 (mu-GDP and the whole curve).

Guarantees: every number is an upper bound, rounded up; None stands for a loss that is not bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from strategies.privacy.accountant import epsilon, round_up
from strategies.privacy.events import Event, merge
from strategies.privacy.profile import gaussian_fit, profile

FALSE_POSITIVES = 0.01  # at which the true-positive rate is stated
_RATES = (0.0, 0.001, 0.005, FALSE_POSITIVES, 0.02, 0.05, *(i / 20 for i in range(2, 21)))


def odds(value: float) -> float:
    """Return the probability to which an observer's 50:50 belief about one unit can rise, e^eps / (1 + e^eps), rounded
    up to 4 decimals."""
    return round_up(1.0 / (1.0 + math.exp(-value)) if math.isfinite(value) else 1.0)


def finite(value: float) -> float | None:
    """Return the number, or None for an infinite one."""
    return value if math.isfinite(value) else None


def tier(value: float) -> str:
    """Return the word for an epsilon (Ponomareva et al. 2023, section 5): strong to 1, reasonable to 10, else weak."""
    return "strong" if value <= 1 else "reasonable" if value <= 10 else "weak"


def guarantee(events: Iterable[Event], delta: float) -> dict[str, Any]:
    """Return the numbers of everything in `events` together.

    Args:
        events: releases on one data set.
        delta: of every epsilon.

    Raises:
        AccountingError: a number cannot be computed.
    """
    merged = merge(events)
    pld = epsilon(merged, delta)
    curve = profile(merged, delta)
    fit = gaussian_fit(curve, delta) if curve else None
    return {
        "delta": delta,
        "epsilon_pld": finite(pld),
        "epsilon_rdp": finite(epsilon(merged, delta, accountant="rdp")),
        "epsilon_without_amplification": finite(epsilon(merged, delta, amplification=False)),
        "epsilon_replace_one": finite(epsilon(merged, delta, neighbouring="replace-one")),
        "odds": odds(pld),
        "gaussian_mu": fit.mu if fit else None,
        "gaussian_error": fit.error if fit else None,
        "guess": curve.guess if curve else None,
        "false_positive_rate": FALSE_POSITIVES,
        "true_positive_rate": curve.power(FALSE_POSITIVES) if curve else None,
        "profile": [list(pair) for pair in curve.pairs] if curve else None,
        "roc": [[rate, curve.power(rate)] for rate in _RATES] if curve else None,
    }


def gate_fixed(delta: float, order: float | None) -> float:
    """Return the part of a gate's epsilon that the first release pays and no later one; 0 without an order."""
    return math.log1p(-1 / order) - math.log(delta * order) / (order - 1) if order and order > 1 else 0.0


def gate_share(spent: float, budget: float, delta: float, order: float | None) -> float:
    """Return the part of a budget that is spent, in the measure in which releases add up; above 1 when over-spent.

    A Rényi gate of one order turns the sum of divergences D into epsilon = D - ln(delta order) / (order - 1) +
    ln(1 - 1 / order) (Balle et al. 2020; dp-accounting), of which all but D is the same after the first release and
    after the last. The share is D over the D that the budget allows. Without an order (a preregistered plan) it is
    that of the two epsilons.

    Args:
        spent: epsilon as the gate counts; 0 before the first release.
        budget: epsilon of the budget.
        delta: of both.
        order: of the gate, or None.
    """
    if spent <= 0:
        return 0.0
    fixed = gate_fixed(delta, order)
    most = budget - fixed
    return max(0.0, spent - fixed) / most if most > 0 else math.inf


def part_of_total(before: float, after: float) -> dict[str, float | None]:
    """Return one part of a total that is built up: where it starts and ends and what it adds, with 4 decimals each."""
    adds = max(0.0, round(after - before, 4)) if math.isfinite(after) else math.inf
    return {"from": finite(before), "to": finite(after), "adds": finite(adds)}


def bars_of(facts: dict[str, Any]) -> Sequence[tuple[str, float]]:
    """Return label and epsilon of each way to count the same releases, those that are bounded."""
    ways = {
        "PLD (the claim's)": "epsilon_pld",
        "RDP": "epsilon_rdp",
        "PLD, replace one": "epsilon_replace_one",
        "PLD, no amplification": "epsilon_without_amplification",
    }
    return [(label, facts[key]) for label, key in ways.items() if facts[key] is not None]
