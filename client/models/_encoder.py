"""The attention encoder that several models share, and what turns a record of each kind into tokens.

Attention of Vaswani et al. 2017 ("Attention is all you need", section 3.2) in pre-norm blocks (Xiong et al. 2020, "On
layer normalization in the transformer architecture": the norm before each branch, which trains without warm-up), read
out as the mean of the tokens. Under DP-SGD the mean learnt faster than a class token did: the clipped gradient reaches
every token at once.

Guarantees: no operation mixes records. All weights are in `Linear`, `Embedding` and `LayerNorm`, each called once in a
pass on (rows, ...), so that the gradient of each row can be had exactly from what goes in and out of the parts. There
is no dropout, so a record's gradient is a function of the record and the weights. A token that is not present changes
nothing, whatever its values are. A start token without content is always present, so a record without any other token
is finite too.

Shape suffixes: B rows, T tokens without the start token, S = 1 + T with it at place 0, D width, H heads, C channels or
columns, F features of a table, P values of a patch.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from client.models._sizes import Sizes

Tokens = tuple[torch.Tensor, torch.Tensor | None]
_SPREAD = 0.2  # of initial embeddings and outputs; with 0.02 as in BERT, places are learnt late under noise
_HIDDEN = 2  # hidden width of a block over its width; 4 is usual where noise does not grow with the weights


class Encoder(nn.Module):
    """(rows, *inputs) to (rows, outputs).

    Args:
        tokens: turns inputs into content_BSD, with the start token first, and present_BS, or None where all are.
        sizes: of the blocks.
        outputs: numbers a row.
    """

    def __init__(self, tokens: nn.Module, sizes: Sizes, outputs: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.blocks = nn.ModuleList(Block(sizes.width, sizes.heads) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, outputs)
        nn.init.trunc_normal_(self.head.weight, std=_SPREAD)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        content_BSD, present_BS = self.tokens(x)
        for block in self.blocks:
            content_BSD = block(content_BSD, present_BS)
        out: torch.Tensor = self.head(_mean(self.norm(content_BSD), present_BS))
        return out


def _mean(content_BSD: torch.Tensor, present_BS: torch.Tensor | None) -> torch.Tensor:
    if present_BS is None:
        return content_BSD.mean(dim=1)
    present_BS1 = present_BS[:, :, None]
    total_BD = torch.where(present_BS1, content_BSD, 0.0).sum(dim=1)
    return total_BD / present_BS1.sum(dim=1).to(total_BD.dtype)


class Block(nn.Module):
    """Attention, then two layers on each token by itself; both are added to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, _HIDDEN * width)
        self.narrow = nn.Linear(_HIDDEN * width, width)

    def forward(self, content_BSD: torch.Tensor, present_BS: torch.Tensor | None) -> torch.Tensor:
        content_BSD = content_BSD + self.attention(self.norm1(content_BSD), present_BS)
        branch_BSD: torch.Tensor = self.narrow(F.gelu(self.widen(self.norm2(content_BSD))))
        return content_BSD + branch_BSD


class Attention(nn.Module):
    """Each token takes a mean of the values of the present ones, weighted by how its query fits their keys.

    The rows of `query_key_value` are in the order of torch's `MultiheadAttention.in_proj_weight`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, content_BSD: torch.Tensor, present_BS: torch.Tensor | None) -> torch.Tensor:
        rows, tokens, width = content_BSD.shape
        split = self.query_key_value(content_BSD).reshape(rows, tokens, 3, self.heads, width // self.heads)
        query_BHSd, key_BHSd, value_BHSd = split.permute(2, 0, 3, 1, 4)
        mask_B11S = None if present_BS is None else present_BS[:, None, None, :]
        mixed_BHSd = F.scaled_dot_product_attention(query_BHSd, key_BHSd, value_BHSd, attn_mask=mask_B11S)
        out_BSD: torch.Tensor = self.out(mixed_BHSd.transpose(1, 2).reshape(rows, tokens, width))
        return out_BSD


class Places(nn.Module):
    """Puts the start token before T tokens and adds a learnt vector a place; the start token is that of place 0."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.place = nn.Embedding(1 + tokens, width)
        nn.init.trunc_normal_(self.place.weight, std=_SPREAD)

    def forward(self, content_BTD: torch.Tensor) -> torch.Tensor:
        rows, tokens, width = content_BTD.shape
        ids_BS = torch.arange(1 + tokens, device=content_BTD.device).expand(rows, 1 + tokens)
        content_BSD = torch.cat([content_BTD.new_zeros(rows, 1, width), content_BTD], dim=1)
        out_BSD: torch.Tensor = content_BSD + self.place(ids_BS)
        return out_BSD


