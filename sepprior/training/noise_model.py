"""What training knows of the recording besides the networks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sepprior import losses
from sepprior.config import SpecGANConfig
from sepprior.data import Recording, random_crops
from sepprior.priors import PlaneStatistics
from sepprior.priors.specgan import crop_plane, log_magnitude
from sepprior.transforms import TightSTFT, Whitener, frame_length

STATISTICS_WINDOWS = 1024
"""Windows over which the moments per frequency are taken."""


@dataclass
class NoiseModel:
    """Crops, filters and moments per frequency of one recording.

    Attributes:
        recording: noise only.
        config: the recipe.
        device: where the crops are put.
        level: mean of the noise, data units.
        autocovariance: shape (N,), squared data units.
        whitening: shape (N,), autocovariance the filter in front is made from.
        rng: the one source of randomness of a training run.
    """

    recording: Recording
    config: SpecGANConfig
    device: torch.device
    level: float
    autocovariance: Tensor
    whitening: Tensor
    rng: torch.Generator
    stft: TightSTFT = field(init=False)
    whitener: Whitener = field(init=False)
    signal_whitener: Whitener = field(init=False)
    statistics: PlaneStatistics = field(init=False)
    log_mean_power: Tensor = field(init=False)
    log_sd_power: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Filters and the per-frequency moments of the whitened recording."""
        self.stft = TightSTFT(self.config.window, frame_length(self.config.window))
        self.whitener = Whitener(self.whitening.to(self.device))
        self.signal_whitener = Whitener(self.autocovariance.to(self.device))
        self._measure()

    @property
    def complex_mode(self) -> bool:
        """Mean and scale, or magnitudes only."""
        return self.config.channels == "complex"

    def crops(self, n: int) -> Tensor:
        """Whitened random crops (n, N), float32."""
        x = random_crops(
            self.recording, window=self.config.window, n=n, generator=self.rng
        )
        x = torch.as_tensor(x, dtype=torch.float64).to(self.device)
        return self.whitener.forward(x - self.level).float()

    def randn(self, *shape: int) -> Tensor:
        """Normal numbers of the training's own generator."""
        return torch.randn(shape, generator=self.rng).to(self.device)

    def _measure(self) -> None:
        """Moments per frequency over samples and frames, accumulated by chunks."""
        chunk = 64 if self.config.window <= 4096 else 8
        total = STATISTICS_WINDOWS if self.config.window <= 4096 else 128
        power = logs = logs2 = None
        spectrum = log_spectrum = log_spectrum2 = 0.0
        chunks: list[Tensor] = [self.crops(chunk) for _ in range(total // chunk)]
        frames = 0
        for white in chunks:
            c = self._plane(white)
            frames += c.shape[0] * c.shape[-1]
            part = c.abs().square().double().sum((0, 2))
            power = part if power is None else power + part
            p = losses.periodogram(white).double()
            spectrum = spectrum + p.sum(0)
            log_p = torch.log(p + 1e-12)
            log_spectrum = log_spectrum + log_p.sum(0)
            log_spectrum2 = log_spectrum2 + log_p.square().sum(0)
        assert power is not None
        rms = (power / frames).sqrt().float()[:, None].clamp_min(1e-12)
        for white in chunks:
            c = self._plane(white)
            v = log_magnitude(c, rms, complex_mode=self.complex_mode).double()
            one, two = v.sum((0, 2)), v.square().sum((0, 2))
            logs = one if logs is None else logs + one
            logs2 = two if logs2 is None else logs2 + two
        assert logs is not None and logs2 is not None
        mean = logs / frames
        sd = (logs2 / frames - mean.square()).clamp_min(1e-12).sqrt()
        self.statistics = PlaneStatistics(
            rms, mean.float()[:, None], sd.float()[:, None]
        )
        self.log_mean_power = torch.as_tensor(spectrum / total).log().float()
        mean_log = log_spectrum / total
        variance = torch.as_tensor(log_spectrum2 / total - mean_log**2)
        self.log_sd_power = variance.clamp_min(0).sqrt().float()

    def _plane(self, white: Tensor) -> Tensor:
        return crop_plane(self.stft.analyse(white), complex_mode=self.complex_mode)

    def leftover_signal(self, n: int) -> Tensor:
        """What least squares leaves of a sinusoid, whitened like the noise, (n, N).

        Draws of the error ``J (theta_hat - theta)`` of the generalised least-squares
        fit of a sinusoid of random frequency (log-uniform from half a cycle per window
        to Nyquist). The encoder sees noise with this added, because that is what it
        will be given when a measurement is separated.
        """
        size = self.config.window
        low, high = math.log(0.5 / size), math.log(0.5)
        u = torch.rand((n, 1), generator=self.rng, dtype=torch.float64)
        f = torch.exp(low + (high - low) * u).to(self.device)
        t = torch.arange(size, dtype=torch.float64, device=self.device) - size / 2
        c, s = torch.cos(2 * math.pi * f * t), torch.sin(2 * math.pi * f * t)
        scaled = t / size
        columns = torch.stack([torch.ones_like(c), c, s, scaled * c, scaled * s], -2)
        q, r = torch.linalg.qr(self.signal_whitener.forward(columns).mT)
        g = torch.randn((n, 5, 1), generator=self.rng, dtype=torch.float64)
        # A rank-deficient column (frequency near Nyquist) gets no share.
        diagonal = r.diagonal(dim1=-2, dim2=-1).abs()
        keep = diagonal > 1e-6 * diagonal.amax(-1, keepdim=True)
        error = (q @ (g.to(self.device) * keep[..., None])).squeeze(-1)
        return self.whitener.forward(self.signal_whitener.inverse(error)).float()
