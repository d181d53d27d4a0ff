"""One forward and one backward pass over a batch, and what they tell about every parameter, unit by unit.

Hooks record the input of each layer that has parameters; the backward pass is asked for gradients by layers' outputs
alone, so autograd skips every weight; each layer is turned into its part (`client.training.layers`) as soon as its
output's gradient is there, and what it was made from is let go. A small network that is a chain of linear layers needs
neither hooks nor a graph on a CPU (`client.training.chain`).

A model whose layers do not tell all (a parameter that two layers share or that is used outside its layer, a layer
called twice, on several inputs as torch.nn.MultiheadAttention is, or on a tensor that does not have the rows of the
batch first) is differentiated row by row instead, and the log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from client.models.base import layout_of
from client.training.chain import chain_of, fits, through
from client.training.device import autocast
from client.training.layers import Explicit, Part, Units, has_closed_form, parts_of
from client.training.losses import RowLoss
from client.training.replay import Replay
from strategies.layout import Layout, Slot

log = logging.getLogger("fedsilo.training")

_ALIGNED = 4  # float32 values that fill 16 bytes
# Matrix products have tiles of 16 rows. Elementwise functions (sigmoid, silu, elu, softplus) compute the values past a
# multiple of 32 in another way, so 16 rows do only where each has an even number of values; a loss has one a row.
_TILE = 32
_PROBE_ROWS = 3  # no multiple of a tile: a dimension that equals this and the rows of a batch is that of the rows


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the gradients of a model are found; made once, kept by the model.

    Args:
        parameters: the model's own, and whether each was trained when the plan was made.
        layout: their places.
        sizes: values of each, in the order of the layout.
        owners: each layer with trainable parameters of its own, and their slots by the layer's names for them.
        by_differentiation: names of layers that have no closed form here.
        aligned: whether every row of every matrix product is a multiple of 16 bytes.
        tile: rows that a batch is filled up to a multiple of.
        chain: the layers of a model that is one.
        obstacles: why the layers do not tell all; not empty means row by row.
        replays: recorded passes, by what they depend on.
    """

    parameters: tuple[tuple[nn.Parameter, bool], ...]
    layout: Layout
    sizes: tuple[int, ...]
    owners: Mapping[nn.Module, Mapping[str, Slot]]
    by_differentiation: tuple[str, ...]
    aligned: bool
    tile: int
    chain: tuple[nn.Module, ...]
    obstacles: list[str] = field(default_factory=list)
    replays: dict[Hashable, Replay] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Located:
    """A part, and the slots of its layer."""

    part: Part
    slots: Mapping[str, Slot]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A batch as it goes through the model.

    Args:
        x: (filled, ...) inputs, among them rows that are no records.
        place: positions of the records in `x`; None when they are the first ones.
        y: (filled, ...) targets, zero where `x` has no record.
        count: number of records.
        weight_N: (rows,) what each loss is multiplied by: one over the number of rows of its unit.
        units: of the records.
    """

    x: torch.Tensor
    place: torch.Tensor | None
    y: torch.Tensor
    count: int
    weight_N: torch.Tensor | None
    units: Units

    def own(self, values: torch.Tensor) -> torch.Tensor:
        """Return the records' rows of a tensor over all rows."""
        if self.place is not None:
            return values[self.place]
        return values if values.shape[0] == self.count else values[: self.count]


def plan_of(model: nn.Module, x: torch.Tensor) -> Plan:
    """Return the model's plan for inputs like those of `x` (their values are not looked at)."""
    plan: Plan | None = model.__dict__.get("_private_plan")  # past torch's registry of parts
    if plan is None or any(p.requires_grad != trained for p, trained in plan.parameters):
        plan = model.__dict__["_private_plan"] = _planned(model)
        if plan.by_differentiation:
            log.warning(
                "per-unit gradients by differentiation, not in closed form: %s", ", ".join(plan.by_differentiation)
            )
        if not plan.obstacles:
            _probe(model, plan, x)
        _say(plan)
    return plan


def _probe(model: nn.Module, plan: Plan, x: torch.Tensor) -> None:
    """Look at the graph of a few rows of zeros for what keeps the layers from telling all."""
    with torch.enable_grad():
        out, calls = _forward(model, plan, x.new_zeros(_PROBE_ROWS, *x.shape[1:]))
    if not plan.obstacles:
        outside = _outside(plan, out, calls)
        plan.obstacles.extend(f"a parameter of {name} is used outside its layer" for name in sorted(outside))


