"""What a silo allows (`policy.toml`). A study may only be stricter; nothing a server sends can widen it.

The SHA-256 of the file is cited by every entry of the ledger that follows, and by every approval.
"""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from strategies.errors import Refusal, RefusalCode, SettingError
from strategies.privacy.budget import Budget
from strategies.privacy.dataroot import Gate
from strategies.privacy.mechanisms import allowed_by
from strategies.sections import Mechanism
from strategies.spec import parse_spec
from strategies.study import Study


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


_Metrics = Literal["masked", "noisy", "none"]


class BudgetTable(_Table):
    """Budget of one data root; `inf` only where records are public."""

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    period: Literal["lifetime"] = "lifetime"
    gate: Gate = "rdp"  # the one that the data root is registered with

    def budget(self) -> Budget:
        """Return the value that the ledger checks against."""
        return Budget(epsilon=self.epsilon, delta=self.delta)


class Requirements(_Table):
    """Limits on any study."""

    mechanism: Mechanism = "dp-sgd"  # or one that trusts fewer; see strategies/privacy/mechanisms.py
    secagg: bool = False
    min_cohort: Annotated[int, Field(ge=1)] = 3
    max_sampling_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_steps_per_round: Annotated[int, Field(ge=1)] = 10_000
    max_clip_norm: Annotated[float, Field(gt=0)] = 1000.0  # sums lie on a grid that is exact up to about there
    allow_models: tuple[str, ...] | None = None
    min_colluding: Annotated[int, Field(ge=0)] = 0  # masks must hold against at least so many silos that collude
    allow_metrics: _Metrics | tuple[_Metrics, ...] = "none"  # exact sums under masks; with charged noise; one or both
    approval: Literal["required", "automatic"] = "required"

    @property
    def metrics(self) -> tuple[str, ...]:
        """What of metric counts may leave."""
        return (self.allow_metrics,) if isinstance(self.allow_metrics, str) else self.allow_metrics or ("none",)


class Policy(_Table):
    """The whole file."""

    budget: dict[str, BudgetTable]
    require: Requirements = Requirements()
    _sha256: str = PrivateAttr(default="")

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes, 64 hex digits."""
        return self._sha256

    @classmethod
    def read(cls, path: Path) -> Policy:
        """Read `policy.toml`.

        Raises:
            SettingError: it is missing or not valid; a silo without a policy takes part in nothing.
        """
        try:
            data = path.read_bytes()
            policy = cls.model_validate(tomllib.loads(data.decode()))
            policy._sha256 = hashlib.sha256(data).hexdigest()
            return policy
        except FileNotFoundError:
            raise SettingError(f"{path} is missing; a silo needs a policy before it takes part in a study") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingError(f"{path} is no valid TOML: {error}") from None
        except OSError as error:
            raise SettingError(f"{path} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors()[0]
            raise SettingError(
                f"{path}: {'.'.join(map(str, first['loc']))} = {first['input']!r} is not allowed: "
                f"{first['msg'].lower()}"
            ) from None

    def admit(self, study: Study, *, data_root: str | None = None, approved: bool = False) -> None:
        """Return when the study keeps every limit.

        Args:
            study: what a server or a file asks for.
            data_root: the data set that it would read; None where the policy has one budget.
            approved: whether an approval that holds was seen (client/approval.py).

        Raises:
            Refusal: with code `policy` or `approval`, and the limit in the sentence.
        """
        for kept, name, value, limit in self._rules(study, data_root):
            if not kept:
                raise Refusal(RefusalCode.POLICY, f"this silo's policy asks for {name} {limit}; the study has {value}")
        if self.require.approval == "required" and not approved:
            raise Refusal(
                RefusalCode.APPROVAL,
                f"study {study.digest[:12]} has not been approved at this silo; use fedsilo-silo approve",
            )

    def _rules(self, study: Study, data_root: str | None) -> list[tuple[bool, str, object, str]]:
        """Return of each limit whether it is kept, the setting, its value in the study and what is allowed."""
        require, file = self.require, study.file
        training, privacy = file.training, file.privacy
        models, allowed = require.allow_models, allowed_by(require.mechanism)
        tables = [self.budget[data_root]] if data_root in self.budget else list(self.budget.values())
        delta = min((table.delta for table in tables), default=1.0)
        return [
            (privacy.mechanism in allowed, "privacy.mechanism", privacy.mechanism, " or ".join(allowed)),
            (file.secagg.enabled or not require.secagg, "secagg.enabled", file.secagg.enabled, "true"),
            (
                not study.masked or file.secagg.max_colluding >= require.min_colluding,
                "secagg.max_colluding",
                file.secagg.max_colluding,
                f"at least {require.min_colluding}",
            ),
            _least("cohort.min_silos", file.cohort.min_silos, require.min_cohort),
            _most("training.sampling_rate", training.sampling_rate, require.max_sampling_rate),
            _most("training.steps", training.steps, require.max_steps_per_round),
            _most("privacy.clip_norm", privacy.clip_norm, require.max_clip_norm),
            _most("privacy.delta", privacy.delta, delta),
            (
                models is None or parse_spec(file.model.name).name in models,
                "model.name",
                file.model.name,
                f"one of {', '.join(models or ())}",
            ),
            (
                study.release in ("none", *require.metrics),
                "evaluation.release",
                study.release,
                " or ".join(require.metrics),
            ),
        ]


def _least(name: str, value: float, limit: float) -> tuple[bool, str, object, str]:
    return value >= limit, name, value, f"at least {limit}"


def _most(name: str, value: float, limit: float) -> tuple[bool, str, object, str]:
    return value <= limit, name, value, f"at most {limit}"
