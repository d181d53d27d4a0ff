"""What is left of a data root: its registration, the policy's own limit, and all that was ever reserved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from client.ledger_book import Place
from strategies.errors import Refusal, RefusalCode
from strategies.privacy.admission import Admission, admission, counted
from strategies.privacy.budget import Budget
from strategies.privacy.dataroot import DataRoot, repeat
from strategies.privacy.events import Event
from strategies.proof.chain import Chain
from strategies.study import Study


@dataclass(frozen=True, kw_only=True)
class Balance:
    """What is left of a data root.

    Args:
        root: its registration.
        limit: the policy's budget where it is not the registered one, else None.
        events: all that was ever reserved, merged.
    """

    root: DataRoot
    limit: Budget | None
    events: tuple[Event, ...]

    @property
    def epsilon(self) -> float:
        """The smaller of the registered budget and the policy's."""
        return min(self.root.epsilon, self.limit.epsilon if self.limit else self.root.epsilon)

    @property
    def spent(self) -> float:
        """The epsilon of all that was reserved, as the registered gate counts it, rounded up."""
        return self.root.spent(self.events)

    @property
    def governing(self) -> tuple[float, str, float]:
        """Delta, gate and order that the smaller budget is counted with."""
        if self.limit is not None and self.limit.epsilon < self.root.epsilon:
            return self.limit.delta, "rdp", self.limit.order
        return self.root.delta, self.root.gate, self.root.order

    @property
    def used(self) -> float:
        """The epsilon of all that was reserved, as the gate of the smaller budget counts it."""
        return counted(self.root, self.limit, self.events)

    def fits(self, planned: Iterable[Event]) -> bool:
        """Return whether all of `planned` may still be released."""
        planned = tuple(planned)
        return self.root.fits(self.events, planned) and (self.limit is None or self.limit.fits(self.events, planned))

    def admission(self, study: Study) -> Admission:
        """Ask whether a whole study fits."""
        return admission(study, self.root, self.events, limit=self.limit)

    def rounds_that_fit(self, round_events: tuple[Event, ...], most: int, beside: tuple[Event, ...] = ()) -> int:
        """Return how many rounds of `round_events`, at most `most`, fit beside other releases."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.fits((*beside, *repeat(round_events, middle)))
            low, high = (middle, high) if fits else (low, middle - 1)
        return low


def balance_of(chain: Chain, place: Place, data_root: str) -> Balance:
    """Return the balance of a data root.

    Raises:
        Refusal: it is not registered, or the policy names no budget for it (`budget`).
    """
    account = chain.accounts.get(data_root)
    if account is None or account.root is None:
        raise Refusal(RefusalCode.BUDGET, f"data root '{data_root}' is not registered; use fedsilo-silo register")
    limit = None
    if place.limits is not None:
        limit = place.limits.get(data_root)
        if limit is None:
            raise Refusal(RefusalCode.BUDGET, f"policy.toml has no [budget.{data_root}]; give the data root a budget")
        if (limit.epsilon, limit.delta) == (account.root.epsilon, account.root.delta):
            limit = None
    return Balance(root=account.root, limit=limit, events=account.merged())


def require_budget(balance: Balance, round: int, events: Sequence[Event]) -> None:
    """Raise a `Refusal` with code `budget` unless a round fits."""
    if not balance.fits(events):
        root = balance.root
        raise Refusal(
            RefusalCode.BUDGET,
            f"round {round} does not fit into the budget of '{root.name}': {balance.used} of epsilon "
            f"{balance.epsilon} at delta {root.delta} is spent",
        )
