"""A score prior: the whole density of the noise, by a denoiser at every noise level.

There is no latent to optimise over. What the solver uses instead is the score of the
noise density smoothed to a level sigma, and its second moment over the recorded noise:
``K = E[score score^T]`` is the Fisher information of a shift, so that ``J^T K J`` is
that of any signal with whitened Jacobian J, before any measurement is made.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from sepprior.diffusion import (
    denoising_gain,
    flat_draws,
    follow_flow,
    geometric,
    log_density,
)
from sepprior.nets import Denoiser
from sepprior.priors.base import HALF_LOG_2PI, sample_count
from sepprior.priors.views import Geometry
from sepprior.priors.waveform import WaveformPrior
from sepprior.stationary import expected_periodogram
from sepprior.torch_state import usual_torch
from sepprior.transforms import Whitener, toeplitz

FLOW_STEPS = 24
"""Steps of the probability flow between the lowest and the highest level."""
FLOW_RANGE = 4.0
"""Highest level of the flow, in units of the largest standard deviation."""
BATCH = 256
"""Windows per pass of the network."""
GAIN_LEVELS = 8
LINE_GRID = 8
"""Points of the spectrum per 1 / T in the search for lines."""
LEAKAGE = 3
"""Reach of a line in the spectrum of a window, in units of 1 / T."""
LINE_RATIO = 16.0
"""Power over the continuum's from which a peak is a line."""
MOST_LINES = 2
GAIN_DRAWS = 1
DRAW_SEED = 20_201_111
"""Key of the noise added when a score is evaluated; fixed, so that answers repeat."""


