"""An invertible map from a normal latent to the one a generator paints from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HIDDEN = 64
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


class Flow(nn.Module):
    """A chain of affine couplings (Dinh et al. 2017, equations 7 and 8).

    It starts as a permutation, so that z is as normal as u.

    Args:
        size: K, at least 2.
        layers: number of couplings.
    """

    def __init__(self, size: int, layers: int) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.ModuleList(Coupling(size) for _ in range(layers))

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
            assert isinstance(layer, Coupling)
            z, own = layer.inverse(z)
            slopes.append(own)
        volume = torch.cat(slopes, -1).sum(-1)
        return z.view(*lead, -1), volume.view(lead)
