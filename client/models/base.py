"""What a model is here: a frozen set of arguments that can build a torch module, and nothing that mixes records.

A new model is a new file in this folder with one subclass of `Model`; torch is imported inside `build`, so that a
study can be checked without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from strategies.errors import RunError, SettingError
from strategies.layout import Layout, Vector
from strategies.sections import DataSection
from strategies.spec import Registry
from strategies.study import Study
from strategies.tokens import VOCABULARIES

if TYPE_CHECKING:
    import torch
    from torch import nn

Task = Literal["classification", "regression", "multilabel"]
Kind = Literal["tabular", "images", "signals", "sequences", "text"]
_VALUES_AT_ONCE = 2**18  # input values of one forward pass without gradients: bounds its memory
MODELS = Registry(kind="model", package="client.models", bases=("Model",))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What goes in and what comes out.

    Args:
        inputs: shape of one record, without the batch. tabular: (columns,); images: (channels, height, width);
            signals: (time, channels); sequences: (time, channels), of which the last channel is 1 at steps that are
            there and 0 at padding, which comes after them; text: (tokens,), int64 ids with 0 for padding at the end.
            All but text are float32.
        outputs: number of outputs: 1 for two classes (a logit) and for regression, else the number of classes.
        task: of the study; fixes loss and scores.
        kind: of the data; fixes the meaning of `inputs`.
        vocabulary: number of token ids, padding among them; 0 unless the kind is text.
        widths: columns of each feature of a table, in order; empty where each column is a feature of its own.
        target_range: public bounds of the value to predict (regression); the model's output is the value scaled to
            variance one over them. None leaves values as they are.
        class_weights: public weight of each class in the loss; empty for equal ones.
    """

    inputs: tuple[int, ...]
    outputs: int
    task: Task
    kind: Kind = "tabular"
    vocabulary: int = 0
    widths: tuple[int, ...] = ()
    target_range: tuple[float, float] | None = None
    class_weights: tuple[float, ...] = ()

    @classmethod
    def of(cls, *, inputs: tuple[int, ...], classes: int, task: Task, **more: Any) -> Shape:
        """Return the shape for a task with this number of classes (ignored in regression)."""
        one = task == "regression" or (task == "classification" and classes == 2)
        return cls(inputs=inputs, outputs=1 if one else classes, task=task, **more)

    @property
    def masked(self) -> bool:
        """Whether the last channel says which steps are there."""
        return self.kind == "sequences"

    @classmethod
    def of_study(cls, study: Study) -> Shape:
        """Return the shape that a study's public schema fixes.

        Raises:
            SettingError: the study leaves it open.
        """
        data, task = study.file.data, study.file.study.task
        if task != "regression" and data.classes is None:
            raise SettingError(
                'data.classes is missing: write the classes of the target, for example classes = ["no", "yes"]'
            )
        return cls.of(
            inputs=_inputs(data),
            classes=len(data.classes or ()),
            task=task,
            kind=data.kind,
            vocabulary=VOCABULARIES.resolve(data.vocabulary).ids if data.kind == "text" else 0,
            widths=tuple(f.width for f in data.features.values()) if data.kind == "tabular" else (),
            target_range=data.target_range,
            class_weights=study.file.training.class_weights,
        )


def _inputs(data: DataSection) -> tuple[int, ...]:
    if data.kind == "tabular":
        return (data.input_width,)
    if data.shape is None:
        example = {"images": "[64, 64, 1]", "signals": "[500, 12]", "sequences": "[48]", "text": "[128]"}[data.kind]
        raise SettingError(
            f"data.shape is missing: {data.kind} have a public shape; write for example shape = {example}"
        )
    if data.kind == "images":
        height, width, channels = data.shape
        return (channels, height, width)
    if data.kind == "sequences":
        if not data.features:
            raise SettingError(
                "data.features is missing: a study on sequences names its channels with their public bounds"
            )
        return (data.shape[0], data.input_width + 1)
    return data.shape


