"""What a silo says of a run when it ends: its own account, from its own ledger.

All of it is a function of public settings and of what was released, so it may travel; the server keeps it beside the
report and believes none of it without a look (`from_json` checks every value).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter, ValidationError

from strategies.errors import ProtocolError


@dataclass(frozen=True, kw_only=True)
class BudgetStatement:
    """The budget of the data root; None is an infinite epsilon."""

    epsilon: float | None
    delta: float
    gate: str
    order: float
    spent: float | None


@dataclass(frozen=True, kw_only=True)
class Statement:
    """One silo's account of one run.

    Args:
        silo: its name.
        run: identity of the run.
        study: digest of the study.
        unit: unit of privacy.
        neighbouring: relation that epsilon speaks of.
        delta: of this run's epsilon.
        accountant: pld or rdp.
        epsilon: of this run, by the silo's ledger; None is infinite.
        budget: of everything ever released on the data.
        durability: what the ledger survives.
    """

    silo: str
    run: str
    study: str
    unit: str
    neighbouring: str
    delta: float
    accountant: str
    epsilon: float | None
    budget: BudgetStatement
    durability: str

    def to_json(self) -> str:
        """Return the canonical text."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Statement:
        """Read a statement.

        Raises:
            ProtocolError: the text is no statement, or holds a number that no privacy loss can be.
        """
        try:
            statement = _ADAPTER.validate_python(json.loads(text))
        except (ValueError, TypeError, RecursionError, ValidationError):
            raise ProtocolError("the silo's statement of the run cannot be read") from None
        budget = statement.budget
        numbers = [statement.epsilon, statement.delta, budget.epsilon, budget.delta, budget.order, budget.spent]
        if not all(value is None or (math.isfinite(value) and value >= 0) for value in numbers):
            raise ProtocolError("the silo's statement of the run holds a number that is no privacy loss")
        return statement


_ADAPTER = TypeAdapter(Statement)
