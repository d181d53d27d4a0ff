"""The attention models: exact gradients of each row, padding that changes nothing, and what each can learn.

Oracles: torch's own `MultiheadAttention` and `TransformerEncoderLayer` with the same weights, torch's `unfold`, autograd
one row at a time, and problems that only a model that sees order, a word, two features together or a place can solve.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from per_row import by_engine
from torch import nn
from torch.nn import functional as F

from client.models._encoder import Attention, Block, FeatureTokens, StepTokens, WordTokens, patches
from client.models.base import MODELS, Shape, build, layout_of, load_weights
from client.training.gradients import clipped_sum
from client.training.layers import has_closed_form
from strategies.errors import SettingError

ROWS = 7  # the first without any token, where a record can be that


@dataclass(frozen=True, kw_only=True)
class Case:
    spec: str
    shape: Shape

    def built(self, seed: int = 0) -> nn.Module:
        return build(MODELS.resolve(self.spec), self.shape, seed)

    def with_random_weights(self) -> nn.Module:
        module = self.built()
        load_weights(module, np.random.default_rng(0).normal(0, 0.4, layout_of(module).size).astype(np.float32))
        return module

    def rows(self, count: int = ROWS, seed: int = 1) -> torch.Tensor:
        random = torch.Generator().manual_seed(seed)
        lengths_B1 = torch.randint(1, self.shape.inputs[0] + 1, (count, 1), generator=random)
        lengths_B1[:1] = 0
        there_BT = torch.arange(self.shape.inputs[0]) < lengths_B1
        if self.shape.kind == "text":
            ids = torch.randint(1, self.shape.vocabulary, (count, *self.shape.inputs), generator=random)
            return torch.where(there_BT, ids, 0)
        x = torch.randn(count, *self.shape.inputs, generator=random)
        if self.shape.kind == "sequences":
            x[:, :, -1] = 1
            x = torch.where(there_BT[:, :, None], x, 0.0)
        return x


def case(spec: str, inputs: tuple[int, ...], kind: str, *, classes: int = 3, **more: object) -> Case:
    shape = Shape.of(inputs=inputs, classes=classes, task="classification", kind=kind, **more)
    return Case(spec=spec, shape=shape)


SMALL = "width=8, heads=2"
SIGNALS = case(f"transformer({SMALL}, tokens=5)", (13, 3), "signals")
SEQUENCES = case(f"transformer({SMALL})", (6, 4), "sequences")
LONG_SEQUENCES = case(f"transformer({SMALL}, tokens=4)", (10, 4), "sequences")
TEXT = case(f"text_transformer({SMALL})", (9,), "text", vocabulary=11)
TABLE = case(f"ft_transformer({SMALL})", (7,), "tabular", widths=(2, 1, 4))
PLAIN_TABLE = case(f"ft_transformer({SMALL})", (4,), "tabular")
IMAGES = case(f"vit({SMALL}, patch=3)", (2, 7, 5), "images")
CASES = {
    "signals": SIGNALS,
    "sequences": SEQUENCES,
    "long sequences": LONG_SEQUENCES,
    "text": TEXT,
    "table": TABLE,
    "plain table": PLAIN_TABLE,
    "images": IMAGES,
}
every_case = pytest.mark.parametrize("each", CASES.values(), ids=CASES)


def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(out, y, reduction="none")


def as_double(each: Case) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    x = each.rows()
    x = x.double() if x.is_floating_point() else x
    return each.with_random_weights().double(), x, torch.arange(len(x)) % each.shape.outputs


def one_by_one(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    grads = []
    for row in range(len(x)):
        module.zero_grad()
        loss(module(x[row : row + 1]), y[row : row + 1]).sum().backward()
        named = dict(module.named_parameters())
        grads.append(torch.cat([named[slot.name].grad.reshape(-1) for slot in layout_of(module).slots]))  # type: ignore[union-attr]
    return torch.stack(grads)


@every_case
def test_hooks_give_the_gradient_of_each_row(each: Case) -> None:
    module, x, y = as_double(each)
    expected_NP = one_by_one(module, x, y)
    assert expected_NP.isfinite().all()
    for slot in layout_of(module).slots:  # the comparison says something of each part
        assert expected_NP[:, slot.offset : slot.offset + slot.size].any(), slot.name
    found_NP = by_engine(module, loss, x, y)
    torch.testing.assert_close(found_NP, expected_NP, rtol=1e-9, atol=1e-12)


@every_case
def test_the_clipped_sum_is_that_of_the_rows(each: Case) -> None:
    module, x = each.with_random_weights(), each.rows()
    y = torch.arange(len(x)) % each.shape.outputs
    found = clipped_sum(module, loss, (x, y), np.arange(len(x)), 1e9).numpy()
    expected = one_by_one(each.with_random_weights(), x, y).double().sum(0).numpy()
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@every_case
def test_parts_with_weights_have_a_closed_form_and_are_called_once(each: Case) -> None:
    module, calls = each.built(), Counter[str]()
    for name, part in module.named_modules():
        if next(part.parameters(recurse=False), None) is not None:
            assert has_closed_form(part), name
            calls[name] = 0
            part.register_forward_hook(lambda part, given, out, name=name: calls.update([name]))
    module(each.rows())
    assert calls and set(calls.values()) == {1}
    assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}


@every_case
def test_a_gradient_has_no_bit_of_the_other_rows(each: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.training.gradients._random_lanes", lambda count: np.arange(count, dtype=np.uint8) % 4)
    module, few, many = each.with_random_weights(), each.rows(), each.rows(40, seed=2)
    many[:ROWS] = few
    y = torch.arange(40) % each.shape.outputs
    alone = by_engine(module, loss, few, y[:ROWS])
    assert torch.equal(by_engine(module, loss, many, y)[:ROWS], alone)
    assert alone[1:].any(dim=1).all()


@every_case
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_zero_row_and_no_row_are_finite(each: Case, kind: torch.dtype) -> None:
    module = each.with_random_weights().to(kind)
    x = torch.zeros_like(each.rows(3))
    x = x.to(kind) if x.is_floating_point() else x
    assert module(x[:0]).shape == (0, each.shape.outputs)
    out = module(x)
    assert out.dtype == kind and out.isfinite().all()
    loss(out, torch.zeros(3, dtype=torch.int64)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())


@every_case
def test_bfloat16_is_close(each: Case) -> None:
    module, x = each.built(), each.rows()
    expected = module(x)
    found = module.to(torch.bfloat16)(x.to(torch.bfloat16) if x.is_floating_point() else x)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("each", [SEQUENCES, LONG_SEQUENCES], ids=["a step a token", "three steps a token"])
def test_values_at_padding_change_nothing(each: Case) -> None:
    module, x = each.with_random_weights(), each.rows()
    padded = x[:, :, -1:] == 0
    assert padded.any() and not padded.all()
    for value in (5.0, 1e30, torch.inf, torch.nan):
        changed = torch.where(padded, value, x)
        changed[:, :, -1] = x[:, :, -1]
        assert torch.equal(module(changed), module(x))
    changed = torch.where(padded, x, x + 1)
    changed[:, :, -1] = x[:, :, -1]
    assert ((module(changed) - module(x)).abs() > 1e-3).any(dim=1)[1:].all()


def test_a_patch_is_present_where_one_of_its_steps_is() -> None:
    tokens = StepTokens((10, 2), patch=3, width=4, masked=True)
    x = torch.zeros(3, 10, 2)
    x[1, :4, 1] = 1
    x[2, :, 1] = 1
    _, present = tokens(x)
    assert present.tolist() == [
        [True, False, False, False, False],
        [True, True, True, False, False],
        [True, True, True, True, True],
    ]


def test_tokens_at_padding_change_nothing() -> None:
    for each, there_BT in ((TEXT, TEXT.rows() > 0), (SEQUENCES, SEQUENCES.rows()[:, :, -1] > 0)):
        module, x = each.with_random_weights(), each.rows()
        with torch.no_grad():
            before = module(x)
            if each is TEXT:
                module.tokens.content.weight[0] *= -2
            module.tokens.places.place.weight[5:] *= -2  # the norms would take away what is added to all of a token
            after = module(x)
        short_B = there_BT.sum(1) <= 4
        assert short_B[1:].any() and not short_B.all()
        assert torch.equal(after[short_B], before[short_B])
        assert ((after - before)[~short_B].abs() > 1e-3).any(dim=1).all()
    _, present = WordTokens((3,), 5, 4)(torch.tensor([[4, 1, 0]]))
    assert present.tolist() == [[True, True, True, False]]


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    nn.init.normal_(theirs.in_proj_bias)
    nn.init.normal_(theirs.out_proj.bias)
    ours = Attention(12, 3).double()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x, present = torch.randn(4, 6, 12, dtype=torch.float64), torch.rand(4, 6) > 0.4
    present[:, 0] = True
    expected, _ = theirs(x, x, x, key_padding_mask=~present)
    torch.testing.assert_close(ours(x, present), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours(x, None), theirs(x, x, x)[0], rtol=1e-10, atol=1e-10)


def test_a_block_is_an_encoder_layer_of_torch() -> None:
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(
        12, 3, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    ours = Block(12, 3).double()
    ours.attention.query_key_value.load_state_dict(
        {"weight": theirs.self_attn.in_proj_weight, "bias": theirs.self_attn.in_proj_bias}
    )
    ours.attention.out.load_state_dict(theirs.self_attn.out_proj.state_dict())
    pairs = ((ours.norm1, theirs.norm1), (ours.norm2, theirs.norm2))
    for mine, other in (*pairs, (ours.widen, theirs.linear1), (ours.narrow, theirs.linear2)):
        for value in other.parameters():
            nn.init.normal_(value)
        mine.load_state_dict(other.state_dict())
    x, present = torch.randn(4, 6, 12, dtype=torch.float64), torch.rand(4, 6) > 0.4
    present[:, 0] = True
    expected = theirs(x, src_key_padding_mask=~present)
    torch.testing.assert_close(ours(x, present), expected, rtol=1e-10, atol=1e-10)


def test_a_feature_token_sees_its_own_columns_alone() -> None:
    widths, x = (2, 1, 4), TABLE.rows()
    tokens = FeatureTokens(widths, 8)
    before, present = tokens(x)
    assert present is None and before.shape == (len(x), 1 + len(widths), 8)
    starts = np.cumsum([0, *widths])
    for feature, start in enumerate(starts[:-1]):
        changed = x.clone()
        changed[:, start : start + widths[feature]] = torch.inf  # times zero it would be not a number
        after, _ = tokens(changed)
        other = [place for place in range(4) if place != 1 + feature]
        assert torch.equal(after[:, other], before[:, other])
        assert not after[:, 1 + feature].isfinite().any()
    weight, bias = tokens.content.weight, tokens.content.bias
    expected = torch.stack(
        [F.linear(x[:, a:b], weight[a:b].t(), bias[1 + f]) for f, (a, b) in enumerate(pairwise(starts))], 1
    )
    torch.testing.assert_close(before[:, 1:], expected)
    torch.testing.assert_close(before[:, 0], bias[0].expand(len(x), -1))


def test_the_order_of_a_features_columns_is_in_its_weights_alone() -> None:
    module, x = TABLE.with_random_weights(), TABLE.rows()
    before, order = module(x), [0, 1, 2, 5, 3, 6, 4]
    with torch.no_grad():
        weight = module.tokens.content.weight
        assert not torch.allclose(module(x[:, order]), before)
        weight[:] = weight[order]
    torch.testing.assert_close(module(x[:, order]), before)
    moved = [3, 1, 2, 0, 4, 5, 6]  # a column of one feature in the place of another's
    with torch.no_grad():
        weight[:] = weight[np.argsort(order)][moved]
    assert not torch.allclose(module(x[:, moved]), before)


@pytest.mark.parametrize(("high", "wide"), [(6, 9), (7, 5), (2, 1)])
def test_patches_are_those_of_unfold(high: int, wide: int) -> None:
    x = torch.randn(3, 2, high, wide)
    filled = F.pad(x, (0, -wide % 3, 0, -high % 3))
    torch.testing.assert_close(patches(x, 3), F.unfold(filled, 3, stride=3).transpose(1, 2), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("steps", "tokens", "places"), [(48, 64, 48), (64, 64, 64), (65, 64, 33), (500, 64, 63), (9, 1, 1)]
)
def test_long_records_have_several_steps_a_token(steps: int, tokens: int, places: int) -> None:
    module = case(f"transformer({SMALL}, tokens={tokens})", (steps, 2), "signals").built()
    assert module.tokens.places.place.num_embeddings == 1 + places


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("transformer(width=30)", r"transformer.width = 30 .* a multiple of transformer.heads = 4"),
        ("text_transformer(heads=0)", r"text_transformer.heads = 0 .* at least 1"),
        ("ft_transformer(depth=0)", r"ft_transformer.depth = 0 .* at least 1"),
        ("vit(width=0)", r"vit.width = 0 "),
        ("vit(patch=0)", r"vit.patch = 0 .* at least 1"),
        ("transformer(tokens=0)", r"transformer.tokens = 0 .* at least 1"),
    ],
)
def test_sizes_that_no_encoder_has_are_refused(spec: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MODELS.resolve(spec)


def accuracy(each: Case, x: torch.Tensor, y: torch.Tensor, *, steps: int = 150, lr: float = 0.005) -> float:
    """Return the accuracy on the second half after training on the first."""
    module, half = each.built(), len(x) // 2
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    for step in range(steps):
        rows = torch.arange(64) + 64 * step
        rows %= half
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(module(x[rows])[:, 0], y[rows].float()).backward()
        optimizer.step()
    with torch.no_grad():
        return ((module(x[half:])[:, 0] > 0) == y[half:]).float().mean().item()


def two_different(count: int, below: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    both = torch.rand(count, below, generator=random).argsort(1)
    return both[:, 0], both[:, 1]


@pytest.mark.parametrize("kind", ["signals", "sequences"])
def test_which_of_two_events_came_first_is_learnt(kind: str) -> None:
    first, second = two_different(1024, 10)
    x, rows = torch.zeros(1024, 12, 3), torch.arange(1024)
    x[rows, first, 0] = 1
    x[rows, second, 1] = 1
    x[:, :10, 2] = 1
    each = case("transformer(width=16)", (12, 3), kind, classes=2)
    assert accuracy(each, x, first < second) > 0.95


def test_that_a_word_is_there_is_learnt() -> None:
    random = torch.Generator().manual_seed(5)
    x = torch.randint(2, 30, (1024, 12), generator=random)
    y = torch.rand(1024, generator=random) < 0.5
    x[torch.arange(1024), torch.randint(0, 6, (1024,), generator=random)] = torch.where(y, 1, 2)
    x[:, 6:][torch.rand(1024, generator=random) < 0.5] = 0
    assert accuracy(case("text_transformer(width=16)", (12,), "text", classes=2, vocabulary=30), x, y, steps=60) > 0.95


def test_that_a_category_turns_the_sign_of_a_number_is_learnt() -> None:
    random = torch.Generator().manual_seed(5)
    number, group = torch.randn(1024, generator=random), torch.randint(0, 4, (1024,), generator=random)
    x = torch.cat([number[:, None], torch.zeros(1024, 1), F.one_hot(group, 4), torch.zeros(1024, 1)], dim=1)
    y = (number > 0) ^ (group % 2 == 1)
    assert accuracy(case("ft_transformer(width=16)", (7,), "tabular", classes=2, widths=(2, 5)), x, y, steps=110) > 0.93


def test_where_a_blob_is_is_learnt() -> None:
    random = torch.Generator().manual_seed(5)
    x = 0.3 * torch.randn(1024, 1, 14, 14, generator=random)
    down, across = (torch.randint(0, 12, (1024,), generator=random) for _ in range(2))
    for row in range(1024):
        x[row, 0, down[row] : down[row] + 3, across[row] : across[row] + 3] += 2
    assert accuracy(case("vit(width=16)", (1, 14, 14), "images", classes=2), x, across < 6) > 0.9
