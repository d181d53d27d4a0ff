"""The recurrent networks' states and gradients against torch's own LSTM and GRU on packed sequences, step by step as on
a CPU and in one call as on a GPU.

Oracles: torch.nn.LSTM and torch.nn.GRU in float64, and finite differences.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from per_row import by_engine
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from client.models import _cells, _recurrence
from client.models._recurrence import Cell, Stack, from_torch, to_torch
from client.models.base import MODELS, Shape, build, layout_of

INPUTS, HIDDEN, STEPS = 3, 4, 7
LENGTHS = torch.tensor([7, 1, 4, 7, 2, 6])
TORCH: dict[Cell, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU}
every_cell = pytest.mark.parametrize("cell", TORCH)
every_stack = pytest.mark.parametrize(
    ("layers", "bidirectional"), [(1, False), (2, False), (1, True), (2, True)], ids=["1", "2", "1 both", "2 both"]
)


@pytest.fixture(autouse=True, params=["loop", "fused"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "fused":
        cells = {name: replace(cell, loop=cell.fused) for name, cell in _cells.RECURRENCES.items()}
        monkeypatch.setattr(_recurrence, "RECURRENCES", cells)


def twins(cell: Cell, layers: int, bidirectional: bool) -> tuple[Stack, nn.RNNBase]:
    torch.manual_seed(layers)
    stack = Stack(cell, INPUTS, HIDDEN, layers=layers, bidirectional=bidirectional).double()
    oracle = TORCH[cell](INPUTS, HIDDEN, num_layers=layers, bidirectional=bidirectional, batch_first=True).double()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.mul_(3)  # far from the linear part of every gate
    from_torch(stack, oracle.state_dict())
    return stack, oracle


def packed(oracle: nn.RNNBase, x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs, zero at padding, and the last states (layers * directions, rows, hidden)."""
    out, last = oracle(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    states = last[0] if isinstance(last, tuple) else last
    return pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])[0], states


def data(rows: int = len(LENGTHS)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(rows, STEPS, INPUTS)))


@every_cell
@every_stack
def test_states_and_gradients_are_those_of_packed_sequences(cell: Cell, layers: int, bidirectional: bool) -> None:
    stack, oracle = twins(cell, layers, bidirectional)
    ours, theirs = data().requires_grad_(), data().requires_grad_()
    there = (torch.arange(STEPS) < LENGTHS[:, None])[..., None]
    weight = torch.from_numpy(np.random.default_rng(1).normal(size=(6, STEPS, HIDDEN * (1 + bidirectional)))) * there
    states, (expected, _) = stack(ours, LENGTHS), packed(oracle, theirs, LENGTHS)
    torch.testing.assert_close(states * there, expected, rtol=1e-9, atol=1e-9)
    (states * weight).sum().backward()
    (expected * weight).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    assert not (ours.grad * ~there).any()
    gradients = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    with torch.no_grad():
        for parameter in stack.parameters():
            assert parameter.grad is not None and parameter.grad.any()
            parameter.copy_(parameter.grad)
    found = to_torch(stack)
    assert set(found) == set(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9)


@every_cell
def test_states_without_a_graph_are_the_same(cell: Cell) -> None:
    stack, _ = twins(cell, 2, True)
    with torch.no_grad():
        states = stack(data(), LENGTHS)
    assert not states.requires_grad
    torch.testing.assert_close(states, stack(data(), LENGTHS).detach(), rtol=0, atol=0)


@every_cell
@every_stack
def test_weights_go_to_torch_and_back(cell: Cell, layers: int, bidirectional: bool) -> None:
    stack, oracle = twins(cell, layers, bidirectional)
    state = oracle.state_dict()
    found = to_torch(stack)
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in state.items()}
    assert all(torch.equal(found[name], state[name]) for name in state)


