"""Where a study's noise is made, from the least trust in others to no noise at all, and what goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from strategies.base import PerSiloStrategy, Strategy
from strategies.sections import File, Mechanism

_STRICTEST_FIRST: tuple[Mechanism, ...] = get_args(Mechanism)
TRUSTED: dict[Mechanism, str] = {
    "dp-sgd": "nobody",
    "local-gaussian": "nobody",
    "distributed-gaussian": "the masks",
    "central-gaussian": "the server",
}  # outside the silo, of those that are private
_OF_SUMS = ("distributed-gaussian", "central-gaussian")  # the noise is that of the sum


def allowed_by(limit: Mechanism) -> tuple[Mechanism, ...]:
    """Return the mechanisms that a silo allows whose policy says `limit`: it and those that trust fewer.

    With central noise the server holds each exact update, so a bound holds against everybody else. A ledger that states
    it rests on trust in the server, and only the word `central-gaussian` says that there is some: `none` does not.
    """
    allowed = _STRICTEST_FIRST[: _STRICTEST_FIRST.index(limit) + 1]
    return tuple(name for name in allowed if name != "central-gaussian" or limit == name)


def problems(file: File, strategy: Strategy | None) -> Iterator[tuple[str, ...]]:
    """Yield a sentence and the place of each setting that does not go with the mechanism."""
    mechanism = file.privacy.mechanism
    if mechanism in _OF_SUMS and file.strategy.weights != "uniform":
        yield (
            f"strategy.weights = '{file.strategy.weights}' is not allowed with privacy.mechanism = '{mechanism}', "
            "whose noise is measured against a sum of equal weights; write weights = 'uniform' or mechanism = "
            "'local-gaussian'",
            "strategy",
            "weights",
        )
    if mechanism == "central-gaussian" and isinstance(strategy, PerSiloStrategy):
        yield (
            f"strategy.name = '{file.strategy.name}' needs each silo's update by itself, and privacy.mechanism = "
            "'central-gaussian' protects their sum alone; choose a strategy that needs only the sum, such as fedavg(), "
            "or write mechanism = 'local-gaussian'",
            "strategy",
            "name",
        )
    if mechanism.endswith("-gaussian") and strategy is not None and strategy.plain_sgd:
        yield (
            f"strategy.name = '{file.strategy.name}' is not allowed with privacy.mechanism = '{mechanism}': what its "
            "silos keep at home must be what they sent, and here updates are clipped and noised after they are made; "
            "write mechanism = 'dp-sgd'",
            "strategy",
            "name",
        )
    if mechanism == "distributed-gaussian":
        yield from _distributed(file)


def _distributed(file: File) -> Iterator[tuple[str, ...]]:
    if not file.secagg.enabled:
        yield (
            "privacy.mechanism = 'distributed-gaussian' needs secure aggregation, as one silo's share of the noise is "
            "too little by itself; write secagg.enabled = true or mechanism = 'local-gaussian'",
            "privacy",
            "mechanism",
        )
    if file.privacy.accountant != "rdp":
        yield (
            f"privacy.accountant = '{file.privacy.accountant}' is not allowed with mechanism = 'distributed-gaussian': "
            "the bound for sums of discrete Gaussians is one on Rényi divergences; write accountant = 'rdp'",
            "privacy",
            "accountant",
        )
