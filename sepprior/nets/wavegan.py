"""One-dimensional convolutional networks on the waveform (WaveGAN).

Kernel 25 throughout and stride 4, widths doubling with each layer towards the middle,
no batch normalisation. With a latent of 100 and width 64, windows of 16384 samples give
a generator of 19.07 M and a critic of 17.43 M parameters (Donahue et al. 2019,
appendix).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sepprior.nets.waveform import WaveformGenerator, soft_bound

KERNEL = 25
BASE = 16
"""Most samples of the shortest map."""


@dataclass(frozen=True)
class WaveShape:
    """The layers that follow from the window length.

    The window is divided by the least power of two ``2^k`` that leaves at most 16
    samples, ``k = ceil(log2(N / 16))``: by ``k // 2`` layers of stride 4 and, where k
    is odd, one of stride 2. What the layers make beyond N is cut off. This gives the
    published networks for 16384 (five times 4), 32768 (five times 4 and 2) and 65536
    samples (six times 4); 300 samples are 10 samples doubled as 4, 4, 2, less 20.

    Attributes:
        window: N, samples.
    """

    window: int

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each layer, from the middle of the generator to the waveform."""
        halvings = max(1, math.ceil(math.log2(self.window / BASE)))
        return (4,) * (halvings // 2) + (2,) * (halvings % 2)

    @property
    def base(self) -> int:
        """Samples of the shortest map."""
        return math.ceil(self.window / math.prod(self.strides))

    @property
    def padded(self) -> int:
        """Samples of the full-length map, N or a little more."""
        return self.base * math.prod(self.strides)


def _upsampling(inputs: int, outputs: int, stride: int) -> nn.ConvTranspose1d:
    """A transposed convolution that multiplies the length by `stride` exactly.

    ``(n - 1) s - 2 p + 25 + o = n s`` with o = 1: p = 11 for stride 4, 12 for 2.
    """
    padding = (KERNEL + 1 - stride) // 2
    return nn.ConvTranspose1d(
        inputs, outputs, KERNEL, stride, padding=padding, output_padding=1
    )


class WaveGANGenerator(WaveformGenerator):
    """Code (B, K + L) to a waveform (B, N) by transposed convolutions.

    Args:
        window: N.
        code: K + L.
        width: channels of the last hidden map; each layer before it has twice as many.
        peak: largest value of the output.
        post_filter: taps of a learned filter behind the network, 0 for none.
    """

    def __init__(
        self, *, window: int, code: int, width: int, peak: float, post_filter: int = 0
    ) -> None:
        super().__init__()
        self.window, self.code, self.width = window, code, width
        self.peak, self.post_filter = peak, post_filter
        self.shape = WaveShape(window)
        strides = self.shape.strides
        widths = [width * 2**i for i in reversed(range(len(strides)))]
        self.project = nn.Linear(code, widths[0] * self.shape.base)
        self.layers = nn.ModuleList(
            _upsampling(a, b, stride)
            for a, b, stride in zip(widths, [*widths[1:], 1], strides, strict=True)
        )
        self.filter = None
        if post_filter:
            self.filter = nn.Conv1d(1, 1, post_filter, bias=False)
            with torch.no_grad():  # begin as a pure passage
                self.filter.weight.zero_()
                self.filter.weight[0, 0, (post_filter - 1) // 2] = 1.0
        with torch.no_grad():
            self.project.weight.normal_(0.0, code**-0.5)
            self.project.bias.zero_()
            for layer, stride in zip(self.layers, strides, strict=True):
                assert isinstance(layer, nn.ConvTranspose1d) and layer.bias is not None
                # Each output sample sums KERNEL / stride taps of every channel (He et
                # al. 2015, section 2.2).
                fan_in = layer.in_channels * KERNEL / stride
                layer.weight.normal_(0.0, math.sqrt(2.0 / fan_in))
                layer.bias.zero_()

    def structure(self) -> dict[str, Any]:
        """Arguments that rebuild the module."""
        return {
            "window": self.window,
            "code": self.code,
            "width": self.width,
            "peak": self.peak,
            "post_filter": self.post_filter,
        }

    def forward(self, code: Tensor) -> Tensor:
        """Waveforms (B, N), in units of the recording's standard deviation."""
        h = self.project(code).unflatten(-1, (-1, self.shape.base))
        for layer in self.layers:
            h = layer(torch.relu(h))
        h = soft_bound(h, self.peak)
        if self.filter is not None:
            before = (self.post_filter - 1) // 2
            after = self.post_filter - 1 - before
            h = self.filter(nn.functional.pad(h, (before, after)))
        return h[:, 0, : self.window]


class WaveGANCritic(nn.Module):
    """Waveforms (B, C, N) to `outputs` numbers (B, outputs) by strided convolutions.

    Args:
        window: N.
        width: channels after the first layer; each layer doubles them.
        channels: C.
        outputs: 1 for a critic, 1 + L with labels.
        phase_shuffle: largest random shift of each map but the last, samples.
    """

    def __init__(
        self,
        *,
        window: int,
        width: int,
        channels: int = 1,
        outputs: int = 1,
        phase_shuffle: int = 0,
    ) -> None:
        super().__init__()
        self.shape, self.phase_shuffle = WaveShape(window), phase_shuffle
        strides = self.shape.strides
        widths = [channels, *(width * 2**i for i in range(len(strides)))]
        self.layers = nn.ModuleList(
            nn.Conv1d(a, b, KERNEL, stride, padding=(KERNEL + 1 - stride) // 2)
            for (a, b), stride in zip(pairwise(widths), strides, strict=True)
        )
        self.score = nn.Linear(widths[-1] * self.shape.base, outputs)

    def draw_shifts(self, generator: torch.Generator) -> tuple[int, ...]:
        """Random shifts of the maps, one per layer but the last."""
        n = len(self.layers) - 1
        if not self.phase_shuffle:
            return (0,) * n
        reach = self.phase_shuffle
        drawn = torch.randint(-reach, reach + 1, (n,), generator=generator)
        return tuple(drawn.tolist())

    def forward(self, waveform: Tensor, shifts: tuple[int, ...] = ()) -> Tensor:
        """Numbers (B, outputs); `shifts` are those of the maps, none by default."""
        h = nn.functional.pad(waveform, (0, self.shape.padded - waveform.shape[-1]))
        for i, layer in enumerate(self.layers):
            h = nn.functional.leaky_relu(layer(h), 0.2)
            if i < len(shifts):
                h = shuffle_phase(h, shifts[i])
        return self.score(h.flatten(1))


def shuffle_phase(h: Tensor, shift: int) -> Tensor:
    """Shift maps (B, C, N) by `shift` samples, reflected at the edge.

    Donahue et al. 2019, section 3.3: the critic cannot use the phase of artefacts that
    transposed convolutions leave at a fixed place.
    """
    n = h.shape[-1]
    shift = max(-(n - 1), min(n - 1, shift))
    if shift == 0:
        return h
    if shift > 0:
        return nn.functional.pad(h, (shift, 0), mode="reflect")[..., :n]
    return nn.functional.pad(h, (0, -shift), mode="reflect")[..., -n:]
