"""The model that a silo received, on the silo's own held-out records: metrics for its log, counts for the server.

Guarantees: an output that is not finite is no error here, for whether a held-out record makes it so is private and the
weights are the server's to choose; such a record has no share in the counts. Counts leave this file with the noise that
the study's ledger event speaks of; exact ones only for a study that releases nothing but their sum over silos.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.data.records import Part
from client.models.base import Shape, predict
from client.training.noise import add_noise
from strategies import metrics
from strategies.counts import CountLayout, count
from strategies.privacy.secret import SecretRandom
from strategies.study import Study


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a silo makes of a model.

    Args:
        metrics: by name, and `loss`; None where the records do not define one. They stay in the silo.
        counts: metric counts, noisy or (for a sum under masks) exact; empty when none are asked for.
    """

    metrics: dict[str, float | None]
    counts: NDArray[np.float64]


def evaluate(model: nn.Module, part: Part, shape: Shape, study: Study, *, counted: bool) -> Evaluation:
    """Evaluate a model on a part.

    Args:
        model: the model.
        part: held-out records.
        shape: of the model.
        study: says what of it may leave.
        counted: whether counts are asked for; two calls with noisy ones are two releases.
    """
    watched, labels = _Watched(model), part.y.cpu().numpy()
    scores = predict(watched, part.x, shape) if len(labels) else np.zeros((0, shape.outputs))
    usable = watched.usable(len(labels))
    seen: dict[str, float | None] = dict.fromkeys((*study.metrics, "loss"))
    if len(labels) and usable.all():
        seen = metrics.evaluate(scores, labels, study.metrics)
    if not counted or study.release == "none":
        return Evaluation(metrics=seen, counts=np.zeros(0))
    layout = CountLayout.of(study)
    exact = count(layout, scores, labels, unit_of_row=part.unit_of_row, groups=part.groups, usable=usable)
    return Evaluation(metrics=seen, counts=exact if study.release == "masked" else _noisy(exact, layout, study))


def _noisy(exact: NDArray[np.float64], layout: CountLayout, study: Study) -> NDArray[np.float64]:
    noise_multiplier = study.file.evaluation.noise_multiplier
    assert noise_multiplier is not None  # the study is refused without
    noisy = add_noise(
        torch.from_numpy(exact),
        clip_norm=layout.sensitivity,
        noise_multiplier=noise_multiplier,
        random=SecretRandom(),
    )
    found: NDArray[np.float64] = noisy.numpy()
    return found


class _Watched(nn.Module):
    """A model whose outputs that are not finite are replaced by zeros, with a note of the rows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)
        self._finite: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(x)
        finite = out.isfinite().all(dim=1, keepdim=True)
        self._finite.append(finite[:, 0].cpu())
        return torch.where(finite, out, torch.zeros_like(out))

    def usable(self, rows: int) -> NDArray[np.bool_]:
        """Return which of all rows seen had a finite output."""
        return torch.cat(self._finite).numpy() if rows else np.ones(0, bool)
