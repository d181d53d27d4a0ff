"""Events to epsilon, and epsilon to the noise that keeps it.

Reported numbers come from privacy loss distributions (PLD: Koskela et al. 2020; Doroshenko et al. 2022, "Connect
the dots"; Google's dp-accounting), pessimistic in both directions of add-or-remove-one. Rényi DP (Mironov 2017,
Mironov et al. 2019) is the second opinion. dp-accounting is used because importing it loads no torch.

Guarantees: every number is rounded up; anything that is not a finite, sound number raises `AccountingError`,
so nothing is trained on an epsilon that is not known (fail closed).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import repeat
from typing import Any, Literal

from strategies.errors import AccountingError, SettingError
from strategies.privacy.events import Event, Exact, Gaussian, merge
from strategies.privacy.losses import Neighbouring, gaussian_losses

Accountant = Literal["pld", "rdp"]

DIGITS = 4  # decimals of a reported epsilon and of a calibrated noise multiplier, both rounded up
_FINE, _FINEST, _COARSE = 1e-4, 1e-5, 1e-3  # discretisation of the privacy loss
_LONG_RUN, _SMALL_EPSILON = 100_000, 0.1  # beyond these the finest grid is used
_LARGEST_NOISE = 1e6


def epsilon(
    events: Iterable[Event],
    delta: float,
    *,
    accountant: Accountant = "pld",
    neighbouring: Neighbouring = "add-or-remove-one",
    amplification: bool = True,
) -> float:
    """Return the epsilon of all events together at `delta`, rounded up to 4 decimals.

    Args:
        events: heterogeneous releases on one data set, in any order.
        delta: in (0, 1).
        accountant: `pld` (tight) or `rdp` (looser).
        neighbouring: what a unit's presence means; `replace-one` is PLD only.
        amplification: False accounts each release as if every unit were in each sample.

    Returns:
        0 for no events, `inf` when an exact quantity was released.

    Raises:
        AccountingError: the number cannot be computed or is not sound.
    """
    _check_delta(delta)
    merged = merge(events)
    if any(isinstance(event, Exact) for event in merged):
        return math.inf
    gaussians = tuple(event for event in merged if isinstance(event, Gaussian))
    if not amplification and gaussians:
        gaussians = (_together(gaussians),)
    if not gaussians:
        return 0.0
    if accountant == "rdp":
        if neighbouring != "add-or-remove-one":
            raise AccountingError("the RDP accountant speaks of add-or-remove-one alone; use accountant = 'pld'")
        return round_up(_rdp_epsilon(gaussians, delta))
    return round_up(_pld_epsilon(gaussians, delta, neighbouring))


def epsilon_at_order(events: Iterable[Event], delta: float, order: float) -> float:
    """Return the epsilon that Rényi DP of one fixed order gives, the quantity that a budget gate may rest on.

    "Stop when this exceeds the budget" stays valid when later releases depend on earlier ones (Feldman & Zrnic
    2021, "Individual privacy accounting via a Rényi filter"; Haney et al. 2023), because the order is fixed.

    Raises:
        AccountingError: the number cannot be computed or is not sound.
    """
    _check_delta(delta)
    if not 1 < order < math.inf:
        raise AccountingError(f"order = {order} is not allowed: it must be a number above 1")
    merged = merge(events)
    if any(isinstance(event, Exact) for event in merged):
        return math.inf
    gaussians = tuple(event for event in merged if isinstance(event, Gaussian))
    return round_up(_converted(gaussians, delta, (order,))) if gaussians else 0.0


def calibrate(
    target_epsilon: float,
    delta: float,
    *,
    sampling_rate: float,
    steps: int,
    accountant: Accountant = "pld",
    beside: tuple[Event, ...] = (),
) -> float:
    """Return the smallest noise multiplier (4 decimals, rounded up) whose epsilon is at most the target.

    Args:
        target_epsilon: for all steps and what is released beside them, together.
        delta: in (0, 1).
        sampling_rate: of each step.
        steps: of the whole study.
        accountant: `pld` (tight) or `rdp` (looser).
        beside: other releases of the study, whose noise is fixed.

    Raises:
        SettingError: the target is not positive, no noise multiplier below 1e6 reaches it, or `beside` alone is
            above it.
        AccountingError: as in `epsilon`.
    """
    if not (math.isfinite(target_epsilon) and target_epsilon > 0):
        raise SettingError(f"privacy.epsilon = {target_epsilon} is not allowed: it must be a positive number")
    _check_delta(delta)
    alone = epsilon(beside, delta, accountant=accountant)
    if alone > target_epsilon:
        raise SettingError(
            f"privacy.epsilon = {target_epsilon} leaves nothing for training: the metric counts alone cost epsilon "
            f"{alone} at delta {delta}; raise evaluation.noise_multiplier or privacy.epsilon, or lower study.rounds"
        )
    return _calibrate(float(target_epsilon), delta, sampling_rate, steps, accountant, merge(beside))


@lru_cache(maxsize=256)
def _calibrate(
    target: float, delta: float, rate: float, steps: int, accountant: Accountant, beside: tuple[Event, ...]
) -> float:
    unit = 10**DIGITS

    def cost(ticks: int, *, coarse: bool) -> float:
        if ticks > _LARGEST_NOISE * unit:
            raise SettingError(
                f"privacy.epsilon = {target} cannot be kept over {steps} steps at sampling rate {rate}; raise it, "
                "or lower study.rounds, training.steps or training.sampling_rate"
            )
        training = Gaussian(noise_multiplier=ticks / unit, sampling_rate=rate, steps=steps)
        events = tuple(event for event in merge((training, *beside)) if isinstance(event, Gaussian))
        if accountant == "rdp":
            return _rdp_epsilon(events, delta)
        if coarse:
            return _pld_compose(events, delta, "add-or-remove-one", _COARSE)
        return _pld_epsilon(events, delta, "add-or-remove-one")

    near = _first(lambda ticks: cost(ticks, coarse=True), target, start=unit)  # the quicker grid
    return float(_first(lambda ticks: cost(ticks, coarse=False), target, start=near) / unit)


def _first(cost: Callable[[int], float], target: float, *, start: int) -> int:
    """Return the smallest positive whole number whose cost, which falls, is at most the target.

    Costs fall about like a power, so the next number to try is where the line through the two nearest ones in
    logarithms meets the target, then its neighbour on the other side; every fourth is the middle, which bounds the
    number of tries.
    """
    low, high, above, below = 0, 0, math.inf, 0.0  # low is too small (cost `above`), high is enough (cost `below`)
    tried, at = 0, start
    while high == 0 or high - low > 1:
        value = cost(at)
        enough = value <= target
        low, above, high, below = (low, above, at, value) if enough else (at, value, high, below)
        tried += 1
        if high == 0:
            at = math.ceil(low * min(max(value / target, 1.0 + 2.0**-16), 4.0)) + 1
        elif tried % 4 == 0:
            at = (low + high) // 2
        elif low == 0:
            at = math.floor(high * min(max(value / target, 0.25), 1.0 - 2.0**-16))
        elif tried % 2 == 1 and high - low < 64:
            at = high - 1 if enough else low + 1
        else:
            share = math.log(above / target) / math.log(above / below) if 0 < below < above < math.inf else 0.5
            at = round(low * (high / low) ** share)
        at = max(low + 1, at if high == 0 else min(high - 1, at))
    return high


def round_up(value: float, digits: int = DIGITS) -> float:
    """Return the least number of `digits` decimals that is not below `value`; an infinite value stays infinite.

    Raises:
        AccountingError: the value is NaN or negative.
    """
    if math.isnan(value) or value < 0:
        raise AccountingError(f"the privacy loss came out as {value}; it must be a number of at least 0")
    if math.isinf(value):
        return value
    numerator, denominator = value.as_integer_ratio()  # whole numbers: no product overflows or is rounded
    scaled = -(-numerator * 10**digits // denominator)
    if (scaled - 1) / 10**digits >= value:  # the value is itself the float of a decimal
        scaled -= 1
    return float(scaled / 10**digits)


def _together(gaussians: Iterable[Gaussian]) -> Gaussian:
    """Return the one release that costs what all of them cost when every unit is in every sample.

    Gaussian releases of one sum compose to a Gaussian release: the squares of 1 / noise multiplier add up (Dong, Roth
    & Su 2022, "Gaussian differential privacy", corollary 3.3). Its noise multiplier is rounded down.
    """
    squares = math.fsum(event.steps / event.noise_multiplier**2 for event in gaussians)
    noise = math.nextafter(1 / math.sqrt(squares), 0.0) if 0 < squares < math.inf else 0.0
    return Gaussian(noise_multiplier=noise)  # 0 is refused


def _check_delta(delta: float) -> None:
    if not (isinstance(delta, float) and 0 < delta < 1):
        raise AccountingError(f"delta = {delta} is not allowed: it must be a number between 0 and 1")


# --- privacy loss distributions -----------------------------------------------------------------------------


def _pld_epsilon(events: tuple[Gaussian, ...], delta: float, neighbouring: Neighbouring) -> float:
    fine = _FINEST if sum(event.steps for event in events) > _LONG_RUN else _FINE
    value = _pld_compose(events, delta, neighbouring, fine)
    if fine == _FINE and value < _SMALL_EPSILON:
        value = min(value, _pld_compose(events, delta, neighbouring, _FINEST))
    return value


@lru_cache(maxsize=512)
def _pld_compose(events: tuple[Gaussian, ...], delta: float, neighbouring: Neighbouring, interval: float) -> float:
    with _fail_closed("PLD", events):
        total = composed(events, neighbouring=neighbouring, interval=interval)
        value = float(total.get_epsilon_for_delta(delta)) if total is not None else 0.0
    return _sound(value, "PLD", events, delta)


@lru_cache(maxsize=8)
def composed(
    events: tuple[Gaussian, ...], *, neighbouring: Neighbouring = "add-or-remove-one", interval: float = _COARSE
) -> Any:
    """Return dp-accounting's privacy loss distribution of all events together, pessimistic; None for no events.

    Args:
        events: merged.
        neighbouring: what a unit's presence means.
        interval: step of the grid of losses; it is widened where there is little noise.
    """
    total = None
    interval *= _widening(min((event.noise_multiplier for event in events), default=1.0))
    for event in events:
        part = _pld_of_one(event.noise_multiplier, event.sampling_rate, neighbouring, interval)
        part = part.self_compose(event.steps) if event.steps > 1 else part
        total = part if total is None else total.compose(part)
    return total


def _widening(noise_multiplier: float) -> float:
    """Return by how much the grid is widened when there is little noise, a power of ten.

    The privacy loss then is of the size 1 / (2 sigma^2), and so are time and memory of a grid of fixed step. A wider
    grid is still an upper bound (the distribution is pessimistic at every step); its error is small beside the loss.
    """
    return 10.0 ** max(0, math.ceil(math.log10(0.1 / noise_multiplier**2)))


_pld_of_one = lru_cache(maxsize=64)(gaussian_losses)


# --- Rényi differential privacy -----------------------------------------------------------------------------

_DEFAULT_ORDERS: tuple[float, ...] = ()  # dp-accounting's own list


@lru_cache(maxsize=1024)
def _rdp_epsilon(events: tuple[Gaussian, ...], delta: float) -> float:
    return _converted(events, delta, _DEFAULT_ORDERS)


def _converted(events: tuple[Gaussian, ...], delta: float, orders: tuple[float, ...]) -> float:
    parts = [(event.steps, _rdp_of_one(event.noise_multiplier, event.sampling_rate, orders)) for event in events]
    # Summed as dp-accounting sums, but one event costs the same after any number of rounds: a gate asks every round.
    divergences = [sum(steps * part[i] for steps, part in parts) for i in range(len(parts[0][1]))]
    # A numerically negative RDP would be turned into epsilon = 0 by the conversion: it must not pass.
    if any(math.isnan(value) or value < 0 for value in divergences) or not any(map(math.isfinite, divergences)):
        raise AccountingError(f"the Rényi divergences of {events} are not sound numbers; no epsilon is reported")
    each = map(_at_order, orders or _default_orders(), divergences, repeat(delta))
    return _sound(min(each), "RDP", events, delta)


def _at_order(order: float, divergence: float, delta: float) -> float:
    """Return the epsilon of one Rényi divergence (Canonne, Kamath & Steinke 2020, proposition 12).

    dp-accounting's conversion, without its arrays: the gate asks in front of every entry of the ledger.
    """
    if not divergence >= 0:  # no number, or one that is not sound: nothing is bounded
        return math.inf
    if delta**2 + math.expm1(-divergence) > 0:  # delta alone covers it: total variation by the KL divergence
        return 0.0
    if order <= 1.01:  # the bound is not stable so near to 1
        return math.inf
    return max(0.0, divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1))


@lru_cache(maxsize=1)
def _default_orders() -> tuple[float, ...]:
    from dp_accounting.rdp import rdp_privacy_accountant

    return tuple(rdp_privacy_accountant.DEFAULT_RDP_ORDERS)


@lru_cache(maxsize=256)
def _rdp_of_one(noise_multiplier: float, rate: float, orders: tuple[float, ...]) -> tuple[float, ...]:
    """Return the Rényi divergence of one step at each order."""
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    step = Gaussian(noise_multiplier=noise_multiplier, sampling_rate=rate)
    with _fail_closed("RDP", (step,)), _quiet():
        accountant = RdpAccountant(orders=list(orders) or None)
        one = dp_event.GaussianDpEvent(noise_multiplier)
        accountant.compose(dp_event.PoissonSampledDpEvent(rate, one))
    return tuple(float(value) for value in accountant._rdp)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence dp-accounting's notes on orders that it leaves out: fewer orders only make epsilon larger."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _fail_closed(accountant: str, events: tuple[Gaussian, ...]) -> Iterator[None]:
    try:
        yield
    except (ArithmeticError, ValueError, MemoryError) as error:
        raise AccountingError(f"{accountant} cannot account for {events} ({error}); no epsilon is reported") from None


def _sound(value: float, accountant: str, events: tuple[Gaussian, ...], delta: float) -> float:
    if not math.isfinite(value) or value < 0 or (value == 0 and delta < 1e-12):
        raise AccountingError(
            f"{accountant} gives epsilon = {value} for {events} at delta = {delta}: not a sound number"
        )
    return value
