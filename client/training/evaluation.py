"""The model that a silo received, on the silo's own held-out records; the result stays in the silo's log."""

from __future__ import annotations

from torch import nn

from client.data.records import Part
from client.models.base import Shape, predict
from strategies import metrics
from strategies.errors import RunError


def evaluate(model: nn.Module, part: Part, shape: Shape, names: tuple[str, ...]) -> dict[str, float | None]:
    """Return the metrics of `model` on `part`, None where the records do not define one.

    Guarantees: an output that is not finite is no error here: whether a held-out record makes it so is private, and
    the weights are the server's to choose.
    """
    nothing: dict[str, float | None] = dict.fromkeys((*names, "loss"))
    if len(part.y) == 0:
        return nothing
    try:
        scores = predict(model, part.x, shape)
    except RunError:
        return nothing
    return metrics.evaluate(scores, part.y.cpu().numpy(), names)
