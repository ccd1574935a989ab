"""Missing samples as unknowns: where they are, and how values are put there."""

from __future__ import annotations

import torch
from torch import Tensor


class Gaps:
    """Positions of the missing samples of B measurements of W windows.

    Measurements have different numbers of gaps: each gets as many slots as the one
    with most of them, and spare slots point past the end.

    Args:
        present: shape (B, W, N).
    """

    def __init__(self, present: Tensor) -> None:
        self.shape = present.shape[1:]
        missing = (~present).flatten(1)
        self.count = int(missing.sum(-1).max()) if missing.any() else 0
        """Slots per measurement."""
        end = missing.shape[1]
        order = torch.where(missing, 0, 1).argsort(dim=-1, stable=True)
        used = torch.arange(self.count, device=present.device)
        used = used < missing.sum(-1, keepdim=True)
        self.index = torch.where(used, order[:, : self.count], end)
        self.used = used

    def fill(self, values: Tensor, which: Tensor) -> Tensor:
        """Values (Q, G) at the missing samples of measurements `which`: (Q, W, N)."""
        flat = values.new_zeros(len(values), self.shape.numel() + 1)
        flat = flat.scatter(1, self.index[which], values)
        return flat[:, :-1].view(-1, *self.shape)

    def impulses(self, which: Tensor) -> Tensor:
        """A unit impulse at each missing sample, (Q, G, W, N); zero in spare slots."""
        columns = torch.zeros(
            (len(which), self.count, self.shape.numel() + 1),
            dtype=torch.float64,
            device=self.index.device,
        )
        columns.scatter_(2, self.index[which].unsqueeze(-1), 1.0)
        return columns[:, :, :-1].view(len(which), self.count, *self.shape)
