"""Would a whole study fit into what is left of a data root, and if not, what would?

Asked when a study is approved and before round 1. Every reservation of an admitted study is a part of what was asked
for here, and the gate only grows with what is reserved, so a study that is admitted runs to its end unless another run
takes from the same budget meanwhile.

Two ways to make a study smaller are told. The largest `privacy.epsilon` for all its rounds: the gate grows with less
noise, so the least noise that passes is found first, and the answer is the largest target whose calibration gives at
least that noise. The number of rounds with its noise as it is: with `privacy.epsilon` kept, fewer rounds would only be
given less noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from strategies.errors import AccountingError, SettingError
from strategies.privacy.accountant import DIGITS, epsilon, round_up
from strategies.privacy.budget import Budget
from strategies.privacy.dataroot import DataRoot, lacking, repeat
from strategies.privacy.events import Event, merge
from strategies.study import Study

MOST_ROUNDS = 100_000  # of a study
_UNIT: int = 10**DIGITS
_MOST_NOISE = 10_000  # with more, nothing is learnt


@dataclass(frozen=True, kw_only=True)
class Admission:
    """Whether a study fits into what is left of a data root, and what of it would.

    Args:
        study: the study.
        root: the data root's registration.
        spent: all that was ever reserved on it.
        limit: the policy's budget where it is not the registered one, else None.
    """

    study: Study
    root: DataRoot
    spent: tuple[Event, ...]
    limit: Budget | None = None

    @cached_property
    def fits(self) -> bool:
        """Whether every release of the study, to its end, passes the gate.

        Raises:
            AccountingError: the cost cannot be had.
        """
        return self._passes(self.study.total_events())

    @property
    def budget(self) -> float:
        """The smaller of the registered epsilon and the policy's."""
        return min(self.root.epsilon, self.limit.epsilon if self.limit else math.inf)

    @cached_property
    def before(self) -> float:
        """Epsilon of what was spent before, as the stricter gate counts it."""
        return counted(self.root, self.limit, self.spent)

    @cached_property
    def after(self) -> float:
        """Epsilon of all with the whole study, as the stricter gate counts it."""
        return counted(self.root, self.limit, (*self.spent, *self.study.total_events()))

    @cached_property
    def pld_alone(self) -> float:
        """PLD epsilon of the study by itself at the root's delta."""
        return epsilon(self.study.total_events(), self.root.delta)

    @cached_property
    def pld_after(self) -> float:
        """PLD epsilon of all with the whole study at the root's delta."""
        return epsilon((*self.spent, *self.study.total_events()), self.root.delta)

    @cached_property
    def rounds(self) -> int:
        """How many rounds of the study fit, with its noise as it is and all that the end of a run releases."""
        planned, beside = self.study.round_events(), self.study.closing_events()
        low, high = 0, MOST_ROUNDS
        while low < high:
            middle = (low + high + 1) // 2
            fits = self._passes((*beside, *repeat(planned, middle)))
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    @cached_property
    def largest_epsilon(self) -> float | None:
        """The largest `privacy.epsilon`, to 4 decimals, with which the study would fit in all its rounds.

        None where no target would: without protection, in a plan that names the noise itself, with nothing left.
        """
        if not self.study.private or self.root.gate == "preregistered" or math.isinf(self.budget):
            return None
        least = self._least_noise()
        if least is None:
            return None
        # Calibration takes the least noise whose cost is at most the target, so a target below the cost of a little
        # less noise than `least` gives at least `least`. Costs are rounded up, hence one unit down.
        found = (round(self._cost(max(least - 1, 1)) * _UNIT) - 1) / _UNIT
        return found if found > 0 and self._reachable(found) else None

    def sentence(self, where: str = "") -> str:
        """Return why the study does not fit and what would, with the root's name and numbers of settings alone.

        Args:
            where: for example ``at silo north``.
        """
        file, place = self.study.file, f"'{self.root.name}'" + (f" {where}" if where else "")
        total = file.study.rounds
        start = (
            f"the study does not fit into the budget of {place}: {self.before} of epsilon {self.budget} at delta "
            f"{self.root.delta} is spent, {min(self.rounds, total)} of its {total} rounds would fit"
        )
        if not self.study.private:
            return f"{start}; a study with mechanism = 'none' fits only where the budget is infinite"
        if self.root.gate == "preregistered":
            return f"{start}; releases must be those of the registered plan: ask for these alone"
        ways = []
        if self.rounds:
            noise = self.study.noise_multiplier
            ways.append(f"study.rounds = {min(self.rounds, total)} with privacy.noise_multiplier = {noise:g}")
        if self.largest_epsilon:
            ways.append(f"privacy.epsilon = {self.largest_epsilon:g} for all {total} rounds")
        return f"{start}; ask for {' or '.join(ways)}" if ways else f"{start}; nothing of it fits any more"

    # --- within ---------------------------------------------------------------------------------------------

    def _passes(self, planned: tuple[Event, ...]) -> bool:
        return self.root.fits(self.spent, planned) and (self.limit is None or self.limit.fits(self.spent, planned))

    def _beside(self) -> tuple[Event, ...]:
        return merge(self.study.all_count_events())

    def _with_noise(self, ticks: int) -> tuple[Event, ...]:
        updates = repeat((self.study.update_event(ticks / _UNIT),), self.study.file.study.rounds)
        return (*updates, *self._beside())

    def _least_noise(self) -> int | None:
        """Return the least noise over what one unit can move, in units of its last decimal, that passes the gate."""
        low, high = 0, int(_MOST_NOISE * _UNIT)
        if not self._sound(high):
            return None
        while high - low > 1:
            middle = math.isqrt(max(low, 1) * high) if high > 4 * max(low, 1) else (low + high) // 2
            low, high = (low, middle) if self._sound(middle) else (middle, high)
        return high

    def _sound(self, ticks: int) -> bool:
        try:
            return self._passes(self._with_noise(ticks))
        except AccountingError:
            return False

    def _cost(self, ticks: int) -> float:
        """Return the epsilon that the study's own calibration compares with its target."""
        privacy = self.study.file.privacy
        return epsilon(self._with_noise(ticks), privacy.delta, accountant=privacy.accountant)

    def _reachable(self, target: float) -> bool:
        """Return whether the study with this target is valid and passes: the answer is checked, not trusted."""
        try:
            noise = self.study.calibrated(target)
        except SettingError:
            return False
        return self._sound(round(noise * _UNIT))


