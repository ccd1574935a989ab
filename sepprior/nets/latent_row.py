"""Latents in a row: each is painted where it stands in time, by the same weights.

A layer that connects all latents with all frames must learn anew for every position
what a burst or a jump looks like. Of convolutions along the row it is learned once.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import interpolate

HIDDEN = 64
KERNEL = 5


class RowPainter(nn.Module):
    """Latents (B, K), in a row over time, to maps (B, C, H, W).

    Args:
        latent: K.
        channels: C.
        rows: H.
        columns: W.
    """

    def __init__(self, latent: int, channels: int, rows: int, columns: int) -> None:
        super().__init__()
        self.latent, self.rows, self.columns = latent, rows, columns
        half = KERNEL // 2
        self.net = nn.Sequential(
            nn.Conv1d(1, HIDDEN, KERNEL, padding=half),
            nn.SiLU(),
            nn.Conv1d(HIDDEN, HIDDEN, KERNEL, padding=half),
            nn.SiLU(),
        )
        self.out = nn.Conv1d(HIDDEN, channels * rows, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Maps of the first K of what the generator is given, (B, >= K)."""
        h = self.net(z[:, None, : self.latent])
        h = interpolate(h, self.columns, mode="linear", align_corners=False)
        return self.out(h).unflatten(1, (-1, self.rows))


class RowReader(nn.Module):
    """Maps (B, C, H, W) to the parameters (B, P K) of K latents in a row over time.

    Args:
        latent: K.
        channels: C.
        rows: H.
        parameters: P, of each latent.
    """

    def __init__(
        self, latent: int, channels: int, rows: int, *, parameters: int
    ) -> None:
        super().__init__()
        self.latent = latent
        half = KERNEL // 2
        self.first = nn.Conv1d(channels * rows, HIDDEN, KERNEL, padding=half)
        self.net = nn.Sequential(
            nn.SiLU(),
            nn.Conv1d(HIDDEN, HIDDEN, KERNEL, padding=half),
            nn.SiLU(),
            nn.Conv1d(HIDDEN, parameters, KERNEL, padding=half),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """All of the first parameter, then all of the second."""
        h = self.first(maps.flatten(1, 2))
        h = interpolate(h, self.latent, mode="linear", align_corners=False)
        return self.net(h).flatten(1)
