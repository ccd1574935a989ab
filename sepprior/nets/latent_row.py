"""Latents in a row: each is painted where it stands in time, by the same weights.

A layer that connects all latents with all frames must learn anew for every position
what a burst or a jump looks like. Of convolutions along the row it is learned once.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import interpolate

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
    """

    def __init__(self, latent: int, channels: int, bins: int, frames: int) -> None:
        super().__init__()
        self.latent, self.bins, self.frames = latent, bins, frames
        # Every other frame until the last layer: neighbours overlap by half.
        self.columns = (frames + 1) // 2
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
        self.out = nn.ConvTranspose1d(PAINTED, channels * bins, 4, 2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Planes of the first K of what the generator is given, (B, >= K)."""
        h = self.coarse(z[:, None, : self.latent])
        h = interpolate(h, self.columns, mode="linear", align_corners=False)
        planes = self.out(self.fine(h))[..., : self.frames]
        return planes.unflatten(1, (-1, self.bins))


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
