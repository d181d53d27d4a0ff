"""A network that is a chain of linear layers and activations, its backward pass written out: no hooks and no graph,
which in a network this small take as much time as the matrix products.

Guarantees: the operations are those that autograd would call, so the gradients are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

Tensor = torch.Tensor
_aten = torch.ops.aten

# The function; and its gradient by the input, from that by the output, the input and the output.
_ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    nn.ReLU: (torch.relu, lambda g, a, out: _aten.threshold_backward(g, out, 0)),
    nn.Tanh: (torch.tanh, lambda g, a, out: _aten.tanh_backward(g, out)),
    nn.GELU: (F.gelu, lambda g, a, out: _aten.gelu_backward(g, a)),
}


def chain_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """Return the layers of a model that is such a chain, perhaps with one that flattens in front; else nothing."""
    layers = tuple(model) if type(model) is nn.Sequential else ()
    if any(map(_is_changed, (model, *layers))):
        return ()
    body = layers[1:] if layers and _flattens(layers[0]) else layers
    return layers if body and type(body[0]) is nn.Linear and all(map(_is_known, body)) else ()


def fits(layers: tuple[nn.Module, ...], model: nn.Module, x: Tensor) -> bool:
    """Return whether a model still is the chain that was found, and takes such inputs: (rows, features), or anything
    that it flattens."""
    return bool(layers) and (x.ndim == 2 or _flattens(layers[0])) and chain_of(model) == layers


def _is_changed(layer: nn.Module) -> bool:
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return bool(hooks) or "forward" in layer.__dict__


def _flattens(layer: nn.Module) -> bool:
    return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)


def _is_known(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return all(parameter.requires_grad for parameter in layer.parameters())
    plain = not layer.__dict__.get("inplace", False) and layer.__dict__.get("approximate", "none") == "none"
    return type(layer) in _ACTIVATIONS and plain


def through(
    layers: tuple[nn.Module, ...], x: Tensor, by_output: Callable[[Tensor], Tensor]
) -> Iterator[tuple[nn.Linear, Tensor, Tensor]]:
    """Yield each linear layer, its input and the gradient by its output, the last one first.

    Args:
        layers: of `chain_of`.
        x: inputs that it fits.
        by_output: from the chain's output to the gradient by it.
    """
    with torch.no_grad():
        values = [x.detach().flatten(1)]
        layers = layers[1:] if _flattens(layers[0]) else layers
        for layer in layers:
            a = values[-1]
            if isinstance(layer, nn.Linear):
                values.append(F.linear(a, layer.weight, layer.bias))
            else:
                values.append(_ACTIVATIONS[type(layer)][0](a))
        g = by_output(values[-1])
        for place, layer in reversed(list(enumerate(layers))):
            a = values[place]
            if isinstance(layer, nn.Linear):
                yield layer, a, g
                g = g.mm(layer.weight) if place else g
            else:
                g = _ACTIVATIONS[type(layer)][1](g, a, values[place + 1])
