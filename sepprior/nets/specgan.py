"""Two-dimensional DCGAN networks on the time-frequency plane (SpecGAN).

Stride-2 convolutions with kernel 5 throughout, no batch normalisation (it breaks the
per-sample gradient penalty; Gulrajani et al. 2017). At the published width (64), with
a latent of 100 and a 128 x 128 plane, the generator has 19.07 M and the critic
17.43 M parameters (Donahue et al. 2019, appendix).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from sepprior.nets.flow import Flow
from sepprior.nets.latent_row import RowPainter, RowReader

KERNEL = 5
FEW_CHANNELS = 8
"""Output channels from which a transposed convolution is fast as it is."""


@dataclass(frozen=True)
class PlaneShape:
    """The plane a network works on, and the layers that follow from it.

    Attributes:
        bins: rows F, a power of two (Nyquist is not part of the plane).
        frames: columns T.
    """

    bins: int
    frames: int

    @property
    def layers(self) -> int:
        """Stride-2 layers: down to 4 rows, but at least 3 while a row remains."""
        full = int(math.log2(self.bins))
        return min(full, max(3, full - 2))

    @property
    def base(self) -> tuple[int, int]:
        """Rows and columns of the smallest feature map."""
        scale = 2**self.layers
        return self.bins // scale, math.ceil(self.frames / scale)

    @property
    def padded_frames(self) -> int:
        """Columns of the full-size map; what exceeds T is cut off."""
        return self.base[1] * 2**self.layers


class Doubling(nn.ConvTranspose2d):
    """Transposed convolution (B, C, H, W) to (B, C', 2 H, 2 W) with kernel 5.

    Computed as four convolutions with kernels of at most 3, one for each parity of the
    output's row and column (Shi et al. 2016, section 3), where there are few output
    channels: on a CPU that takes a third of the time.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, KERNEL, 2, 2, output_padding=1)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The doubled map."""
        if self.out_channels >= FEW_CHANNELS or input.device.type != "cpu":
            return super().forward(input, output_size)
        # Tap 5 does not exist: rows and columns of odd parity have two taps.
        padded = nn.functional.pad(self.weight, (0, 1, 0, 1))
        taps = torch.tensor([[4, 2, 0], [5, 3, 1]], device=input.device)
        kernels = padded[:, :, taps[:, None, :, None], taps[None, :, None, :]]
        kernels = kernels.permute(1, 2, 3, 0, 4, 5).flatten(0, 2)
        maps = nn.functional.conv2d(input, kernels, padding=1)
        doubled = nn.functional.pixel_shuffle(maps, 2)
        return doubled if self.bias is None else doubled + self.bias[:, None, None]


class Generator(nn.Module):
    """Latent (B, K) to a stack of planes (B, C, F, T) by transposed convolutions.

    ``output_padding=1`` makes each layer double its map exactly (4 to 8, not 7).

    Args:
        plane: size of the output.
        latent: K.
        width: channels of the widest-resolution map; each layer down doubles them.
        channels: C.
        bounded: end in tanh (magnitude mode), else linear.
        flow: bends normal latents into those that are painted from, or None.
        row: so many of the latents are painted where they stand in time as well.
        row_every: 1 or 2, see `RowPainter`.
    """

    def __init__(
        self,
        plane: PlaneShape,
        *,
        latent: int,
        width: int,
        channels: int,
        bounded: bool = False,
        flow: Flow | None = None,
        row: int = 0,
        row_every: int = 2,
    ) -> None:
        super().__init__()
        self.plane, self.bounded = plane, bounded
        self.flow = flow
        rows, columns = plane.base
        widths = [width * 2**i for i in reversed(range(plane.layers))]
        self.project = nn.Linear(latent, widths[0] * rows * columns)
        layers = [
            Doubling(a, b) for a, b in zip(widths, [*widths[1:], channels], strict=True)
        ]
        self.layers = nn.ModuleList(layers)
        self.row = None
        if row:
            self.row = RowPainter(
                row, channels, plane.bins, plane.frames, every=row_every
            )
        # An output sample of a stride-2 transposed convolution sums a quarter of the
        # kernel's taps (He et al. 2015, section 2.2, with that fan-in): the default
        # counts all of them and lets z fade away over the layers.
        with torch.no_grad():
            self.project.weight.normal_(0.0, latent**-0.5)
            self.project.bias.zero_()
            for layer in layers:
                fan_in = layer.in_channels * KERNEL**2 / 4
                layer.weight.normal_(0.0, math.sqrt(2.0 / fan_in))
                if layer.bias is not None:
                    layer.bias.zero_()

    def bend(self, latent: Tensor) -> Tensor:
        """Normal latents (..., K) as those that `forward` takes, (..., K)."""
        return latent if self.flow is None else self.flow(latent)

    def forward(self, z: Tensor) -> Tensor:
        """Planes of shape (B, C, F, T) from bent latents, and labels."""
        h = self.everywhere(z)
        if self.row is not None:
            h = h + self.row(z)
        return torch.tanh(h) if self.bounded else h

    def everywhere(self, z: Tensor) -> Tensor:
        """What is painted all over the planes, before the bound."""
        h = self.project(z).unflatten(-1, (-1, *self.plane.base))
        for layer in self.layers:
            h = layer(torch.relu(h))
        return h[..., : self.plane.frames]


class Critic(nn.Module):
    """Planes (B, C, F, T) to `outputs` numbers (B, outputs) by strided convolutions.

    Args:
        plane: size of the input.
        width: channels after the first layer; each layer doubles them.
        channels: C.
        outputs: 1 for a critic.
    """

    def __init__(
        self, plane: PlaneShape, *, width: int, channels: int, outputs: int = 1
    ) -> None:
        super().__init__()
        self.plane = plane
        rows, columns = plane.base
        widths = [channels, *(width * 2**i for i in range(plane.layers))]
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, KERNEL, 2, padding=2) for a, b in pairwise(widths)
        )
        self.score = nn.Linear(widths[-1] * rows * columns, outputs)

    def forward(self, planes: Tensor) -> Tensor:
        """Scores of shape (B, outputs)."""
        pad = self.plane.padded_frames - self.plane.frames
        h = nn.functional.pad(planes, (0, pad))
        for layer in self.layers:
            h = nn.functional.leaky_relu(layer(h), 0.2)
        return self.score(h.flatten(1))


class Encoder(nn.Module):
    """Planes (B, C, F, T) to mean and log standard deviation of z, each (B, K).

    Args:
        plane: size of the input.
        latent: K.
        width: channels after the first layer; each layer doubles them.
        channels: C.
        row: each latent is also read where it stands in time.
    """

    def __init__(
        self,
        plane: PlaneShape,
        *,
        latent: int,
        width: int,
        channels: int,
        row: bool = False,
    ) -> None:
        super().__init__()
        self.body = Critic(plane, width=width, channels=channels, outputs=2 * latent)
        self.row = None
        if row:
            self.row = RowReader(latent, channels, plane.bins, parameters=2)

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the proposal for z, each (B, K)."""
        found = self.body(planes)
        if self.row is not None:
            found = found + self.row(planes)
        mean, log_sd = found.chunk(2, -1)
        return mean, log_sd.clamp(-8.0, 1.0)
