"""What one layer's weights owe to each unit, from the layer's inputs and the loss's gradients by its outputs.

Book-keeping (Bu et al. 2023, "Differentially private optimization on large foundation models", section 3): the
gradient of a Linear's weight by row n is the sum over its places s of g_ns (x) a_ns. Its norm and the weighted sum
over rows follow from inputs a and output gradients g alone, so neither a second backward pass nor the gradients of
all rows are needed. Two forms:

- few places (S small against the weight): the norm by Gram matrices, |G|^2 = sum over s, t of (a_s . a_t)(g_s . g_t),
  and the weighted sum by one matrix product; for S = 1 the norm is |a| |g|.
- many places: the product g^T a of each unit. It is smaller than the inputs and gradients that it replaces, and it
  takes the place of the weight product of an ordinary backward pass, so it costs next to nothing.

Guarantees: a unit's norm is never below the norm of what it adds to the sum, but for float32 rounding of the sum.

Legend: N rows, U units, S places of a row, I inputs, O outputs, P values of a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from client.models._encoder import FeatureProducts
from client.models._recurrence import StateProduct

Names = Collection[str]
Into = Mapping[str, torch.Tensor]  # where the sum of a parameter goes, by the layer's name for it: float32, its shape

# A value of a per-unit product is written once and read twice; that costs as much as about so many multiply-adds.
_TRAFFIC = 8
_MOST_KEPT = 2.0  # per-unit products take at most so many times the memory of what they replace
_ROUNDING = 2.0**-21  # of a Gram norm, against the norm without cancellation: four times float32's
_ALIGNED = 4  # float32 values that fill 16 bytes
_VANISHED = 2.0**-126  # squares below it may count as zero in float32, and another factor may be as large as 2^126
_UNFOLDED_AT_ONCE = {"cpu": 2**18, "cuda": 2**24}  # values: 1 MiB, which stays in the cache; 64 MiB


@dataclass(frozen=True, kw_only=True)
class Units:
    """Which rows belong together.

    Args:
        count: number of units.
        unit_N: (rows,) position of each row's unit; None when row n is unit n.
        rows_UR: (units, most rows that a unit may have) rows of each unit, -1 where it has fewer; None as above.
    """

    count: int
    unit_N: torch.Tensor | None = None
    rows_UR: torch.Tensor | None = None

    def added(self, per_row_NP: torch.Tensor) -> torch.Tensor:
        """Return (units, ...): the sums of each unit's rows."""
        if self.unit_N is None:
            return per_row_NP
        out = per_row_NP.new_zeros(self.count, *per_row_NP.shape[1:])
        return out.index_add_(0, self.unit_N, per_row_NP)

    def joined(self, values_NSI: torch.Tensor) -> torch.Tensor:
        """Return (units, places of all rows of the unit, I), filled up with zeros."""
        if self.rows_UR is None:
            return values_NSI
        own_URSI = values_NSI[self.rows_UR.clamp_min(0)]
        own_URSI = torch.where((self.rows_UR >= 0)[:, :, None, None], own_URSI, 0)
        return own_URSI.flatten(1, 2)


class Part(Protocol):
    """A layer's gradients, by unit."""

    def squared_norm(self) -> torch.Tensor:
        """Return (units,)."""
        ...

    def only(self, keep_U: torch.Tensor) -> Part:
        """Return the same with zeros for all units but these (bool)."""
        ...

    def write(self, factor_U: torch.Tensor, into: Into) -> None:
        """Write the sum over units of factor times gradient."""
        ...


@dataclass(frozen=True, kw_only=True)
class Explicit:
    """The gradients of one parameter as they are, (units, P)."""

    name: str
    values_UP: torch.Tensor

    def squared_norm(self) -> torch.Tensor:
        return _squared(self.values_UP)

    def only(self, keep_U: torch.Tensor) -> Explicit:
        return Explicit(name=self.name, values_UP=torch.where(keep_U[:, None], self.values_UP, 0))

    def write(self, factor_U: torch.Tensor, into: Into) -> None:
        torch.mv(_typed(self.values_UP, factor_U).t(), factor_U, out=into[self.name].view(-1))


