"""Missing samples as unknowns: where they are, and what is left when they are free.

A missing sample is seen by the features of its own window alone. Its unknowns are
therefore eliminated window by window, and memory grows with the square of the gaps of
a window, not of a measurement. B measurements or Q problems (a start of a measurement
each), W windows, N samples, C features per window, G slots for missing samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ROUNDING = 1e-12
"""Share of its own information that is added to each missing sample's."""
NUMBERS_AT_ONCE = 2**22
"""Numbers of the windows that are worked on together; memory is bounded by it."""


@dataclass(frozen=True)
class Block:
    """n windows with as many missing samples each, g.

    Attributes:
        problem: shape (n,).
        window: shape (n,).
        position: shape (n, g), the missing samples, counted from the window's first.
        slot: shape (n, g), their places among the unknowns of the measurement.
    """

    problem: Tensor
    window: Tensor
    position: Tensor
    slot: Tensor

    def select(self, which: Tensor) -> Block:
        """Some of the windows."""
        return Block(*(getattr(self, name)[which] for name in vars(self)))


class Gaps:
    """Positions of the missing samples of B measurements of W windows.

    Measurements have different numbers of gaps: each gets as many slots as the one
    with most of them, and spare slots point past the end.

    Args:
        present: shape (B, W, N).
    """

    def __init__(self, present: Tensor) -> None:
        self.shape = present.shape[1:]
        self._missing = ~present
        missing = self._missing.flatten(1)
        self.count = int(missing.sum(-1).max()) if missing.any() else 0
        """Slots per measurement."""
        end = missing.shape[1]
        order = torch.where(missing, 0, 1).argsort(dim=-1, stable=True)
        used = torch.arange(self.count, device=present.device)
        used = used < missing.sum(-1, keepdim=True)
        self.index = torch.where(used, order[:, : self.count], end)
        self.used = used
        self.in_window = self._missing.sum(-1)
        """Missing samples of each window, (B, W)."""
        self.positions = self._missing.flatten(0, 1).any(0).nonzero().flatten()
        """Those within a window that are missing in any, (U,)."""

    def impulses(self) -> Tensor:
        """A unit impulse at each of `positions`, (U, N)."""
        where = self.positions
        eye = torch.zeros(
            (len(where), self.shape[-1]), dtype=torch.float64, device=where.device
        )
        return eye.scatter_(1, where[:, None], 1.0)

    def fill(self, values: Tensor, which: Tensor) -> Tensor:
        """Values (Q, G) at the missing samples of measurements `which`: (Q, W, N)."""
        flat = values.new_zeros(len(values), self.shape.numel() + 1)
        flat = flat.scatter(1, self.index[which], values)
        return flat[:, :-1].view(-1, *self.shape)

    def gather(self, windows: Tensor, which: Tensor) -> Tensor:
        """Windows (Q, W, N) at the missing samples: (Q, G), zero in spare slots."""
        flat = torch.nn.functional.pad(windows.flatten(1), (0, 1))
        return flat.gather(1, self.index[which])

    def blocks(self, which: Tensor, *, width: int) -> list[Block]:
        """The windows with gaps of measurements `which` (Q,), by numbers of gaps.

        Args:
            which: measurement of each problem.
            width: numbers per missing sample that will be worked on.
        """
        counts = self.in_window[which]
        first = counts.cumsum(-1) - counts
        found = []
        for g in counts.unique().tolist():
            if not g:
                continue
            pairs = (counts == g).nonzero()
            for part in pairs.split(max(1, NUMBERS_AT_ONCE // (g * max(g, width)))):
                problem, window = part.unbind(1)
                missing = self._missing[which[problem], window]
                position = missing.nonzero()[:, 1].view(-1, g)
                slot = first[problem, window].unsqueeze(1)
                slot = slot + torch.arange(g, device=which.device)
                found.append(Block(problem, window, position, slot))
        return found


def factor(information: Tensor) -> Tensor:
    """Cholesky factors of information matrices (n, g, g) of missing samples."""
    diagonal = information.diagonal(dim1=-2, dim2=-1)
    return torch.linalg.cholesky(information + torch.diag_embed(ROUNDING * diagonal))


def half_log_det(root: Tensor) -> Tensor:
    """Half the log-determinants of matrices with Cholesky factors (n, g, g): (n,)."""
    return root.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class Elimination:
    """Weighted features with the missing samples at their best values, at fixed z.

    With E (g, C) the weighted features of unit impulses at a window's missing samples,
    ``min_u |f + E^T u|^2`` has ``u = -(E E^T)^-1 E f``.

    Args:
        gaps: where samples are missing.
        which: measurement of each problem, (Q,).
        impulses: features (U, C) of unit impulses at ``gaps.positions``.
        weights_root: shape (Q, W, C).
    """

    def __init__(
        self, gaps: Gaps, which: Tensor, impulses: Tensor, weights_root: Tensor
    ) -> None:
        self._gaps, self._which = gaps, which
        self._impulses, self._weights_root = impulses, weights_root
        self.blocks = gaps.blocks(which, width=impulses.shape[-1])

    @cached_property
    def _roots(self) -> list[Tensor]:
        """Cholesky factors of ``E E^T``, block by block."""
        return [
            factor(e @ e.mT) for e in (self.columns(block) for block in self.blocks)
        ]

    def columns(self, block: Block) -> Tensor:
        """E of the windows of a block, (n, g, C)."""
        row = torch.searchsorted(self._gaps.positions, block.position)
        weights = self._weights_root[block.problem, block.window]
        return self._impulses[row].double() * weights.unsqueeze(1)

    def project(self, features: Tensor, rows: Tensor) -> Tensor:
        """What the missing samples leave of weighted features, which are overwritten.

        Args:
            features: shape (A, k, W, C).
            rows: the A problems they are for.
        """
        place = torch.full_like(self._which, -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        for block, root in zip(self.blocks, self._roots, strict=True):
            at = place[block.problem]
            here = at >= 0
            if not bool(here.all()):
                block, root, at = block.select(here), root[here], at[here]
            columns = self.columns(block)
            own = features[at, :, block.window]
            values = torch.cholesky_solve(columns @ own.mT, root)
            features[at, :, block.window] = own - values.mT @ columns
        return features

    def values(self, features: Tensor) -> Tensor:
        """Best values (Q, W, N) of the missing samples for weighted features (Q, W, C).

        Those of the other samples are zero.
        """
        filled = features.new_zeros(len(features), *self._gaps.shape)
        for block, root in zip(self.blocks, self._roots, strict=True):
            own = features[block.problem, block.window].unsqueeze(-1)
            best = torch.cholesky_solve(self.columns(block) @ own, root).squeeze(-1)
            at = (block.problem[:, None], block.window[:, None], block.position)
            filled[at] = -best
        return filled


class Following:
    """Missing samples that follow what is known about the others.

    With D (g, g) the information about a window's missing samples and b (g,) the
    slopes there, the most probable values are ``D^-1 b``.

    Args:
        gaps: where samples are missing.
        which: measurement of each problem, (Q,).
        information: about the samples of any window, (N, N).
    """

    def __init__(self, gaps: Gaps, which: Tensor, information: Tensor) -> None:
        self._n_problems = len(which)
        self._blocks = gaps.blocks(which, width=gaps.shape[-1])
        self._roots = [
            factor(information[b.position[:, :, None], b.position[:, None]])
            for b in self._blocks
        ]

    def values(self, slopes: Tensor) -> Tensor:
        """Most probable values for slopes (Q, k, W, N); zero at the other samples."""
        values = torch.zeros_like(slopes)
        for block, root in zip(self._blocks, self._roots, strict=True):
            at = (
                block.problem[:, None],
                slice(None),
                block.window[:, None],
                block.position,
            )
            values[at] = torch.cholesky_solve(slopes[at], root)
        return values

    def half_log_det(self) -> Tensor:
        """Half the log-determinants of the information, (Q,)."""
        total = self._roots[0].new_zeros(self._n_problems)
        for block, root in zip(self._blocks, self._roots, strict=True):
            total.index_add_(0, block.problem, half_log_det(root))
        return total
