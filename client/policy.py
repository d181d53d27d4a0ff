"""What a silo allows (`policy.toml`). A study may only be stricter; nothing a server sends can widen it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from strategies.errors import Refusal, RefusalCode, SettingError
from strategies.privacy.budget import Budget
from strategies.spec import parse_spec
from strategies.study import Study


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BudgetTable(_Table):
    """Budget of one data root; `inf` only where records are public."""

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    period: Literal["lifetime"] = "lifetime"
    gate: Literal["rdp"] = "rdp"

    def budget(self) -> Budget:
        """Return the value that the ledger checks against."""
        return Budget(epsilon=self.epsilon, delta=self.delta)


class Requirements(_Table):
    """Limits on any study."""

    mechanism: Literal["dp-sgd", "none"] = "dp-sgd"  # "none" also allows unprotected training
    secagg: bool = False
    min_cohort: Annotated[int, Field(ge=1)] = 3
    max_sampling_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_steps_per_round: Annotated[int, Field(ge=1)] = 10_000
    allow_models: tuple[str, ...] | None = None
    allow_metrics: Literal["masked", "noisy", "none"] = "none"
    approval: Literal["required", "automatic"] = "required"


class Policy(_Table):
    """The whole file."""

    budget: dict[str, BudgetTable]
    require: Requirements = Requirements()

    @classmethod
    def read(cls, path: Path) -> Policy:
        """Read `policy.toml`.

        Raises:
            SettingError: it is missing or not valid; a silo without a policy takes part in nothing.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
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

    def admit(self, study: Study) -> None:
        """Return when the study keeps every limit.

        Raises:
            Refusal: with code `policy` or `approval`, and the limit in the sentence.
        """
        require, file = self.require, study.file
        rules = [
            (study.private or require.mechanism == "none", "privacy.mechanism", file.privacy.mechanism, "dp-sgd"),
            (file.secagg.enabled or not require.secagg, "secagg.enabled", file.secagg.enabled, "true"),
            (
                file.cohort.min_silos >= require.min_cohort,
                "cohort.min_silos",
                file.cohort.min_silos,
                f"at least {require.min_cohort}",
            ),
            (
                file.training.sampling_rate <= require.max_sampling_rate,
                "training.sampling_rate",
                file.training.sampling_rate,
                f"at most {require.max_sampling_rate}",
            ),
            (
                file.training.steps <= require.max_steps_per_round,
                "training.steps",
                file.training.steps,
                f"at most {require.max_steps_per_round}",
            ),
            (
                require.allow_models is None or parse_spec(file.model.name).name in require.allow_models,
                "model.name",
                file.model.name,
                f"one of {', '.join(require.allow_models or ())}",
            ),
            (
                file.evaluation.release in (None, "none", require.allow_metrics),
                "evaluation.release",
                file.evaluation.release,
                require.allow_metrics,
            ),
        ]
        for kept, name, value, limit in rules:
            if not kept:
                raise Refusal(RefusalCode.POLICY, f"this silo's policy asks for {name} {limit}; the study has {value}")
        if require.approval == "required":
            raise Refusal(RefusalCode.APPROVAL, f"study {study.digest[:12]} has not been approved at this silo")