@dataclass(frozen=True, kw_only=True)
class Model:
    """Arguments of an architecture.

    `kinds` names the kinds of data that it takes; a study that joins it with another kind is refused.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("tabular", "images", "signals", "sequences")

    def build(self, shape: Shape) -> nn.Module:
        """Return a new module: (rows, *shape.inputs) to (rows, shape.outputs), each row by itself."""
        raise NotImplementedError


def build(model: Model, shape: Shape, seed: int) -> nn.Module:
    """Return `model` with initial weights that are a function of the seed; torch's own generator is left as it was.

    Raises:
        SettingError: the module mixes records of a batch (BatchNorm), so no record's influence could be bounded.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed also walks over devices
        module = model.build(shape)
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm):
            raise SettingError(
                f"model part '{name}' is {type(part).__name__}, which mixes the records of a batch; "
                "use GroupNorm or LayerNorm"
            )
    return module


def layout_of(module: nn.Module) -> Layout:
    """Return the layout of the module's trainable parameters."""
    return Layout.of({name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad})


def weights_of(module: nn.Module) -> Vector:
    """Return the trainable parameters as one flat float32 vector."""
    named = {name: p.detach().cpu().numpy() for name, p in module.named_parameters() if p.requires_grad}
    return layout_of(module).join(named)


def flat_parameters(module: nn.Module) -> torch.Tensor:
    """Return one flat tensor of which every trainable parameter is henceforth a view.

    An optimiser that steps on the flat tensor moves the module, at the cost of one operation instead of one a
    parameter.
    """
    import torch

    layout = layout_of(module)
    parameters = dict(module.named_parameters())
    first = next(iter(parameters.values()))
    flat = torch.empty(layout.size, dtype=torch.float32, device=first.device)
    for slot in layout.slots:
        view = flat[slot.offset : slot.offset + slot.size].view(slot.shape)
        view.copy_(parameters[slot.name].detach())
        parameters[slot.name].data = view
    return flat


def load_weights(module: nn.Module, weights: Vector) -> None:
    """Copy a flat vector into the module's parameters."""
    import torch

    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, values in layout_of(module).split(weights).items():
            parameters[name].copy_(torch.from_numpy(np.array(values)))


class Inputs(Protocol):
    """Records that a model may see: a tensor, or something that reads them from disk when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(records, *shape of one)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> torch.Tensor:
        """Return the records of a slice or of a tensor of positions."""


def predict(module: nn.Module, x: torch.Tensor | Inputs, shape: Shape, *, rows_at_once: int | None = None) -> Any:
    """Return (rows, classes) probabilities, or (rows, 1) values for regression, as float64 numpy.

    Raises:
        RunError: the module gives a value that is not finite.
    """
    import torch

    scores = np.empty((0, 0))
    device = next(module.parameters()).device
    at_once = rows_at_once or max(16, min(4096, _VALUES_AT_ONCE // max(1, features(shape))))
    was_training = module.training
    module.eval()
    with torch.no_grad():
        for start in range(0, max(len(x), 1), at_once):
            rows = x[start : start + at_once].to(device)
            some = _scores(module(rows).double(), shape).cpu().numpy()
            if not start:
                scores = np.empty((len(x), some.shape[1]))  # at once, for there may be many
            scores[start : start + len(some)] = some
    module.train(was_training)
    if not np.isfinite(scores).all():
        raise RunError("the model's output is not a finite number; lower the learning rate of training.optimizer")
    return scores


def _scores(out: torch.Tensor, shape: Shape) -> torch.Tensor:
    import torch

    if shape.task == "regression":
        return unscaled(out, shape.target_range)
    if shape.task == "multilabel":
        return torch.sigmoid(out)
    if shape.outputs == 1:
        second = torch.sigmoid(out)
        return torch.cat([1 - second, second], dim=1)
    return torch.softmax(out, dim=1)


def scaled(values: torch.Tensor, bounds: tuple[float, float] | None) -> torch.Tensor:
    """Return regression targets as the model's output means them: clipped to public bounds, variance one there."""
    if bounds is None:
        return values
    low, high = bounds
    return math.sqrt(3) * (2 * (values.clamp(low, high) - low) / (high - low) - 1)


def unscaled(out: torch.Tensor, bounds: tuple[float, float] | None) -> torch.Tensor:
    """Return the model's output as values; the inverse of `scaled`."""
    if bounds is None:
        return out
    low, high = bounds
    return low + (high - low) * (out / math.sqrt(3) + 1) / 2


def features(shape: Shape) -> int:
    """Return the number of values of one record."""
    return math.prod(shape.inputs)
