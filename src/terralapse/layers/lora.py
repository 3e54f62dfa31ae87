"""LoRA with several sets of weights in one layer, of which each row of a batch uses its own.

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2022; the choice by row is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from terralapse.errors import SettingError


class LoraSize(Protocol):
    """`rank`, `alpha`, how many `sets` there are, and the names of the linear `layers` that get them."""

    @property
    def rank(self) -> int: ...

    @property
    def alpha(self) -> float: ...

    @property
    def sets(self) -> int: ...

    @property
    def layers(self) -> tuple[str, ...]: ...


class Chosen:
    """Which set of LoRA weights each row of a batch uses: int64 [B] of 0 (`qa`) and 1 (`se`)."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None

    @contextmanager
    def use(self, rows: Tensor) -> Iterator[None]:
        """While the block runs."""
        self.rows = rows
        try:
            yield
        finally:
            self.rows = None


class LoraLinear(nn.Module):
    """y = W x + (alpha / r) B_k A_k x, where k is the set of the row; W stays, B starts at zero."""

    def __init__(self, base: nn.Linear, size: LoraSize, chosen: Chosen) -> None:
        super().__init__()
        self.base, self.chosen, self.scale = base, chosen, size.alpha / size.rank
        self.A = nn.Parameter(torch.empty(size.sets, size.rank, base.in_features))
        self.B = nn.Parameter(torch.zeros(size.sets, base.out_features, size.rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        rows = self.chosen.rows
        if rows is None:
            return y
        if len(rows) != len(x):
            raise ValueError(f"{len(rows)} rows have chosen their weights, and there are {len(x)}")
        low = torch.einsum("b...i,bri->b...r", x, self.A[rows].to(x.dtype))
        return y + self.scale * torch.einsum("b...r,bor->b...o", low, self.B[rows].to(x.dtype))


def add_lora(model: nn.Module, size: LoraSize, chosen: Chosen) -> int:
    """Replaces the linear layers that `size` names; how many there were.

    Raises:
        SettingError: none of these.
    """
    found = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent.named_children()
        if name in size.layers and isinstance(child, nn.Linear)
    ]
    if not found:
        raise SettingError(
            f"layers {', '.join(size.layers)}", "are not in the language model", "Name its linear layers."
        )
    for parent, name, child in found:
        setattr(parent, name, LoraLinear(child, size, chosen))
    return len(found)