@every_cell
def test_gradients_are_those_of_finite_differences(cell: Cell) -> None:
    stack, _ = twins(cell, 1, True)
    names, parameters = zip(*stack.named_parameters(), strict=True)
    lengths = torch.tensor([5, 2])
    there = (torch.arange(5) < lengths[:, None])[..., None]

    def states(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return functional_call(stack, dict(zip(names, values, strict=True)), (x, lengths)) * there

    inputs = [data(2)[:, :5].clone().requires_grad_(), *(p.detach().clone().requires_grad_() for p in parameters)]
    assert torch.autograd.gradcheck(states, inputs)


@every_cell
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_gradients_per_row_are_those_of_torch_on_each_record(cell: Cell, pool: str) -> None:
    shape = Shape(inputs=(STEPS, INPUTS), outputs=1, task="regression", kind="sequences")
    spec = f"{cell}(hidden={HIDDEN}, layers=2, bidirectional=true, pool='{pool}')"
    module = build(MODELS.resolve(spec), shape, 0).double()
    oracle = TORCH[cell](INPUTS, HIDDEN, num_layers=2, bidirectional=True, batch_first=True).double()
    stack, head = module.stack, module.head
    assert isinstance(stack, Stack) and isinstance(head, nn.Linear)
    oracle.load_state_dict(to_torch(stack))
    x = data()
    x[..., -1] = (torch.arange(STEPS) < LENGTHS[:, None]).double()
    rows = by_engine(module, lambda out, y: 0.5 * (out[:, 0] - y) ** 2, x, torch.arange(6.0).double())
    slots = layout_of(module).slots
    for row, (record, length) in enumerate(zip(x, LENGTHS, strict=True)):
        out, last = packed(oracle, record[None], length[None])
        pooled = torch.cat([last[-2], last[-1]], dim=1) if pool == "last" else out.sum(1) / length
        oracle.zero_grad()
        (0.5 * (head(pooled)[0, 0] - row) ** 2).backward()
        found = {slot.name: rows[row, slot.offset : slot.offset + slot.size].view(slot.shape) for slot in slots}
        with torch.no_grad():
            for name, parameter in stack.named_parameters():
                parameter.copy_(found[f"stack.{name}"])
        for name, gradient in to_torch(stack).items():
            torch.testing.assert_close(gradient, oracle.get_parameter(name).grad, rtol=1e-9, atol=1e-9)


@every_cell
def test_a_state_in_bfloat16_keeps_what_single_steps_add(cell: Cell) -> None:
    """A thousand small steps: summed in bfloat16, they would be lost."""
    exact = Stack(cell, 1, 2)
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.zero_()
        biases = {"lstm": [-6.0, 6.0, 0.5, 2.0], "gru": [0.0, 6.0, 0.5]}[cell]
        exact.get_parameter("layers.0.onward.input.bias").copy_(torch.tensor(biases).repeat_interleave(2))
    x, lengths = torch.zeros(1, 1000, 1), torch.tensor([1000])
    expected = exact(x, lengths)[0, -1]
    found = exact.to(torch.bfloat16)(x.bfloat16(), lengths)[0, -1].float()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


@every_cell
def test_one_record_of_one_step_and_none_at_all(cell: Cell) -> None:
    stack, oracle = twins(cell, 2, True)
    one = data(1)[:, :1]
    torch.testing.assert_close(stack(one, torch.tensor([1])), oracle(one)[0], rtol=1e-9, atol=1e-9)
    assert stack(data(0), LENGTHS[:0]).shape == (0, STEPS, 2 * HIDDEN)
    assert stack(data(2), torch.tensor([0, 0])).isfinite().all()


@every_cell
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_a_record_without_steps_is_read_as_a_zero_state(cell: Cell, pool: str) -> None:
    shape = Shape(inputs=(STEPS,), outputs=2, task="multilabel", kind="text", vocabulary=9)
    module = build(MODELS.resolve(f"{cell}(bidirectional=true, pool='{pool}')"), shape, 0)
    out = module(torch.zeros(3, STEPS, dtype=torch.int64))
    torch.testing.assert_close(out, module.get_parameter("head.bias").expand(3, 2), rtol=0, atol=0)