def _planned(model: nn.Module) -> Plan:
    layout = layout_of(model)
    slots = {slot.name: slot for slot in layout.slots}
    owners: dict[nn.Module, dict[str, Slot]] = {}
    obstacles: list[str] = []
    open_form: list[str] = []
    aligned = even = True
    for path, layer in model.named_modules():
        own = [name for name, p in layer.named_parameters(recurse=False, remove_duplicate=False) if p.requires_grad]
        if not own:
            continue
        names = {name: f"{path}.{name}" if path else name for name in own}
        obstacles += [f"{full} is shared by two layers" for full in names.values() if full not in slots]
        owners[layer] = {name: slots[full] for name, full in names.items() if full in slots}
        if not has_closed_form(layer):
            within = [name for name, p in layer.named_parameters() if p.requires_grad and name not in own]
            if within:
                obstacles.append(f"{path or 'the model'} ({type(layer).__name__}) has {own[0]} beside its layers'")
            open_form.append(f"{path or 'the model'} ({type(layer).__name__})")
        even &= int(getattr(layer, "out_channels", 0)) % 2 == 0
        aligned &= has_closed_form(layer) and int(getattr(layer, "in_features", 0)) % _ALIGNED == 0
    return Plan(
        parameters=tuple((p, p.requires_grad) for p in model.parameters()),
        layout=layout,
        sizes=tuple(slot.size for slot in layout.slots),
        owners=owners,
        by_differentiation=tuple(open_form),
        aligned=aligned,
        tile=_TILE // 2 if aligned and even else _TILE,
        chain=chain_of(model),
        obstacles=obstacles,
    )


def _say(plan: Plan) -> None:
    if plan.obstacles:
        log.warning("per-unit gradients row by row, which is slow: %s", "; ".join(plan.obstacles))