class DiffusionPrior:
    """Noise whose smoothed score is ``-S^-1 y + C^1/2 S^-1/2 F(y; sigma) / sigma``.

    Args:
        network: F, from views of smoothed whitened noise to corrections.
        whitening: shape (N,), autocovariance that the whitening filter is made from.
        autocovariance: shape (N,), of the noise, squared data units.
        level: mean of the noise, data units.
        sample_rate: Hz.
        levels: shape (L,), noise levels of the solver, falling.
        information: shape (L, N): row l holds, by lag, the mean product of the
            standardised scores ``S^1/2 score`` at level l (1, 0, 0, ... for Gaussian
            noise).
        scatter: shape (L, N): likewise for the score of clean noise, averaged over a
            pair of opposite draws, standardised as ``S C^-1/2 score``.
        lowest: lowest level the network was trained for.
        products: shape (2, N, N), at the last of the levels the mean products of
            information and scatter for each pair of samples, or None: those by lag.
            Where lines are left in the whitened noise, its windows are not stationary,
            and only these tell what a measurement can know near a line.
        metadata: JSON-able facts.
    """

    name = "diffusion"
    learned = True
    n_latent = 0
    dtype = torch.float32

    def __init__(
        self,
        network: Denoiser,
        *,
        whitening: Tensor,
        autocovariance: Tensor,
        level: float,
        sample_rate: float,
        levels: Tensor,
        information: Tensor,
        scatter: Tensor,
        lowest: float,
        products: Tensor | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.whitening = whitening.double()
        self.autocovariance = autocovariance.double()
        self.level, self.sample_rate = float(level), float(sample_rate)
        self.window = int(autocovariance.shape[0])
        self.device = autocovariance.device
        self.whitener = Whitener(self.whitening)
        self.levels = levels.double().cpu()
        self.information, self.scatter = information.double(), scatter.double()
        self.lowest = float(lowest)
        self.products = products
        self.metadata = dict(metadata or {})
        self.geometry = Geometry.of(self.whitener, self.autocovariance)
        self.smoothing = self.geometry.smoothing
        self.half_log_det = self.whitener.half_log_det
        self._information: dict[int, Tensor] = {}
        self._scatter: dict[int, Tensor] = {}

    # -- the score -----------------------------------------------------------------

    def features(self, x: Tensor) -> Tensor:
        """Whitened windows w, (..., N) in data units without the level, float64."""
        return self.whitener.forward(x)

    def correction(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """F of smoothed whitened windows (B, N) at levels (B,), float32."""
        return self.network(self.geometry.views(noisy, sigma), sigma.log())

    def score(self, noisy: Tensor, sigma: float) -> Tensor:
        """Score of the density smoothed to level sigma, (B, N) to (B, N)."""
        rows = []
        with torch.no_grad():
            for y in noisy.float().split(BATCH):
                s = torch.full((len(y),), sigma, device=y.device)
                rows.append(self.smoothing.score(y, s, self.correction(y, s)))
        return torch.cat(rows)

    def gaussianised(self, score: Tensor, index: int) -> Tensor:
        """Noise of which a Gaussian of equal information would have this score.

        ``W^-1 (-S score) / M_0`` for scores (B, N) at ``levels[index]``, data units.
        """
        at = torch.full((len(score),), float(self.levels[index]), device=score.device)
        smoothed = self.smoothing.apply(self.smoothing.total(at), score.float())
        scale = -float(self.information[index, 0])
        return self.whitener.inverse(smoothed / scale)

    def information_matrix(self, index: int) -> Tensor:
        """K at ``levels[index]``, (N, N) float64: ``S^-1/2 M S^-1/2``.

        M is Toeplitz at every level but the last, at most.
        """
        if index not in self._information:
            values = self.smoothing.values.double() + float(self.levels[index]) ** 2
            self._information[index] = self._between(
                values.rsqrt(), self._mean_products(index, 0)
            )
        return self._information[index]

    def scatter_matrix(self, index: int) -> Tensor:
        """``C^1/2 S^-1 P S^-1 C^1/2`` at ``levels[index]``, (N, N), likewise."""
        if index not in self._scatter:
            clean = self.smoothing.values.double()
            values = clean + float(self.levels[index]) ** 2
            self._scatter[index] = self._between(
                clean.sqrt() / values, self._mean_products(index, 1)
            )
        return self._scatter[index]

    def _mean_products(self, index: int, which: int) -> Tensor:
        """Of information (0) or scatter (1) at ``levels[index]``, (N, N) float64."""
        if self.products is not None and index == len(self.levels) - 1:
            return self.products[which].double()
        rows = self.scatter if which else self.information
        return toeplitz(rows[index].to(self.device))

    def _between(self, weights: Tensor, matrix: Tensor) -> Tensor:
        """A matrix (N, N) between two with these eigenvalues (N,)."""
        outer = self._matrix(weights)
        return outer @ matrix @ outer

    def _matrix(self, weights: Tensor) -> Tensor:
        """The matrix with the eigenvectors of C and these eigenvalues (N,), float64."""
        if self.smoothing.vectors is None:
            return weights.to(self.device).diag()
        vectors = self.smoothing.vectors.double()
        return (vectors * weights) @ vectors.mT

    def lines(self, low: float, high: float) -> Tensor:
        """Frequencies of the strongest lines that the filter left in, Hz.

        Peaks of the expected periodogram over that of the filter's own noise; a line
        stands out by `LINE_RATIO` and over everything within its leakage.

        Args:
            low: lowest frequency, Hz.
            high: highest frequency, Hz.

        Returns:
            At most `MOST_LINES`, the strongest first; none where all is whitened.
        """
        n_fft = LINE_GRID * self.window
        noise, filtered = (
            expected_periodogram(v, n_fft=n_fft)
            for v in (self.autocovariance, self.whitening)
        )
        ratio = noise / filtered
        reach = LINE_GRID * LEAKAGE
        around = torch.nn.functional.max_pool1d(
            ratio[None, None], 2 * reach + 1, stride=1, padding=reach
        )[0, 0]
        frequency = torch.arange(len(ratio), device=ratio.device) / n_fft
        frequency = frequency.double() * self.sample_rate
        peak = (ratio == around) & (ratio > LINE_RATIO)
        peak &= (frequency >= low) & (frequency <= high)
        strongest = torch.where(peak, ratio, 0.0).topk(MOST_LINES)
        return frequency[strongest.indices[strongest.values > 0.0]]

    def information_gain(self, frequency: Tensor) -> Tensor:
        """Information about a sinusoid over that in Gaussian noise of equal spectrum.

        Both at the solver's last noise level, where some structure is smoothed away.

        Args:
            frequency: shape (F,), Hz.

        Returns:
            Shape (F,): the factor by which the variance of least squares can fall.
        """
        t = torch.arange(self.window, dtype=torch.float64, device=self.device)
        angle = 2.0 * math.pi * frequency[:, None].to(t) * t / self.sample_rate
        gain = torch.zeros_like(angle[:, 0])
        last = len(self.levels) - 1
        k = self.information_matrix(last)
        values = self.smoothing.values.double() + float(self.levels[last]) ** 2
        root = self._matrix(values.rsqrt())
        for wave in (angle.cos(), angle.sin()):
            white = self.features(wave)
            learned = ((white @ k) * white).sum(-1)
            gain += 0.5 * learned / (white @ root).square().sum(-1)
        return gain

    # -- likelihood ----------------------------------------------------------------

    @property
    def highest(self) -> float:
        """Level at which the smoothed noise counts as Gaussian."""
        return FLOW_RANGE * max(1.0, self.smoothing.reach)

    def gain(self, w: Tensor) -> Tensor:
        """Log-likelihood of whitened windows (B, N) over the Gaussian's, nats, (B,)."""
        rng = torch.Generator().manual_seed(DRAW_SEED)
        draws = flat_draws(GAIN_DRAWS, self.window, generator=rng)
        levels = geometric(self.highest, self.lowest, GAIN_LEVELS)
        with torch.no_grad():
            parts = [
                denoising_gain(
                    self.smoothing,
                    self.correction,
                    part,
                    levels,
                    draws=draws.to(part),
                )
                for part in w.float().split(BATCH)
            ]
        return torch.cat(parts).double()

    def gaussian_energy(self, w: Tensor) -> Tensor:
        """``-log`` of the Gaussian with the noise's covariance, without constants."""
        energy = self.smoothing.gaussian_energy(w.float(), w.new_zeros(len(w)).float())
        return energy.double() + self.half_log_det

    def heldout_nll(self, windows: Tensor, *, probes: int = 1) -> Tensor:
        """``-log p`` of windows (n, N) in data units by the probability flow, nats.

        The flow of any network carries a density of integral 1, so that the mean over
        recorded noise is no less than its entropy, as for priors with a latent, whose
        densities integrate to 1 at most: whichever prior gives less knows more. What is
        lost by smoothing to the lowest level is part of it; the steps of the flow are
        small enough to count for less than 0.001 nats per sample.
        """
        return self.log_likelihood(windows, probes=probes)[0].neg()

    def log_likelihood(
        self, windows: Tensor, *, probes: int = 4
    ) -> tuple[Tensor, Tensor]:
        """``log p`` of windows (n, N) in data units, nats, and its standard error.

        That of the density smoothed to the lowest level, through the probability flow
        with Hutchinson's trace; the error is that of the random trace alone.
        """
        rng = torch.Generator().manual_seed(DRAW_SEED)
        levels = geometric(self.lowest, self.highest, FLOW_STEPS + 1)
        rows = []
        w = self.features(windows.to(self.device) - self.level).float()
        for part in w.split(BATCH):
            signs = torch.randint(0, 2, (probes, *part.shape), generator=rng)
            rows.append(
                log_density(
                    self.smoothing,
                    self.correction,
                    part,
                    levels,
                    probes=(2.0 * signs - 1.0).to(part),
                )
            )
        constant = self.half_log_det + self.window * HALF_LOG_2PI
        values = torch.cat([r[0] for r in rows]).double() - constant
        return values, torch.cat([r[1] for r in rows]).double()

    # -- samples -------------------------------------------------------------------

    def decode_flow(self, z: Tensor, *, steps: int = FLOW_STEPS) -> Tensor:
        """The deterministic map from z ~ N(0, 1) to noise, (B, N) to (B, N).

        The probability flow from the highest level to the lowest; data units, without
        the level. Differentiable.
        """
        levels = geometric(self.highest, self.lowest, steps + 1)
        v = follow_flow(self.smoothing, self.correction, z.float(), levels)
        # The last bit of smoothing is taken away as from a Gaussian.
        zero = torch.zeros(len(v), device=v.device)
        w = self.smoothing.restore(v, zero)
        return self.whitener.inverse(w)

    def encode_flow(self, w: Tensor, *, steps: int = FLOW_STEPS) -> Tensor:
        """The inverse map, from whitened windows (B, N) to z (B, N)."""
        levels = geometric(self.lowest, self.highest, steps + 1)
        start = torch.full((len(w),), self.lowest, device=w.device)
        v = self.smoothing.standardise(w.float(), start)
        with torch.no_grad():
            return follow_flow(self.smoothing, self.correction, v, levels)

    @usual_torch()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Noise windows in data units, shape (n, N), float64."""
        n = sample_count(n, self.window)
        z = torch.randn((n, self.window), generator=generator).to(self.device)
        with torch.no_grad():
            parts = [self.decode_flow(part) for part in z.split(BATCH)]
        return torch.cat(parts) + self.level

    def as_latent(self) -> WaveformPrior:
        """The same density as a generator z -> noise, for latent optimisation.

        The map is one to one; the smoothing at the lowest level is its range error.
        """
        return WaveformPrior(
            lambda z: self.decode_flow(z.flatten(0, -2)).view(z.shape),
            n_latent=self.window,
            range_autocovariance=self.whitening * self.lowest**2,
            autocovariance=self.autocovariance,
            sample_rate=self.sample_rate,
            level=self.level,
            dtype=torch.float32,
            metadata=self.metadata,
        )

    def scaled(self, factor: float) -> DiffusionPrior:
        """Noise so many times as loud; the network is shared."""
        louder = copy.copy(self)
        louder.whitening = self.whitening * factor**2
        louder.autocovariance = self.autocovariance * factor**2
        louder.whitener = Whitener(louder.whitening)
        louder.half_log_det = louder.whitener.half_log_det
        return louder

    @usual_torch()
    def to(self, device: torch.device | str) -> DiffusionPrior:
        """The same prior on another device."""
        if torch.device(device) == self.device:
            return self
        return DiffusionPrior(
            self.network.to(device),
            whitening=self.whitening.to(device),
            autocovariance=self.autocovariance.to(device),
            level=self.level,
            sample_rate=self.sample_rate,
            levels=self.levels,
            information=self.information.to(device),
            scatter=self.scatter.to(device),
            lowest=self.lowest,
            products=None if self.products is None else self.products.to(device),
            metadata=self.metadata,
        )