@dataclass(frozen=True, kw_only=True)
class Outer:
    """A Linear over one place a unit: g (x) a for the weight, g for the bias.

    Args:
        a_UI: inputs.
        g_UO: gradients by the outputs.
        names: which of the two are trained.
    """

    a_UI: torch.Tensor
    g_UO: torch.Tensor
    names: Names

    def squared_norm(self) -> torch.Tensor:
        g_U = _squared(self.g_UO).add_(_VANISHED * self.g_UO.shape[-1])
        if "weight" not in self.names:
            return g_U
        a_U = _squared(self.a_UI).add_(1.0 if "bias" in self.names else _VANISHED * self.a_UI.shape[-1])
        return a_U.mul_(g_U)

    def only(self, keep_U: torch.Tensor) -> Outer:
        a_UI, g_UO = torch.where(keep_U[:, None], self.a_UI, 0), torch.where(keep_U[:, None], self.g_UO, 0)
        return Outer(a_UI=a_UI, g_UO=g_UO, names=self.names)

    def write(self, factor_U: torch.Tensor, into: Into) -> None:
        a_UI, g_UO = _typed(self.a_UI, factor_U), _typed(self.g_UO, factor_U)
        if "bias" in self.names:
            torch.mv(g_UO.t(), factor_U, out=into["bias"])
        if "weight" in self.names:
            torch.mm((g_UO * factor_U[:, None]).t(), a_UI, out=into["weight"])


@dataclass(frozen=True, kw_only=True)
class Product:
    """The gradients of a matrix as products that are not made: sum over places of g (x) a.

    Args:
        name: of the matrix.
        a_USI: inputs.
        g_USO: gradients by the outputs.
    """

    name: str
    a_USI: torch.Tensor
    g_USO: torch.Tensor

    def squared_norm(self) -> torch.Tensor:
        a_US = _squared(self.a_USI).add_(_VANISHED / _ROUNDING * self.a_USI.shape[-1])
        g_US = _squared(self.g_USO).add_(_VANISHED / _ROUNDING * self.g_USO.shape[-1])
        gram_USS = (self.a_USI @ self.a_USI.mT).mul_(self.g_USO @ self.g_USO.mT)
        # Where the products of the places cancel, rounding is large against the sum. It is added, so that the norm is
        # never too small; without cancellation it is below 1e-6.
        apart_U = (a_US * g_US).sqrt_().sum(dim=1).square_()
        return gram_USS.sum(dim=(1, 2)).clamp_min_(0) + _ROUNDING * apart_U

    def only(self, keep_U: torch.Tensor) -> Product:
        keep_U11 = keep_U[:, None, None]
        a_USI, g_USO = torch.where(keep_U11, self.a_USI, 0), torch.where(keep_U11, self.g_USO, 0)
        return Product(name=self.name, a_USI=a_USI, g_USO=g_USO)

    def write(self, factor_U: torch.Tensor, into: Into) -> None:
        a_KI, g_KO = _typed(self.a_USI.flatten(0, 1), factor_U), _typed(self.g_USO.flatten(0, 1), factor_U)
        factor_K1 = factor_U.repeat_interleave(self.a_USI.shape[1])[:, None]
        if a_KI.shape[1] < g_KO.shape[1]:
            a_KI = a_KI * factor_K1
        else:
            g_KO = g_KO * factor_K1
        torch.mm(g_KO.t(), a_KI, out=into[self.name].view(g_KO.shape[1], a_KI.shape[1]))


@dataclass(frozen=True, kw_only=True)
class Scattered:
    """The gradients of a table of vectors of which each unit reads few.

    Args:
        owner_K: unit of each of the K pairs of a unit and an entry that it reads; some may be repeated with zeros.
        entry_K: the entry.
        values_KO: the gradient of that entry by that unit.
        count: number of units.
    """

    name: str
    owner_K: torch.Tensor
    entry_K: torch.Tensor
    values_KO: torch.Tensor
    count: int

    def squared_norm(self) -> torch.Tensor:
        by_pair_K = _squared(self.values_KO)
        return by_pair_K.new_zeros(self.count).index_add_(0, self.owner_K, by_pair_K)

    def only(self, keep_U: torch.Tensor) -> Scattered:
        kept_KO = torch.where(keep_U[self.owner_K][:, None], self.values_KO, 0)
        return Scattered(
            name=self.name, owner_K=self.owner_K, entry_K=self.entry_K, values_KO=kept_KO, count=self.count
        )

    def write(self, factor_U: torch.Tensor, into: Into) -> None:
        weighted_KO = _typed(self.values_KO, factor_U) * factor_U[self.owner_K][:, None]
        into[self.name].zero_().index_add_(0, self.entry_K, weighted_KO)


