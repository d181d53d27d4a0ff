"""The arguments that the attention models share; free of torch, so that a study can be checked without it."""

from __future__ import annotations

from typing import Protocol

from strategies.spec import require


class Sizes(Protocol):
    """The size of an encoder."""

    @property
    def width(self) -> int:
        """Numbers a token, a multiple of the heads."""

    @property
    def depth(self) -> int:
        """Blocks, one after the other."""

    @property
    def heads(self) -> int:
        """Attention heads of a block."""


def check_sizes(model: str, sizes: Sizes) -> None:
    """Raise a `SettingError`, with the model's name, unless an encoder of this size can be built."""
    width, depth, heads = sizes.width, sizes.depth, sizes.heads
    require(heads >= 1, f"{model}.heads", heads, "at least 1")
    require(depth >= 1, f"{model}.depth", depth, "at least 1")
    require(width >= 1 and width % heads == 0, f"{model}.width", width, f"a multiple of {model}.heads = {heads}")
