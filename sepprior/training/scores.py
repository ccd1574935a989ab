"""Second moments of a score over recorded noise: what it tells about a shift."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sepprior.priors import DiffusionPrior
from sepprior.transforms import toeplitz


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
        [_by_lag(e) for e in _standardised(prior, windows, sigma, rng)]
        for sigma in levels.tolist()
    ]
    smoothed, clean = (torch.stack(part) for part in zip(*rows, strict=True))
    return ScoreProducts(smoothed, clean)


def pair_products(
    prior: DiffusionPrior,
    windows: Tensor,
    sigma: float,
    rng: torch.Generator,
    *,
    independent: int,
) -> Tensor:
    """The same at one level for each pair of samples, (2, N, N) float32.

    ``E[e e^T]`` is drawn towards its Toeplitz part T by the share that chance explains:
    with the mean E of n independent products, by ``1 / n tr Var(e e^T) / |E - T|^2``
    (Ledoit and Wolf 2004, with T for their target). Stationary windows are left with T,
    lines stand out by orders of magnitude.

    Args:
        prior: whose score it is.
        windows: whitened noise (n, N), which may overlap.
        sigma: the level.
        rng: for the added noise.
        independent: how many windows the noise has side by side.
    """
    count = min(independent, len(windows))
    found = []
    for e in _standardised(prior, windows, sigma, rng):
        e = e.double()
        mean = e.mT @ e / len(e)
        target = toeplitz(_by_lag(e))
        spread = e.square().sum(-1).square().mean() - mean.square().sum()
        distance = (mean - target).square().sum()
        share = (spread / count / distance).clamp(0.0, 1.0)
        found.append(torch.lerp(mean, target, share))
    return torch.stack(found).float()


def _standardised(
    prior: DiffusionPrior, windows: Tensor, sigma: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows e of `ScoreProducts.smoothed` and of `ScoreProducts.clean`."""
    smoothing = prior.smoothing
    noise = sigma * torch.randn(windows.shape, generator=rng).to(windows)
    pair = [prior.score(windows + sign * noise, sigma) for sign in (1.0, -1.0)]
    total = smoothing.total(torch.full((), sigma, device=windows.device))
    smoothed = smoothing.apply(total.sqrt(), torch.cat(pair))
    weights = total / smoothing.values.sqrt()
    return smoothed, smoothing.apply(weights, 0.5 * (pair[0] + pair[1]))


def _by_lag(e: Tensor) -> Tensor:
    """Mean products of rows (n, N) by lag, (N,) float64."""
    n = e.shape[-1]
    spectrum = torch.fft.rfft(e.double(), 2 * n).abs().square().mean(0)
    # Each lag's mean is tapered like a biased autocovariance: the matrix is positive.
    return torch.fft.irfft(spectrum, 2 * n)[:n] / n
