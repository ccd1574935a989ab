"""Gaussian smoothing of whitened noise, and what follows from its score.

Whitened windows w have a known covariance C (the identity, unless spectral lines were
left in). Smoothed to noise level sigma they are ``y = w + sigma e``, ``e ~ N(0, 1)``,
of covariance ``S = C + sigma^2``. The score of the smoothed density is written as that
of the Gaussian with the same covariance, plus a *correction* F of unit scale,

    grad log p(y; sigma) = -S^-1 y + C^1/2 S^-1/2 F(y; sigma) / sigma,

so that F = 0 for Gaussian noise, whatever its spectrum. With C = 1 this is the
preconditioning of Karras et al. 2022 (table 1, sigma_data = 1). In the coordinates
``v = S^-1/2 y`` the probability flow (Song et al. 2021, equation 13) is

    dv / d ln sigma = -sigma S^-1 C^1/2 F,

which stands still for Gaussian noise: its integration is exact there.

B windows, N samples, any number of leading dimensions where ``...`` stands.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Correction = Callable[[Tensor, Tensor], Tensor]
"""F: smoothed windows (B, N) and their noise levels (B,) to corrections (B, N)."""


@dataclass(frozen=True)
class Smoothing:
    """The covariance C of whitened noise, by its eigenvectors, and maps that use it.

    Attributes:
        values: shape (N,), eigenvalues of C.
        vectors: shape (N, N), eigenvectors in columns; None when C is the identity.
    """

    values: Tensor
    vectors: Tensor | None

    @staticmethod
    def of(covariance: Tensor | None, *, window: int, dtype: torch.dtype) -> Smoothing:
        """From a covariance (N, N), or None for the identity."""
        if covariance is None:
            return Smoothing(torch.ones(window, dtype=dtype), None)
        values, vectors = torch.linalg.eigh(covariance.double())
        floor = 1e-6 * float(values[-1])
        return Smoothing(values.clamp_min(floor).to(dtype), vectors.to(dtype))

    def to(self, device: torch.device | str) -> Smoothing:
        """The same on another device."""
        vectors = None if self.vectors is None else self.vectors.to(device)
        return Smoothing(self.values.to(device), vectors)

    @property
    def reach(self) -> float:
        """Largest standard deviation in any direction."""
        return math.sqrt(float(self.values.max()))

    def total(self, level: Tensor) -> Tensor:
        """Eigenvalues of S, (..., N) for levels (...)."""
        return self.values + level.square().unsqueeze(-1)

    def apply(self, weights: Tensor, y: Tensor) -> Tensor:
        """The matrix with these eigenvalues (..., N) times y (..., N)."""
        if self.vectors is None:
            return weights * y
        return (weights * (y @ self.vectors)) @ self.vectors.mT

    def standardise(self, y: Tensor, level: Tensor) -> Tensor:
        """``v = S^-1/2 y``."""
        return self.apply(self.total(level).rsqrt(), y)

    def restore(self, v: Tensor, level: Tensor) -> Tensor:
        """``y = S^1/2 v``."""
        return self.apply(self.total(level).sqrt(), v)

    def target(self, clean: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        """What F should return on average: the error of the linear denoiser.

        ``S^1/2 C^-1/2 (w - C S^-1 y) / sigma``, of unit covariance.
        """
        total = self.total(level)
        if self.vectors is None:
            rest = clean - noisy * (self.values / total)
            return rest * (total / self.values).sqrt() / level.unsqueeze(-1)
        rest = clean @ self.vectors - (noisy @ self.vectors) * (self.values / total)
        rest = rest * (total / self.values).sqrt() / level.unsqueeze(-1)
        return rest @ self.vectors.mT

    def score(self, noisy: Tensor, level: Tensor, correction: Tensor) -> Tensor:
        """``grad log p(y; sigma)`` from the correction F."""
        total = self.total(level)
        gain = (self.values / total).sqrt() / level.unsqueeze(-1)
        return self.apply(gain, correction) - self.apply(total.reciprocal(), noisy)

    def gaussian_energy(self, y: Tensor, level: Tensor) -> Tensor:
        """``-log N(y; 0, S)`` without ``N/2 log 2 pi``, shape (...)."""
        total = self.total(level)
        v = self.standardise(y, level)
        return 0.5 * (v.square().sum(-1) + total.log().sum(-1))


def geometric(first: float, last: float, n: int) -> Tensor:
    """N noise levels in geometric progression, float64."""
    grid = torch.linspace(math.log(first), math.log(last), n, dtype=torch.float64)
    return grid.exp()


def _flow(
    smoothing: Smoothing, correction: Correction, v: Tensor, level: float
) -> Tensor:
    """``dv / d ln sigma`` at one level for all windows."""
    sigma = torch.full(v.shape[:-1], level, dtype=v.dtype, device=v.device)
    f = correction(smoothing.restore(v, sigma), sigma)
    weight = -sigma.unsqueeze(-1) * smoothing.values.sqrt() / smoothing.total(sigma)
    return smoothing.apply(weight, f)


def follow_flow(
    smoothing: Smoothing, correction: Correction, v: Tensor, levels: Tensor
) -> Tensor:
    """Carry windows along the probability flow, in standardised coordinates.

    Heun's method on the logarithm of the level (Karras et al. 2022, algorithm 1, with
    the Gaussian part solved exactly). Differentiable in v.

    Args:
        smoothing: covariance of the clean windows.
        correction: F.
        v: shape (B, N), standardised windows at the first level.
        levels: shape (L,), noise levels to visit, rising or falling.

    Returns:
        Shape (B, N), standardised windows at the last level.
    """
    steps = levels.tolist()
    for now, then in itertools.pairwise(steps):
        h = math.log(then / now)
        slope = _flow(smoothing, correction, v, now)
        ahead = _flow(smoothing, correction, v + h * slope, then)
        v = v + 0.5 * h * (slope + ahead)
    return v


def log_density(
    smoothing: Smoothing,
    correction: Correction,
    y: Tensor,
    levels: Tensor,
    *,
    probes: Tensor,
) -> tuple[Tensor, Tensor]:
    """``log p(y)`` at the first level through the probability flow.

    Instantaneous change of variables (Chen et al. 2018; Song et al. 2021, equation 39)
    in standardised coordinates, where the Gaussian part has no divergence left. The
    trace is Hutchinson's (1990), with one estimate per probe.

    Args:
        smoothing: covariance of the clean windows.
        correction: F, differentiable.
        y: shape (B, N), windows at the first level.
        levels: shape (L,), rising; at the last one the noise is taken as Gaussian.
        probes: shape (P, B, N), entries +-1.

    Returns:
        ``log p`` in nats without ``-N/2 log 2 pi``, and the standard error that the
        random trace leaves, each (B,).
    """
    steps = levels.tolist()
    first = torch.full(y.shape[:-1], steps[0], dtype=y.dtype, device=y.device)
    half_log_det = 0.5 * smoothing.total(first).log().sum(-1)
    v = smoothing.standardise(y, first)
    change = torch.zeros(probes.shape[:2], dtype=y.dtype, device=y.device)

    def slope_and_trace(v: Tensor, level: float) -> tuple[Tensor, Tensor]:
        v = v.detach().requires_grad_()
        with torch.enable_grad():
            slope = _flow(smoothing, correction, v, level)
            traces = []
            for i, probe in enumerate(probes):
                keep = i + 1 < len(probes)
                (row,) = torch.autograd.grad(slope, v, probe, retain_graph=keep)
                traces.append((row * probe).sum(-1))
        return slope.detach(), torch.stack(traces)

    for now, then in itertools.pairwise(steps):
        h = math.log(then / now)
        slope, trace = slope_and_trace(v, now)
        ahead, next_trace = slope_and_trace(v + h * slope, then)
        v = v + 0.5 * h * (slope + ahead)
        change = change + 0.5 * h * (trace + next_trace)
    last = -0.5 * v.square().sum(-1) - half_log_det
    error = torch.zeros_like(last)
    if len(probes) > 1:
        error = change.std(0) / math.sqrt(len(probes))
    return last + change.mean(0), error


def flat_draws(n_draws: int, window: int, *, generator: torch.Generator) -> Tensor:
    """White noise of random phases and the same power at every frequency, (D, N).

    What a stationary linear filter leaves of it has the same power in every draw, the
    mean over white noise: the error of the linear denoiser has no scatter, and that of
    a network, which comes close to a filter where the noise is well known, has little.
    """
    spectrum = torch.fft.rfft(torch.randn((n_draws, window), generator=generator))
    return torch.fft.irfft(spectrum / spectrum.abs(), window) * math.sqrt(window)


def denoising_gain(
    smoothing: Smoothing,
    correction: Correction,
    w: Tensor,
    levels: Tensor,
    *,
    draws: Tensor,
) -> Tensor:
    """How much more probable than the Gaussian windows are, from denoising errors.

    The derivative of the log-likelihood by the signal-to-noise ratio is half the
    mean-square denoising error (Guo et al. 2005; Kong et al. 2023, equation 9), so that

        log p(w) - log N(w; 0, C) = int (err_linear - err_network) / sigma^2 d ln sigma.

    Exact for an exact denoiser and all levels. With the same draws for all windows the
    differences between similar windows are precise.

    Args:
        smoothing: covariance C of the clean windows.
        correction: F.
        w: shape (B, N), clean windows.
        levels: shape (L,), monotonic.
        draws: shape (D, N), of unit variance and white; each is used with both signs.
            `flat_draws` leave less to chance than normal ones.

    Returns:
        Shape (B,), nats.
    """
    noise = torch.cat([draws, -draws]).to(w)
    gains = []
    for value in levels.tolist():
        sigma = torch.full(w.shape[:1], value, dtype=w.dtype, device=w.device)
        weight = (smoothing.values / smoothing.total(sigma)).sqrt()
        gain = torch.zeros_like(sigma)
        for e in noise:
            y = w + value * e
            target = smoothing.target(w, y, sigma)
            rest = target - correction(y, sigma)
            before = smoothing.apply(weight, target).square().sum(-1)
            after = smoothing.apply(weight, rest).square().sum(-1)
            gain = gain + (before - after)
        gains.append(gain / len(noise))
    order = levels.log().to(w)
    return torch.trapezoid(torch.stack(gains), order, dim=0) * torch.sign(
        order[-1] - order[0]
    )
