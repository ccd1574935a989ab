"""An invertible map from a normal latent to the one a generator paints from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HIDDEN, ROW_HIDDEN = 64, 32
NEAR = 13
"""Latents of a row that a coupling along it looks at."""
SCALE_LIMIT = 2.0
"""Largest |log scale| of one coupling."""


class Coupling(nn.Module):
    """One affine coupling: half of the coordinates scale and shift the other half.

    Which half is which is drawn once, when the module is made, and stored.

    Args:
        size: K, at least 2.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.kept = size // 2
        self.order: Tensor
        self.register_buffer("order", torch.randperm(size))
        self.net = nn.Sequential(
            nn.Linear(self.kept, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, 2 * (size - self.kept)),
        )
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def _parts(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self.net(kept).chunk(2, -1)
        return SCALE_LIMIT * torch.tanh(log_scale / SCALE_LIMIT), shift

    def forward(self, u: Tensor) -> Tensor:
        """Map u (..., K) to z (..., K)."""
        kept, moved = u[..., self.order].tensor_split([self.kept], -1)
        log_scale, shift = self._parts(kept)
        return torch.cat([kept, moved * log_scale.exp() + shift], -1)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map z (..., K) to u, and give the log slopes, those that are not 0."""
        kept, moved = z.tensor_split([self.kept], -1)
        log_scale, shift = self._parts(kept)
        log_scale = -log_scale
        ordered = torch.cat([kept, (moved - shift) * log_scale.exp()], -1)
        return torch.zeros_like(z).index_copy(-1, self.order, ordered), log_scale


class RowCoupling(nn.Module):
    """An affine coupling of latents in a row: every other one, by those near it.

    By the same weights everywhere: what follows what is learned once for all of the
    window.

    Args:
        size: K, at least 2.
        first: the first one that is scaled and shifted, 0 or 1.
    """

    def __init__(self, size: int, first: int) -> None:
        super().__init__()
        self.moved: Tensor
        self.register_buffer("moved", torch.arange(first, size, 2), persistent=False)
        kept = torch.ones(size).index_fill(0, self.moved, 0.0)
        self.kept: Tensor
        self.register_buffer("kept", kept, persistent=False)
        last = nn.Conv1d(ROW_HIDDEN, 2, 1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.near = nn.Conv1d(1, ROW_HIDDEN, NEAR, padding="same")
        self.net = nn.Sequential(
            nn.SiLU(), nn.Conv1d(ROW_HIDDEN, ROW_HIDDEN, 1), nn.SiLU(), last
        )

    def _parts(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        h = self.near(kept.reshape(-1, 1, kept.shape[-1]))
        h = self.net(h.index_select(-1, self.moved)).reshape(*kept.shape[:-1], 2, -1)
        log_scale, shift = h.unbind(-2)
        return SCALE_LIMIT * torch.tanh(log_scale / SCALE_LIMIT), shift

    def _joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        return kept + torch.zeros_like(kept).index_copy(-1, self.moved, moved)

    def forward(self, u: Tensor) -> Tensor:
        """Map u (..., K) to z (..., K)."""
        kept = u * self.kept
        log_scale, shift = self._parts(kept)
        moved = u.index_select(-1, self.moved) * log_scale.exp() + shift
        return self._joined(kept, moved)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map z (..., K) to u, and give the log slopes, those that are not 0."""
        kept = z * self.kept
        log_scale, shift = self._parts(kept)
        moved = (z.index_select(-1, self.moved) - shift) * (-log_scale).exp()
        return self._joined(kept, moved), -log_scale


class Flow(nn.Module):
    """A chain of affine couplings (Dinh et al. 2017, equations 7 and 8).

    It starts as a permutation, so that z is as normal as u.

    Args:
        size: K, at least 2.
        layers: number of couplings.
        row: couplings behind these for which z stands in a row.
    """

    def __init__(self, size: int, layers: int, row: int = 0) -> None:
        super().__init__()
        self.size, self.row = size, row
        self.layers = nn.ModuleList(Coupling(size) for _ in range(layers))
        self.layers.extend(RowCoupling(size, i % 2) for i in range(row))

    def forward(self, u: Tensor) -> Tensor:
        """Normal latents u (..., K) to z (..., K)."""
        for layer in self.layers:
            u = layer(u)
        return u

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map z (..., K) to u (..., K), and give ``log |det du/dz|`` (...).

        With ``u ~ N(0, 1)``, ``log p(z) = log N(u; 0, 1) + log |det du/dz|``.
        """
        lead, z = z.shape[:-1], z.reshape(-1, self.size)
        slopes = []
        for layer in reversed(self.layers):
            assert isinstance(layer, Coupling | RowCoupling)
            z, own = layer.inverse(z)
            slopes.append(own)
        volume = torch.cat(slopes, -1).sum(-1)
        return z.view(*lead, -1), volume.view(lead)
