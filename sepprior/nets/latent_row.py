"""Latents in a row: each is painted where it stands in time, by the same weights.

A layer that connects all latents with all frames must learn anew for every position
what a burst or a jump looks like. Of convolutions along the row it is learned once.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv_transpose1d, interpolate

PAINTED, READ = 48, 64
"""Channels of the two networks; the first is what a separation spends its time in."""
WIDE, NARROW = 5, 3
"""Kernels."""


class RowPainter(nn.Module):
    """Latents (B, K), in a row over time, to planes (B, C, F, T).

    Args:
        latent: K.
        channels: C.
        bins: F.
        frames: T.
        every: 1 for columns that are frames; 2 for every other frame until the last
            layer, at half the cost (neighbours overlap by half).
    """

    def __init__(
        self, latent: int, channels: int, bins: int, frames: int, *, every: int = 2
    ) -> None:
        super().__init__()
        self.latent, self.bins, self.frames = latent, bins, frames
        self.every = every
        self.columns = (frames + every - 1) // every
        self.coarse = nn.Sequential(
            nn.Conv1d(1, PAINTED, WIDE, padding="same"),
            nn.SiLU(),
            nn.Conv1d(PAINTED, PAINTED, NARROW, padding="same"),
            nn.SiLU(),
        )
        self.fine = nn.Sequential(
            nn.Conv1d(PAINTED, PAINTED, NARROW, padding="same"),
            nn.SiLU(),
            nn.Conv1d(PAINTED, PAINTED, NARROW, padding="same"),
            nn.SiLU(),
        )
        if every == 1:
            self.out = nn.Conv1d(PAINTED, channels * bins, NARROW, padding="same")
        else:
            self.out = nn.ConvTranspose1d(PAINTED, channels * bins, 4, 2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Planes of the first K of what the generator is given, (B, >= K)."""
        h = self.coarse(z[:, None, : self.latent])
        h = interpolate(h, self.columns, mode="linear", align_corners=False)
        planes = self.out(self.fine(h))[..., : self.frames]
        return planes.unflatten(1, (-1, self.bins))

    @cached_property
    def reach(self) -> Tensor:
        """Which frames each latent is painted in, (K, T), ones and zeros.

        The layers' kernels say so, all weights one.
        """
        one = torch.ones(1, 1, NARROW)
        seen = torch.eye(self.latent)[:, None]
        seen = conv1d(seen, torch.ones(1, 1, WIDE), padding="same")
        seen = conv1d(seen, one, padding="same")
        seen = interpolate(seen, self.columns, mode="linear", align_corners=False)
        for _ in range(2):
            seen = conv1d(seen, one, padding="same")
        if self.every == 1:
            seen = conv1d(seen, one, padding="same")
        else:
            seen = conv_transpose1d(seen, torch.ones(1, 1, 4), stride=2, padding=1)
        return (seen[:, 0, : self.frames] > 0).float()

    @cached_property
    def apart(self) -> int:
        """How far apart latents stand that share no frame."""
        shared = self.reach @ self.reach.mT > 0
        return next(
            step
            for step in range(1, self.latent + 1)
            if not shared.diagonal(step).any()
        )

    def derivatives(self, z: Tensor) -> Tensor:
        """``d planes / d z`` at latents (B, K), of shape (K, B, C, F, T).

        Latents that share no frame are moved together, and what moves is told apart
        by the frames (Curtis, Powell and Reid 1974).
        """
        number = torch.arange(self.latent, device=z.device) % self.apart
        together = torch.eye(self.apart, dtype=z.dtype, device=z.device)[:, number]

        def derivative(direction: Tensor) -> Tensor:
            return torch.func.jvp(self, (z,), (direction.expand_as(z),))[1]

        moved = torch.func.vmap(derivative)(together)
        reach = self.reach.to(z.device)[:, None, None, None]
        return moved[number] * reach


class RowReader(nn.Module):
    """Planes (B, C, F, T) to the parameters (B, P K) of K latents in a row over time.

    Args:
        latent: K.
        channels: C.
        bins: F.
        parameters: P, of each latent.
    """

    def __init__(
        self, latent: int, channels: int, bins: int, *, parameters: int
    ) -> None:
        super().__init__()
        self.latent = latent
        self.fine = nn.Sequential(
            nn.Conv1d(channels * bins, READ, WIDE, padding="same"),
            nn.SiLU(),
            nn.Conv1d(READ, READ, WIDE, padding="same"),
            nn.SiLU(),
        )
        self.coarse = nn.Sequential(
            nn.Conv1d(READ, READ, WIDE, padding="same"),
            nn.SiLU(),
            nn.Conv1d(READ, parameters, WIDE, padding="same"),
        )

    def forward(self, planes: Tensor) -> Tensor:
        """All of the first parameter, then all of the second."""
        h = self.fine(planes.flatten(1, 2))
        h = interpolate(h, self.latent, mode="linear", align_corners=False)
        return self.coarse(h).flatten(1)
