"""Second moments of a score over recorded noise: what it tells about a shift."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sepprior.priors import DiffusionPrior
from sepprior.transforms import toeplitz

LEAST_SHARE = 0.05
"""Least eigenvalue of the products of pairs, over the mean one."""


@dataclass(frozen=True)
class ScoreProducts:
    """Mean products of standardised scores by lag, one row per level.

    ``mean_i E[e_i e_{i+k}]``, that is the Toeplitz matrix nearest to ``E[e e^T]``, each
    lag averaged over its diagonal; 1, 0, 0, ... for Gaussian noise.

    Attributes:
        smoothed: shape (L, N), of ``e = S^1/2 score(y)`` over smoothed noise y.
        clean: shape (L, N), of ``e = S C^-1/2 (score(w + n) + score(w - n)) / 2`` over
            clean noise w, the mean over two opposite draws that the solver uses.
    """

    smoothed: Tensor
    clean: Tensor


def measure_scores(
    prior: DiffusionPrior, windows: Tensor, levels: Tensor, rng: torch.Generator
) -> ScoreProducts:
    """Second moments of the score over recorded noise, by lag.

    Args:
        prior: whose score it is.
        windows: whitened noise (n, N).
        levels: shape (L,).
        rng: for the added noise.
    """
    rows = [
        [_by_lag(e) for e in _standardised(prior, windows, sigma, rng)[0]]
        for sigma in levels.tolist()
    ]
    smoothed, clean = (torch.stack(part) for part in zip(*rows, strict=True))
    return ScoreProducts(smoothed, clean)


def pair_products(
    prior: DiffusionPrior, windows: Tensor, sigma: float, rng: torch.Generator
) -> Tensor:
    """The same at one level for each pair of samples, (2, N, N) float32.

    What the score of Gaussian noise of the same covariance would give on the same
    windows, other than its Toeplitz part, is chance, and taken off (a control variate):
    the products of a Gaussian score are those by lag, exactly.

    Args:
        prior: whose score it is.
        windows: whitened noise (n, N), which may overlap.
        sigma: the level.
        rng: for the added noise.
    """
    scores, gaussian = _standardised(prior, windows, sigma, rng)
    found = []
    for e, v in zip(scores, gaussian, strict=True):
        by_chance = _by_pair(v) - toeplitz(_by_lag(v))
        value, vectors = torch.linalg.eigh(_by_pair(e) - by_chance)
        found.append(
            (vectors * value.clamp_min(LEAST_SHARE * value.mean())) @ vectors.mT
        )
    return torch.stack(found).float()


def _standardised(
    prior: DiffusionPrior, windows: Tensor, sigma: float, rng: torch.Generator
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Rows e of `ScoreProducts.smoothed` and `clean`; those of a Gaussian's score."""
    smoothing = prior.smoothing
    noise = sigma * torch.randn(windows.shape, generator=rng).to(windows)
    noisy = [windows + sign * noise for sign in (1.0, -1.0)]
    pair = [prior.score(y, sigma) for y in noisy]
    total = smoothing.total(torch.full((), sigma, device=windows.device))
    weights = total / smoothing.values.sqrt()
    scores = (
        smoothing.apply(total.sqrt(), torch.cat(pair)),
        smoothing.apply(weights, 0.5 * (pair[0] + pair[1])),
    )
    gaussian = (
        smoothing.apply(total.rsqrt(), torch.cat(noisy)),
        smoothing.apply(smoothing.values.rsqrt(), windows),
    )
    return scores, gaussian


def _by_pair(e: Tensor) -> Tensor:
    """Mean products of rows (n, N) for each pair of samples, (N, N) float64."""
    e = e.double()
    return e.mT @ e / len(e)


def _by_lag(e: Tensor) -> Tensor:
    """Mean products of rows (n, N) by lag, (N,) float64."""
    n = e.shape[-1]
    spectrum = torch.fft.rfft(e.double(), 2 * n).abs().square().mean(0)
    # Each lag's mean is tapered like a biased autocovariance: the matrix is positive.
    return torch.fft.irfft(spectrum, 2 * n)[:n] / n
