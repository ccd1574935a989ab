"""An invertible map from a normal latent to the one a generator paints from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

HIDDEN, ROW_HIDDEN = 64, 32
NEAR = 6
"""Latents of a row that a coupling along it looks at, half to each side."""
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


def jacobian(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Derivatives (B, M, K) of ``function`` from rows (B, K) to rows (B, M).

    Each row of what it gives may depend on the same row of z alone. By reverse mode,
    of sums over copies of the rows: `torch.func`, and gradients of others that are
    given, import torch's compiler at their first use.
    """
    size = function(z[:1].detach()).shape[-1]
    with torch.enable_grad():
        copies = z.detach().expand(size, *z.shape).clone().requires_grad_()
        found = function(copies.flatten(0, 1)).view(size, len(z), size)
        total = found.diagonal(dim1=0, dim2=2).sum()
    return torch.autograd.grad(total, copies)[0].transpose(0, 1)


class RowCoupling(nn.Module):
    """An affine coupling of latents in a row: every other one, by those near it.

    By the same weights everywhere: what follows what is learned once for all of the
    window. Beyond the ends zeros are seen.

    Args:
        size: K, at least 2.
        first: the first one that is scaled and shifted, 0 or 1.
    """

    def __init__(self, size: int, first: int) -> None:
        super().__init__()
        moved, kept = torch.arange(first, size, 2), torch.arange(1 - first, size, 2)
        self.moved: Tensor
        self.kept: Tensor
        self.order: Tensor
        self.register_buffer("moved", moved, persistent=False)
        self.register_buffer("kept", kept, persistent=False)
        back = torch.cat([kept, moved]).argsort()
        self.register_buffer("order", back, persistent=False)
        # Half of those near it to the left of each, half to its right.
        left = NEAR // 2 - first
        self.ends = left, len(moved) + NEAR - 1 - left - len(kept)
        self.net = nn.Sequential(
            nn.Linear(NEAR, ROW_HIDDEN),
            nn.SiLU(),
            nn.Linear(ROW_HIDDEN, ROW_HIDDEN),
            nn.SiLU(),
            nn.Linear(ROW_HIDDEN, 2),
        )
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def _near(self, kept: Tensor) -> Tensor:
        """The kept ones near each that is moved, (..., M, 6)."""
        n = len(self.moved)
        padded = nn.functional.pad(kept, self.ends)
        return torch.stack([padded[..., j : j + n] for j in range(NEAR)], -1)

    def _both(self, near: Tensor) -> Tensor:
        log_scale, shift = self.net(near).unbind(-1)
        log_scale = SCALE_LIMIT * torch.tanh(log_scale / SCALE_LIMIT)
        return torch.stack([log_scale, shift], -1)

    def _parts(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._both(self._near(kept)).unbind(-1)
        return log_scale, shift

    def _joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved], -1).index_select(-1, self.order)

    def forward(self, u: Tensor) -> Tensor:
        """Map u (..., K) to z (..., K)."""
        kept, moved = (u.index_select(-1, i) for i in (self.kept, self.moved))
        log_scale, shift = self._parts(kept)
        return self._joined(kept, moved * log_scale.exp() + shift)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map z (..., K) to u, and give the log slopes, those that are not 0."""
        kept, moved = (z.index_select(-1, i) for i in (self.kept, self.moved))
        log_scale, shift = self._parts(kept)
        moved = (moved - shift) * (-log_scale).exp()
        return self._joined(kept, moved), -log_scale

    def push(self, z: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of z (B, K), and of z's derivatives (B, K, D) those of u.

        Each element depends on six others: their derivatives are all that the network
        is differentiated for.
        """
        kept, moved = (z.index_select(-1, i) for i in (self.kept, self.moved))
        near = self._near(kept)
        log_scale, shift = self._both(near).unbind(-1)
        local = jacobian(self._both, near.reshape(-1, NEAR)).view(
            *near.shape[:-1], 2, NEAR
        )
        d_kept, d_moved = (slopes.index_select(1, i) for i in (self.kept, self.moved))
        d_near = self._near(d_kept.mT).permute(0, 2, 3, 1)
        d_log, d_shift = (local @ d_near).unbind(-2)
        scale = (-log_scale).exp()
        moved = (moved - shift) * scale
        d_moved = (d_moved - d_shift) * scale[..., None] - moved[..., None] * d_log
        both = torch.cat([d_kept, d_moved], 1).index_select(1, self.order)
        return self._joined(kept, moved), both


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

    def slopes(self, z: Tensor) -> Tensor:
        """``d u / d z`` of the inverse at z (B, K), of shape (B, K, K)."""
        eye = torch.eye(self.size, dtype=z.dtype, device=z.device)
        along = eye.expand(len(z), -1, -1)
        plain = [layer for layer in self.layers if isinstance(layer, Coupling)]
        for layer in reversed(self.layers):
            if isinstance(layer, RowCoupling):
                z, along = layer.push(z, along)

        def inverse(v: Tensor) -> Tensor:
            for layer in reversed(plain):
                v, _ = layer.inverse(v)
            return v

        across = jacobian(inverse, z)
        return across @ along if self.row else across