def parts(model: nn.Module, plan: Plan, loss: RowLoss, rows: Rows) -> list[Located]:
    """Return the gradients by unit of every parameter that the loss depends on."""
    if not plan.obstacles and not rows.x.is_cuda and fits(plan.chain, model, rows.x):
        return _along_the_chain(plan, loss, rows)
    if not plan.obstacles:
        found = _layer_by_layer(model, plan, loss, rows)
        if not plan.obstacles:
            return found
        _say(plan)  # found out on the way
    return _row_by_row(model, plan, loss, rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """What went in and out of a layer, as it was at that time: either may be changed in place later.

    Args:
        layer: which.
        source: the input.
        version: of its values.
        edge: the output's place in the graph.
    """

    layer: nn.Module
    source: torch.Tensor
    version: int
    edge: torch.autograd.graph.GradientEdge


Receive = Callable[[_Call, torch.Tensor], None]


def _forward(
    model: nn.Module, plan: Plan, x: torch.Tensor, receive: Receive | None = None
) -> tuple[torch.Tensor, list[_Call]]:
    """Return the outputs and the layers' calls, and note in the plan what keeps the layers from telling all.

    Args:
        model: in training mode.
        plan: of the model.
        x: inputs.
        receive: given in a backward pass each call of more than one place a row and the gradient by its output; such
            calls are not kept here, unless they are where the graph begins.
    """
    calls: list[_Call] = []
    times = dict.fromkeys(plan.owners, 0)

    def record(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        alone = len(inputs) == 1 and _has_rows(inputs[0], x.shape[0]) and _has_rows(output, x.shape[0])
        times[layer] += 1 if alone else 2
        if not (alone and output.requires_grad):
            return
        source, edge = inputs[0], torch.autograd.graph.get_gradient_edge(output)
        call = _Call(layer=layer, source=source, version=source._version, edge=edge)
        if receive is None or output.ndim == 2:
            calls.append(call)
            return
        held = [call]  # its input is let go as soon as it has been used, as autograd does with what it saved
        output.register_hook(lambda g: receive(held.pop(), g))
        if source.grad_fn is None:
            calls.append(_Call(layer=layer, source=source.new_empty(0), version=-1, edge=edge))

    with _hooked(plan.owners, record), autocast(x.device):
        out: torch.Tensor = model(x)
    plan.obstacles.extend(
        f"{type(layer).__name__} is not called once, with one input and one output that have the rows first"
        for layer, count in times.items()
        if count != 1
    )
    return out, calls


def _has_rows(value: object, count: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == count


def _outside(plan: Plan, out: torch.Tensor, calls: Iterable[_Call]) -> set[str]:
    """Return the kinds of layers of which the graph reaches parameters by another way than through the layer."""
    around = {call.edge.node: call.source.grad_fn for call in calls}
    owner = {p: type(layer).__name__ for layer in plan.owners for p in layer.parameters(recurse=False)}
    found: set[str] = set()
    seen: set[torch.autograd.graph.Node | None] = {None}
    todo = [out.grad_fn]
    while todo:
        node = todo.pop()
        if node in seen or node is None:
            continue
        seen.add(node)
        if node in around:
            todo.append(around[node])
            continue
        variable = getattr(node, "variable", None)
        if variable is not None and variable in owner:
            found.add(owner[variable])
        todo += [following for following, _ in node.next_functions]
    return found


def _along_the_chain(plan: Plan, loss: RowLoss, rows: Rows) -> list[Located]:
    def by_output(out: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            total = _total(loss, out.requires_grad_(), rows)
        known = torch.autograd.grad(total, out, allow_unused=True)[0] if total.requires_grad else None
        return torch.zeros_like(out) if known is None else known

    found = []
    for layer, a, g in through(plan.chain, rows.x, by_output):
        slots = plan.owners[layer]
        own = parts_of(layer, rows.own(a), rows.own(g), rows.units, slots)
        found += [Located(part=part, slots=slots) for part in own]
    return found


def _layer_by_layer(model: nn.Module, plan: Plan, loss: RowLoss, rows: Rows) -> list[Located]:
    found: list[Located] = []

    def receive(call: _Call, g: torch.Tensor) -> None:
        if call.source._version != call.version:
            plan.obstacles.append(f"the input of {type(call.layer).__name__} is changed in place")
        slots = plan.owners[call.layer]
        own = parts_of(call.layer, rows.own(call.source.detach()), rows.own(g), rows.units, slots)
        found.extend(Located(part=part, slots=slots) for part in own)

    # Layers of one place a row keep input and gradient until the sum is made in any case, so their gradients are asked
    # for together; those of the others are turned into parts on the way.
    out, calls = _forward(model, plan, rows.x, receive)
    total = _total(loss, out, rows)
    if plan.obstacles or not total.requires_grad:
        return []
    with torch.no_grad():
        by_output = torch.autograd.grad(total, [call.edge for call in calls], allow_unused=True)
        for call, g in zip(calls, by_output, strict=True):
            if g is not None and call.version >= 0:
                receive(call, g)
    return found


def _total(loss: RowLoss, out: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Return the sum over units of the mean loss of a unit's rows; the loss sees whole tiles."""
    y = rows.y
    if out.dtype not in (torch.float32, torch.float64):
        out = out.float()
    more = -out.shape[0] % _TILE
    if more:
        out = torch.cat([out, out.new_zeros(more, *out.shape[1:])])
        y = torch.cat([y, y.new_zeros(more, *y.shape[1:])])
    values_N = rows.own(loss(out, y))
    return values_N.sum() if rows.weight_N is None else (values_N * rows.weight_N).sum()


@contextmanager
def _hooked(
    layers: Mapping[nn.Module, object], record: Callable[[nn.Module, tuple[Any, ...], Any], None]
) -> Iterator[None]:
    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _row_by_row(model: nn.Module, plan: Plan, loss: RowLoss, rows: Rows) -> list[Located]:
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    # By all places of each, but one name of a layer that has two: torch would swap it twice and never swap it back.
    first = {p: name for name, p in model.named_parameters()}
    places = {
        f"{path}.{own}" if path else own: first[p]
        for path, layer in model.named_modules()
        for own, p in (
            *layer.named_parameters(recurse=False, remove_duplicate=False),
            *layer.named_buffers(recurse=False, remove_duplicate=False),
        )
        if p in first and p.requires_grad
    }

    def of_row(x_1: torch.Tensor, y_1: torch.Tensor) -> dict[str, torch.Tensor]:
        def value(some: dict[str, torch.Tensor]) -> torch.Tensor:
            swapped = {place: some[name] for place, name in places.items()}
            out = torch.func.functional_call(model, swapped, (x_1[None],), tie_weights=False)
            return loss(out, y_1[None])[0]

        return torch.func.grad(value)(parameters)  # type: ignore[no-any-return]

    try:
        by_row = torch.func.vmap(of_row, randomness="different")(rows.x, rows.y)
        by_row = {name: rows.own(values) for name, values in by_row.items()}
    except (RuntimeError, ValueError, TypeError):  # an operation that cannot be vectorised
        each = [
            row_gradient(model, loss, x_1, y_1)
            for x_1, y_1 in zip(rows.own(rows.x).split(1), rows.own(rows.y).split(1), strict=True)
        ]
        by_row = {name: torch.stack([row[name] for row in each]) for name in parameters}
    weight = rows.weight_N
    found = []
    for slot in plan.layout.slots:
        values_NP = by_row[slot.name].flatten(1)
        values_NP = values_NP if weight is None else values_NP * weight[:, None].to(values_NP.dtype)
        part = Explicit(name=slot.name, values_UP=rows.units.added(values_NP))
        found.append(Located(part=part, slots={slot.name: slot}))
    return found


def row_gradient(model: nn.Module, loss: RowLoss, x_1: torch.Tensor, y_1: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradient of one row's loss by every trainable parameter, by ordinary differentiation."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss(model(x_1), y_1)[0], list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), found, strict=True)
    }