class StepTokens(nn.Module):
    """(B, steps, C) to one token for each `patch` steps; the record is filled with zeros up to whole patches.

    Args:
        inputs: (steps, C).
        patch: steps a token.
        width: numbers a token.
        masked: the last channel is 1 at steps that are there and 0 at others, of which the values are ignored.
    """

    def __init__(self, inputs: tuple[int, ...], patch: int, width: int, masked: bool) -> None:
        super().__init__()
        steps, channels = inputs
        self.patch, self.masked = patch, masked
        self.content = nn.Linear(patch * channels, width)
        self.places = Places(math.ceil(steps / patch), width)

    def forward(self, x_BTC: torch.Tensor) -> Tokens:
        rows, steps, channels = x_BTC.shape
        tokens = math.ceil(steps / self.patch)
        present_BS = None
        if self.masked:
            there_BT1 = x_BTC[:, :, -1:] > 0
            x_BTC = torch.where(there_BT1, x_BTC, 0.0)
        x_BTP = F.pad(x_BTC, (0, 0, 0, tokens * self.patch - steps)).reshape(rows, tokens, self.patch * channels)
        if self.masked:
            present_BS = _with_start_token(x_BTP[:, :, channels - 1 :: channels].amax(dim=2) > 0)
        return self.places(self.content(x_BTP)), present_BS


class WordTokens(nn.Module):
    """(B, T) ids to one token an id; id 0 is not present."""

    def __init__(self, inputs: tuple[int, ...], vocabulary: int, width: int) -> None:
        super().__init__()
        self.content = nn.Embedding(vocabulary, width)
        nn.init.trunc_normal_(self.content.weight, std=_SPREAD)
        self.places = Places(inputs[0], width)

    def forward(self, ids_BT: torch.Tensor) -> Tokens:
        return self.places(self.content(ids_BT)), _with_start_token(ids_BT > 0)


class PatchTokens(nn.Module):
    """(B, C, height, width) to one token for each square patch; images are filled with zeros up to whole patches."""

    def __init__(self, inputs: tuple[int, ...], patch: int, width: int) -> None:
        super().__init__()
        channels, high, wide = inputs
        self.patch = patch
        self.content = nn.Linear(channels * patch**2, width)
        self.places = Places(math.ceil(high / patch) * math.ceil(wide / patch), width)

    def forward(self, x_BCHW: torch.Tensor) -> Tokens:
        return self.places(self.content(patches(x_BCHW, self.patch))), None


def patches(x_BCHW: torch.Tensor, side: int) -> torch.Tensor:
    """Return (B, T, P): square patches from left to right, then down; each has its channels one after the other."""
    rows, channels, high, wide = x_BCHW.shape
    down, across = math.ceil(high / side), math.ceil(wide / side)
    filled = F.pad(x_BCHW, (0, across * side - wide, 0, down * side - high))
    split = filled.reshape(rows, channels, down, side, across, side).permute(0, 2, 4, 1, 3, 5)
    return split.reshape(rows, down * across, channels * side**2)


class FeatureTokens(nn.Module):
    """(B, C) to one token a feature of a table, which sees that feature's columns alone; the start token is first.

    Args:
        widths: columns of each feature, in order.
        width: numbers a token.
    """

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.content = FeatureProducts(widths, width)

    def forward(self, x_BC: torch.Tensor) -> Tokens:
        return self.content(x_BC), None


class FeatureProducts(nn.Module):
    """(B, C) to (B, S, D): token s is the sum of x_c W_c over its columns c, and b_s (Gorishniy et al. 2021,
    section 3.3). Token 0 has no columns.
    """

    owner: torch.Tensor

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        owner_C = torch.repeat_interleave(torch.arange(1, 1 + len(widths)), torch.tensor(widths))
        # Not part of the state: it holds nothing that training could change.
        self.register_buffer("owner", owner_C, persistent=False)
        self.weight = nn.Parameter(torch.empty(sum(widths), width).uniform_(-(width**-0.5), width**-0.5))
        self.bias = nn.Parameter(torch.empty(1 + len(widths), width).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        product_BCD = x_BC[:, :, None] * self.weight
        bias_BSD = self.bias.expand(len(x_BC), -1, -1)
        if len(self.weight) == len(self.bias) - 1:  # one column a feature
            return bias_BSD + F.pad(product_BCD, (0, 0, 1, 0))
        return bias_BSD.index_add(1, self.owner, product_BCD)


def _with_start_token(present_BT: torch.Tensor) -> torch.Tensor:
    return F.pad(present_BT, (1, 0), value=True)