def _typed(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == like.dtype else values.to(like.dtype)


def _squared(values: torch.Tensor) -> torch.Tensor:
    """Return the squared norms over the last dimension."""
    norm: torch.Tensor = torch.linalg.vector_norm(values, dim=-1)
    return norm.square_()


# --- layers -------------------------------------------------------------------------------------------------

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Handler = Callable[..., list[Part]]


def _linear(layer: nn.Linear, a: torch.Tensor, g: torch.Tensor, units: Units, names: Names) -> list[Part]:
    """(N, ..., I) and (N, ..., O)."""
    if a.ndim == 2 and units.unit_N is None:
        return [Outer(a_UI=a, g_UO=g, names=names)]
    a_NSI, g_NSO = _flat(a), _flat(g)
    parts: list[Part] = []
    if "bias" in names:
        parts.append(Explicit(name="bias", values_UP=units.added(g_NSO.sum(1))))
    if "weight" in names:
        parts.append(_matrix("weight", a_NSI, g_NSO, units))
    return parts


def _kept(places: int, inputs: int, outputs: int, units: Units) -> bool:
    """Return whether the product of each unit costs less than Gram matrices do, within memory."""
    of_unit = places * (1 if units.rows_UR is None else units.rows_UR.shape[1])
    cheap = _TRAFFIC * inputs * outputs <= of_unit**2 * (inputs + outputs)
    return cheap and inputs * outputs <= _MOST_KEPT * places * (inputs + outputs)


def _matrix(name: str, a_NSI: torch.Tensor, g_NSO: torch.Tensor, units: Units) -> Part:
    """Choose the form that costs less, within memory."""
    if _kept(a_NSI.shape[1], a_NSI.shape[2], g_NSO.shape[2], units):
        a_NSI, g_NSO = _whole(a_NSI, g_NSO)
        return Explicit(name=name, values_UP=units.added(torch.bmm(g_NSO.mT, a_NSI).flatten(1)))
    return _product(name, a_NSI, g_NSO, units)


def _product(name: str, a_NSI: torch.Tensor, g_NSO: torch.Tensor, units: Units) -> Product:
    a_USI, g_USO = _whole(units.joined(a_NSI), units.joined(g_NSO))
    return Product(name=name, a_USI=a_USI, g_USO=g_USO)


def _whole(a_NSI: torch.Tensor, g_NSO: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Add places of zeros where a row's matrix is no multiple of 16 bytes.

    The last bit of a product depends on the alignment of its factors; without this, on how many rows come before.
    """
    places = a_NSI.shape[1]
    if places == 1 or all(places * values.shape[2] % _ALIGNED == 0 for values in (a_NSI, g_NSO)):
        return a_NSI, g_NSO
    more = (0, 0, 0, -places % _ALIGNED)
    return F.pad(a_NSI, more), F.pad(g_NSO, more)


def _convolution(layer: Convolution, a: torch.Tensor, g: torch.Tensor, units: Units, names: Names) -> list[Part]:
    """(N, C, places...) and (N, O, places after...)."""
    parts: list[Part] = []
    g_NOS = g.flatten(2)
    if "bias" in names:
        parts.append(Explicit(name="bias", values_UP=units.added(g_NOS.sum(2))))
    if "weight" not in names:
        return parts
    inputs, outputs, places = layer.weight[0].numel(), layer.out_channels, g_NOS.shape[2]
    if layer.groups == 1 and not _kept(places, inputs, outputs, units):
        parts.append(_product("weight", _unfolded(layer, a, g.shape[2:])[:, 0].mT, g_NOS.mT, units))
        return parts
    at_once = max(1, _UNFOLDED_AT_ONCE[g.device.type] // (inputs * layer.groups * places))
    # Places of zeros as in `_whole`: groups lie one after the other in a row too.
    odd = any(places * values % _ALIGNED for values in (inputs, outputs // layer.groups))
    more = (0, -places % _ALIGNED if odd else 0)
    g_NGOS = F.pad(g_NOS, more).unflatten(1, (layer.groups, -1))
    per_row_NGOI = g.new_empty(len(g), layer.groups, outputs // layer.groups, inputs)
    for start in range(0, len(g), at_once):
        some = slice(start, start + at_once)
        a_NGIS = F.pad(_unfolded(layer, a[some], g.shape[2:]), more)
        torch.matmul(g_NGOS[some], a_NGIS.mT, out=per_row_NGOI[some])
    parts.append(Explicit(name="weight", values_UP=units.added(per_row_NGOI.flatten(1))))
    return parts


def _unfolded(layer: Convolution, a: torch.Tensor, sides: torch.Size) -> torch.Tensor:
    """Return (N, groups, C / groups * kernel, places): what each place of the output is computed from."""
    padding = [(p, p) for p in layer.padding] if not isinstance(layer.padding, str) else _padding(layer)
    a = F.pad(a, [side for pair in reversed(padding) for side in pair]).contiguous()
    places = a.stride()[2:]
    view = a.as_strided(
        (*a.shape[:2], *layer.kernel_size, *sides),
        (
            *a.stride()[:2],
            *(s * d for s, d in zip(places, layer.dilation, strict=True)),
            *(s * d for s, d in zip(places, layer.stride, strict=True)),
        ),
    )
    return view.reshape(len(a), layer.groups, layer.weight[0].numel(), math.prod(sides))


def _padding(layer: Convolution) -> list[tuple[int, int]]:
    """Return the zeros before and after each side that "same" stands for, as torch puts them."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    return [(t // 2, t - t // 2) for t in total]


def _embedding(layer: nn.Embedding, ids: torch.Tensor, g: torch.Tensor, units: Units, names: Names) -> list[Part]:
    """(N, ...) and (N, ..., O)."""
    ids_NS, g_KO = ids.reshape(len(ids), -1), g.reshape(-1, g.shape[-1])
    rows = torch.arange(len(ids), device=ids.device) if units.unit_N is None else units.unit_N
    pair_K, order_K = (rows[:, None] * layer.num_embeddings + ids_NS).flatten().sort(stable=True)
    if layer.padding_idx is not None:
        g_KO = torch.where(ids_NS.flatten()[:, None] != layer.padding_idx, g_KO, 0)
    # No shape depends on a value: there are as many places for pairs as reads, and those left over hold zeros.
    which_K = F.pad(pair_K[1:] != pair_K[:-1], (1, 0)).cumsum(0)
    pairs_K = torch.zeros_like(pair_K).scatter_(0, which_K, pair_K)
    return [
        Scattered(
            name="weight",
            owner_K=torch.div(pairs_K, layer.num_embeddings, rounding_mode="floor"),
            entry_K=pairs_K % layer.num_embeddings,
            values_KO=torch.zeros_like(g_KO).index_add_(0, which_K, g_KO[order_K]),
            count=units.count,
        )
    ]


def _layer_norm(layer: nn.LayerNorm, a: torch.Tensor, g: torch.Tensor, units: Units, names: Names) -> list[Part]:
    normal = F.layer_norm(a, layer.normalized_shape, None, None, layer.eps)
    return _scaled(normal, g, units, names, len(layer.normalized_shape))


def _rms_norm(layer: nn.RMSNorm, a: torch.Tensor, g: torch.Tensor, units: Units, names: Names) -> list[Part]:
    normal = F.rms_norm(a, layer.normalized_shape, None, layer.eps)
    return _scaled(normal, g, units, names, len(layer.normalized_shape))


def _scaled(normal: torch.Tensor, g: torch.Tensor, units: Units, names: Names, own: int) -> list[Part]:
    """Layers that end in weight * normal + bias, over the last `own` dimensions."""
    over = tuple(range(1, g.ndim - own))
    parts: list[Part] = []
    for name in ("weight", "bias"):
        if name in names:
            by_place = normal.mul_(g) if name == "weight" else g
            per_row = by_place.sum(over) if over else by_place
            parts.append(Explicit(name=name, values_UP=units.added(per_row.reshape(len(g), -1))))
    return parts


def _group_norm(layer: nn.GroupNorm, a: torch.Tensor, g: torch.Tensor, units: Units, names: Names) -> list[Part]:
    parts: list[Part] = []
    g_NCS = g.reshape(*g.shape[:2], -1)  # (N, C) has one place
    if "weight" in names:
        normal = F.group_norm(a, layer.num_groups, None, None, layer.eps).reshape(g_NCS.shape)
        parts.append(Explicit(name="weight", values_UP=units.added(normal.mul_(g_NCS).sum(2))))
    if "bias" in names:
        parts.append(Explicit(name="bias", values_UP=units.added(g_NCS.sum(2))))
    return parts


def _features(layer: FeatureProducts, a: torch.Tensor, g: torch.Tensor, units: Units, names: Names) -> list[Part]:
    """(N, C) and (N, S, O)."""
    parts: list[Part] = []
    if "weight" in names:
        by_column_NCO = g[:, 1:] if len(layer.weight) == g.shape[1] - 1 else g[:, layer.owner]
        parts.append(Explicit(name="weight", values_UP=units.added((a[:, :, None] * by_column_NCO).flatten(1))))
    if "bias" in names:
        parts.append(Explicit(name="bias", values_UP=units.added(g.flatten(1))))
    return parts


def _any_layer(layer: nn.Module, a: torch.Tensor, g: torch.Tensor, units: Units, names: Names) -> list[Part]:
    """Any layer of one input and one output: the gradient of each row by automatic differentiation."""
    own: dict[str, torch.Tensor] = {name: getattr(layer, name) for name in names}
    values = {name: parameter.detach() for name, parameter in own.items()}

    def pulled(some: dict[str, torch.Tensor], a_1: torch.Tensor, g_1: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.func.functional_call(layer, some, (a_1[None],))[0]
        return (out * g_1).sum()

    with torch.enable_grad():
        try:
            found = torch.func.vmap(torch.func.grad(pulled), in_dims=(None, 0, 0), randomness="different")(values, a, g)
        except (RuntimeError, ValueError, TypeError):  # an operation that cannot be vectorised
            rows = [torch.autograd.grad(pulled(own, *row), list(own.values())) for row in zip(a, g, strict=True)]
            found = dict(zip(own, map(torch.stack, zip(*rows, strict=True)), strict=True))
    return [Explicit(name=name, values_UP=units.added(found[name].flatten(1))) for name in own]


def _flat(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(len(values), -1, values.shape[-1])


_HANDLERS: dict[type[nn.Module], Handler] = {
    nn.Linear: _linear,
    StateProduct: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.RMSNorm: _rms_norm,
    FeatureProducts: _features,
}


def parts_of(layer: nn.Module, a: torch.Tensor, g: torch.Tensor, units: Units, names: Names) -> list[Part]:
    """Return what the layer's own trainable parameters owe to each unit.

    Args:
        layer: of one input and one output, no operation across rows.
        a: (N, ...) its input.
        g: (N, ...) gradients of the loss by its output.
        units: of the rows.
        names: of the parameters that are trained.
    """
    if g.dtype not in (torch.float32, torch.float64):
        g = g.float()
    if a.dtype != g.dtype and a.is_floating_point():
        a = a.to(g.dtype)
    compute = _HANDLERS[type(layer)] if has_closed_form(layer) else _any_layer
    return compute(layer, a, g, units, names)


def has_closed_form(layer: nn.Module) -> bool:
    """Return whether the gradients of such a layer are known here, without automatic differentiation."""
    option = layer.__dict__.get  # a module that is asked for what it lacks takes long to say so
    unusual = (
        not layer._parameters.keys() <= {"weight", "bias"}  # a weight that is computed from others
        or option("padding_mode", "zeros") != "zeros"
        or option("scale_grad_by_freq", False)
        or option("max_norm") is not None
    )
    return type(layer) in _HANDLERS and not unusual
