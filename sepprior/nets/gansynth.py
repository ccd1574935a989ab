"""Progressively grown networks on magnitude and frequency (GANSynth).

Engel et al. 2019, after Karras et al. 2018: planes grow from 4 rows by doubling; each
new size is faded in; the generator normalises every pixel over its channels, the critic
sees how much a batch varies; weights are scaled at run time (equalised learning rate).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sepprior.nets.phase_plane import PhasePlane
from sepprior.nets.waveform import WaveformGenerator

CHANNELS = 2
FEWEST_ROWS = 4
WIDEST = 16
"""Widths double towards the coarse planes up to this multiple of the finest's."""


@dataclass(frozen=True)
class GrowthPlan:
    """Sizes of the planes, from the coarsest to the full one.

    The full plane has F rows and T columns, the latter filled up with zeros so that
    every stage has half as many of each as the next.

    Attributes:
        bins: F, a power of two, at least 4.
        frames: T.
    """

    bins: int
    frames: int

    @property
    def stages(self) -> int:
        """Number of sizes S; the first has 4 rows."""
        return int(math.log2(self.bins // FEWEST_ROWS)) + 1

    @property
    def base(self) -> tuple[int, int]:
        """Rows and columns of the coarsest plane."""
        return FEWEST_ROWS, math.ceil(self.frames / 2 ** (self.stages - 1))

    @property
    def padded_frames(self) -> int:
        """Columns of the full plane before what exceeds T is cut off."""
        return self.base[1] * 2 ** (self.stages - 1)

    def widths(self, width: int) -> list[int]:
        """Channels of each stage, coarsest first."""
        last = self.stages - 1
        return [width * min(WIDEST, 2 ** (last - s)) for s in range(self.stages)]

    def grown(self, progress: float, growth: float) -> float:
        """Stage reached after a share of the training; fractions are being faded in.

        The share `growth` is divided into equal parts in which, by turns, a stage is
        trained and the next one is faded in.
        """
        parts = 2 * (self.stages - 1)
        if progress >= growth or not parts:
            return float(self.stages - 1)
        done = progress / growth * parts
        whole = int(done / 2)
        return whole + max(0.0, done - 2 * whole - 1.0)


class ScaledConv(nn.Module):
    """A convolution whose weights, of unit variance, are scaled by ``sqrt(2/fan-in)``.

    Every weight then has the same step size relative to its effect (Karras et al. 2018,
    section 4.1).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, gain: float = 2.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = math.sqrt(gain / (inputs * kernel**2))

    def forward(self, h: Tensor) -> Tensor:
        """Same-size convolution of (B, inputs, F, T)."""
        padding = self.weight.shape[-1] // 2
        return functional.conv2d(h, self.weight * self.scale, self.bias, 1, padding)


class ScaledLinear(nn.Module):
    """The same for a linear map."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = math.sqrt(gain / inputs)

    def forward(self, h: Tensor) -> Tensor:
        """(B, inputs) to (B, outputs)."""
        return functional.linear(h, self.weight * self.scale, self.bias)


def weights_in_use(network: nn.Module) -> Iterator[tuple[Tensor, float]]:
    """All parameters of a network, each with the factor that its layer scales it by."""
    for module in network.modules():
        scale = module.scale if isinstance(module, ScaledConv | ScaledLinear) else 1.0
        for name, parameter in module.named_parameters(recurse=False):
            yield parameter, scale if name == "weight" else 1.0


def pixel_norm(h: Tensor) -> Tensor:
    """``h / sqrt(mean over channels of h^2)`` (Karras et al. 2018, section 4.2)."""
    return h * torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-8)


def double(h: Tensor) -> Tensor:
    """Twice the rows and columns, each value repeated."""
    return h.repeat_interleave(2, -1).repeat_interleave(2, -2)


def halve(h: Tensor) -> Tensor:
    """Half the rows and columns, by means of four."""
    return functional.avg_pool2d(h, 2)


class GANSynthGenerator(WaveformGenerator):
    """Code (B, K + L) to planes and waveforms.

    Args:
        window: N.
        code: K + L.
        width: channels at full size.
        growth: share of the training in which the planes grow.
    """

    grown: Tensor

    def __init__(
        self, *, window: int, code: int, width: int, growth: float = 0.0
    ) -> None:
        super().__init__()
        self.window, self.code, self.width = window, code, width
        self.growth = growth
        self.plane = PhasePlane(window)
        self.plan = GrowthPlan(self.plane.bins, self.plane.frames)
        widths = self.plan.widths(width)
        rows, columns = self.plan.base
        self.project = ScaledLinear(code, widths[0] * rows * columns, gain=2.0)
        self.first = ScaledConv(widths[0], widths[0], 3)
        self.blocks = nn.ModuleList(
            nn.ModuleList([ScaledConv(a, b, 3), ScaledConv(b, b, 3)])
            for a, b in pairwise(widths)
        )
        self.outputs = nn.ModuleList(ScaledConv(w, CHANNELS, 1, 1.0) for w in widths)
        start = self.plan.grown(0.0, growth)
        self.register_buffer("grown", torch.tensor(start))

    def structure(self) -> dict[str, Any]:
        """Arguments that rebuild the module."""
        return {
            "window": self.window,
            "code": self.code,
            "width": self.width,
            "growth": self.growth,
        }

    def grow(self, progress: float) -> None:
        """Use as many stages as belong to this share of the training."""
        self.grown.fill_(self.plan.grown(progress, self.growth))

    @property
    def settled(self) -> bool:
        """Whether the full size is reached."""
        return float(self.grown) == self.plan.stages - 1

    def stage_planes(self, code: Tensor) -> Tensor:
        """Planes at the size of the stage that is trained, (B, 2, F_s, T_s)."""
        grown = float(self.grown)
        stage = math.ceil(grown)
        code = pixel_norm(code)
        h = self.project(code).unflatten(-1, (-1, *self.plan.base))
        h = pixel_norm(functional.leaky_relu(h, 0.2))
        h = pixel_norm(functional.leaky_relu(self.first(h), 0.2))
        before = h
        for block in list(self.blocks)[:stage]:
            before, h = h, double(h)
            assert isinstance(block, nn.ModuleList)
            for layer in block:
                h = pixel_norm(functional.leaky_relu(layer(h), 0.2))
        planes = self.outputs[stage](h)
        if grown < stage:
            coarse = double(self.outputs[stage - 1](before))
            planes = torch.lerp(coarse, planes, 1.0 - (stage - grown))
        return torch.tanh(planes)

    def waveform(self, planes: Tensor) -> Tensor:
        """Waveforms (B, N) of planes of any stage, coarse ones repeated."""
        for _ in range(self.plan.stages - 1 - math.ceil(float(self.grown))):
            planes = double(planes)
        return self.plane.synthesise(planes[..., : self.plan.frames])

    def forward(self, code: Tensor) -> Tensor:
        """Waveforms (B, N), in units of the recording's standard deviation."""
        return self.waveform(self.stage_planes(code))

    def fake(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Generated waveforms and their planes at the stage that is trained."""
        planes = self.stage_planes(code)
        return self.waveform(planes), planes

    def view(self, waveform: Tensor) -> Tensor:
        """Planes of recorded waveforms at the stage that is trained."""
        planes = self.plane.analyse(waveform)
        pad = self.plan.padded_frames - self.plan.frames
        planes = functional.pad(planes, (0, pad))
        grown = float(self.grown)
        stage = math.ceil(grown)
        for _ in range(self.plan.stages - 1 - stage):
            planes = halve(planes)
        if grown < stage:
            planes = torch.lerp(double(halve(planes)), planes, 1.0 - (stage - grown))
        return planes


class GANSynthCritic(nn.Module):
    """Planes of a stage (B, 2, F_s, T_s) to `outputs` numbers (B, outputs).

    Args:
        window: N.
        width: channels at full size.
        outputs: 1 for a critic, 1 + L with a label classifier.
        growth: as the generator's.
        joint: gives the whole batch (B, ...) of the rows that this process has of it;
            the rows themselves where it has all.
    """

    grown: Tensor

    def __init__(
        self,
        *,
        window: int,
        width: int,
        outputs: int = 1,
        growth: float = 0.0,
        joint: Callable[[Tensor], Tensor] = lambda rows: rows,
    ) -> None:
        super().__init__()
        self.joint = joint
        plane = PhasePlane(window)
        self.plan, self.growth = GrowthPlan(plane.bins, plane.frames), growth
        widths = self.plan.widths(width)
        rows, columns = self.plan.base
        self.inputs = nn.ModuleList(ScaledConv(CHANNELS, w, 1) for w in widths)
        self.blocks = nn.ModuleList(
            nn.ModuleList([ScaledConv(b, b, 3), ScaledConv(b, a, 3)])
            for a, b in pairwise(widths)
        )
        self.last = ScaledConv(widths[0] + 1, widths[0], 3)
        self.hidden = ScaledLinear(widths[0] * rows * columns, widths[0], gain=2.0)
        self.score = ScaledLinear(widths[0], outputs)
        self.register_buffer("grown", torch.tensor(self.plan.grown(0.0, growth)))

    def grow(self, progress: float) -> None:
        """Use as many stages as belong to this share of the training."""
        self.grown.fill_(self.plan.grown(progress, self.growth))

    def forward(self, planes: Tensor) -> Tensor:
        """Numbers (B, outputs) for planes of the stage that is trained."""
        grown = float(self.grown)
        stage = math.ceil(grown)
        h = functional.leaky_relu(self.inputs[stage](planes), 0.2)
        for s in range(stage, 0, -1):
            block = self.blocks[s - 1]
            assert isinstance(block, nn.ModuleList)
            for layer in block:
                h = functional.leaky_relu(layer(h), 0.2)
            h = halve(h)
            if s == stage and grown < stage:
                coarse = self.inputs[stage - 1](halve(planes))
                coarse = functional.leaky_relu(coarse, 0.2)
                h = torch.lerp(coarse, h, 1.0 - (stage - grown))
        spread = batch_spread(self.joint(h))[: len(h)]
        h = torch.cat([h, spread], 1)
        h = functional.leaky_relu(self.last(h), 0.2)
        h = functional.leaky_relu(self.hidden(h.flatten(1)), 0.2)
        return self.score(h)


def batch_spread(h: Tensor) -> Tensor:
    """Standard deviation over the batch, averaged, as one constant channel (B, 1, ...).

    Karras et al. 2018, section 3: a generator without variety gives itself away.
    """
    variance = h.var(0, correction=0)
    spread = torch.sqrt(variance + 1e-8).mean()
    return spread.expand(h.shape[0], 1, *h.shape[2:])
