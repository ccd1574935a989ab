"""What training knows of the recording besides the networks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sepprior import losses
from sepprior.config import SpecGANConfig
from sepprior.data import Recording
from sepprior.priors import PlaneStatistics
from sepprior.priors.planes import crop_plane, log_magnitude
from sepprior.stationary import expected_periodogram
from sepprior.training.augment import augmented, stretch_margin
from sepprior.training.labels import Labels, labelled_crops
from sepprior.training.moments import (
    RunningMoments,
    plane_moments,
    sample_quantiles,
    spectrum_moments,
    windows_of,
)
from sepprior.training.parallel import Ranks, current_ranks
from sepprior.transforms import TightSTFT, Whitener, frame_length


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
        ranks: this process among those of the training.
        frame: samples of a spectrogram's frame, 0 for that of a square plane.
    """

    recording: Recording
    config: SpecGANConfig
    device: torch.device
    level: float
    autocovariance: Tensor
    whitening: Tensor
    rng: torch.Generator
    ranks: Ranks = field(default_factory=current_ranks)
    frame: int = 0
    labels: Labels = field(init=False)
    stft: TightSTFT = field(init=False)
    whitener: Whitener = field(init=False)
    signal_whitener: Whitener = field(init=False)
    statistics: PlaneStatistics = field(init=False)
    log_mean_power: Tensor = field(init=False)
    log_sd_power: Tensor = field(init=False)
    spectrum: Tensor = field(init=False)
    quantiles: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Filters and the per-frequency moments of the whitened recording."""
        self.labels = Labels.of(self.recording)
        window = self.config.window
        self.stft = TightSTFT(window, self.frame or frame_length(window))
        self.whitener = Whitener(self.whitening.to(self.device))
        self.signal_whitener = Whitener(self.autocovariance.to(self.device))
        self._measure()

    @property
    def complex_mode(self) -> bool:
        """Mean and scale, or magnitudes only."""
        return self.config.channels == "complex"

    @property
    def sd(self) -> float:
        """Standard deviation of the noise, data units."""
        return float(self.autocovariance[0]) ** 0.5

    @property
    def batch(self) -> int:
        """Windows of a step that fall to this process."""
        return self.ranks.share(self.config.batch)

    def white(self, x: Tensor) -> Tensor:
        """Whitened windows (n, N), float32, of windows in data units."""
        x = x.to(self.device, torch.float64)
        return self.whitener.forward(x - self.level).float()

    def amplitude_term(self, white: Tensor) -> Tensor:
        """How far the samples of white windows (B, N) are from the recording's.

        See `sepprior.losses.amplitude_loss`; in standard deviations of the noise, over
        the joint batch of all processes. Of windows so long that they are whitened by
        a filter, which cannot be undone with a gradient, the white samples are
        compared.
        """
        assert self.quantiles is not None
        samples = white
        if not self.whitener.filtered:
            samples = self.whitener.inverse(white.double()).float() / self.sd
        return losses.amplitude_loss(self.ranks.joint(samples), self.quantiles)

    def squared_error(self, white: Tensor) -> Tensor:
        """Mean square of whitened windows (B, N) seen in data units, over the noise's.

        By Parseval's theorem, so that it can be derived whatever the whitening:
        ``mean_f S_f |w_f|^2`` with S the spectrum that was taken out.
        """
        power = torch.fft.fft(white.float(), norm="ortho").abs().square().mean(0)
        return (power * self.spectrum).mean()

    def crops(self) -> tuple[Tensor, Tensor | None]:
        """Whitened random crops (B, N), float32, and their labels (B, L) or None."""
        x, onehot = self._crops(self.config.batch, self.rng)
        if onehot is not None:
            onehot = self.ranks.rows(onehot).to(self.device)
        return self.white(self.ranks.rows(x)), onehot

    def draw_crops(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """As many as asked for, by other random numbers; the same in all processes."""
        x, onehot = self._crops(n, rng)
        return self.white(x), None if onehot is None else onehot.to(self.device)

    def _crops(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        x, onehot = labelled_crops(
            self.recording,
            self.labels,
            window=self.config.window,
            n=n,
            rng=rng,
            margin=stretch_margin(self.config),
        )
        x = augmented(x - self.level, self.config, sd=self.sd, rng=rng) + self.level
        return x, onehot

    def randn(self, n: int, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers (n, ...), this process's rows of the joint batch."""
        joint = (n * self.ranks.world, *shape)
        drawn = torch.randn(joint, generator=self.rng, dtype=dtype)
        return self.ranks.rows(drawn).to(self.device)

    def _measure(self) -> None:
        """Moments per frequency over samples and frames, in passes by chunks."""
        power, most = RunningMoments(), 0.0
        for white in self._windows():
            square = self._plane(white).abs().square().transpose(1, 2).flatten(0, 1)
            power.add(square)
            most = max(most, float(square.max()))
        rms = power.mean.sqrt().float()[:, None].clamp_min(1e-12)
        mean, sd = plane_moments(
            log_magnitude(self._plane(white), rms, complex_mode=self.complex_mode)
            for white in self._windows()
        )
        # Overlap by half: a variance D gives the coefficients a power of D / 2.
        loudest = math.log(2.0 * most) if self.complex_mode and most else math.inf
        self.statistics = PlaneStatistics(rms, mean, sd, loudest)
        self.log_mean_power, self.log_sd_power = spectrum_moments(self._windows())
        n = self.config.window
        half = expected_periodogram(self.whitening.cpu(), n_fft=n)
        # The second half of the transform mirrors the first.
        whole = torch.cat([half, half[1 : 1 + n - len(half)].flip(0)])
        self.spectrum = (whole / self.sd**2).float().to(self.device)
        if self.config.amplitude_weight:
            windows, sd = self._windows(), 1.0
            if not self.whitener.filtered:
                raw = windows_of(self.recording, window=self.config.window)
                windows, sd = (part - self.level for part in raw), self.sd
            n = self.config.batch * self.config.window
            self.quantiles = sample_quantiles(windows, n, sd=sd).to(self.device)

    def _windows(self) -> Iterator[Tensor]:
        """Whitened windows of the recording, in chunks."""
        for part in windows_of(self.recording, window=self.config.window):
            yield self.white(part)

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
        joint = (n * self.ranks.world, 1)
        u = self.ranks.rows(torch.rand(joint, generator=self.rng, dtype=torch.float64))
        f = torch.exp(low + (high - low) * u).to(self.device)
        t = torch.arange(size, dtype=torch.float64, device=self.device) - size / 2
        c, s = torch.cos(2 * math.pi * f * t), torch.sin(2 * math.pi * f * t)
        scaled = t / size
        columns = torch.stack([torch.ones_like(c), c, s, scaled * c, scaled * s], -2)
        q, r = torch.linalg.qr(self.signal_whitener.forward(columns).mT)
        g = self.randn(n, 5, 1, dtype=torch.float64)
        # A rank-deficient column (frequency near Nyquist) gets no share.
        diagonal = r.diagonal(dim1=-2, dim2=-1).abs()
        keep = diagonal > 1e-6 * diagonal.amax(-1, keepdim=True)
        error = (q @ (g * keep[..., None])).squeeze(-1)
        return self.whitener.forward(self.signal_whitener.inverse(error)).float()