def admission(study: Study, root: DataRoot, spent: Iterable[Event], *, limit: Budget | None = None) -> Admission:
    """Ask whether a whole study fits beside what was spent on a data root.

    Args:
        study: complete.
        root: the data root's registration.
        spent: every event ever reserved on it.
        limit: the policy's budget where it is stricter than the registered one.
    """
    return Admission(study=study, root=root, spent=merge(spent), limit=limit)


def counted(root: DataRoot, limit: Budget | None, events: Iterable[Event]) -> float:
    """Return the epsilon of events as the gate counts them that the smaller budget belongs to.

    A policy's stricter budget has a filter of its own order, so its number is not that of the registered one.
    """
    stricter = limit is not None and limit.epsilon < root.epsilon
    return limit.spent(events) if limit is not None and stricter else root.spent(events)


def share(root: DataRoot, limit: Budget | None, events: Iterable[Event]) -> float:
    """Return what part of the budget events take, rounded up; above 1 when they do not fit.

    At one Rényi order epsilon is a sum over releases plus a constant that even the smallest release costs (Canonne,
    Kamath & Steinke 2020, proposition 12). The part is that of the sum, so equal rounds take equal parts.
    """
    events = merge(events)
    stricter = limit is not None and limit.epsilon < root.epsilon
    most = limit.epsilon if limit is not None and stricter else root.epsilon
    used = counted(root, limit, events)
    if not events or math.isinf(most):
        return 0.0
    if math.isinf(used):
        return math.inf
    constant = 0.0
    if stricter or root.gate == "rdp":
        gate = limit if limit is not None and stricter else root
        constant = math.log1p(-1 / gate.order) - math.log(gate.delta * gate.order) / (gate.order - 1)
    return round_up(max(used - constant, 0.0) / (most - constant)) if most > constant else math.inf


def open_part(spent: Iterable[Event], still_open: Iterable[Event]) -> tuple[tuple[Event, ...], tuple[Event, ...]]:
    """Return what is committed and what is only reserved, of all that counts as spent."""
    reserved = merge(still_open)
    return lacking(reserved, spent), reserved
