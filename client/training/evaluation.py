"""The model that a silo received, on the silo's own held-out records; the result stays in the silo's log."""

from __future__ import annotations

from torch import nn

from client.data.records import Part
from client.models.base import Shape, predict
from strategies import metrics


def evaluate(model: nn.Module, part: Part, shape: Shape, names: tuple[str, ...]) -> dict[str, float | None]:
    """Return the metrics of `model` on `part`, None where the records do not define one."""
    if len(part.y) == 0:
        return dict.fromkeys((*names, "loss"))
    return metrics.evaluate(predict(model, part.x, shape), part.y.cpu().numpy(), names)
