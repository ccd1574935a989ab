"""Has the noise changed since training? A test of the whitened residual.

The residual of the least-squares fit, whitened by the recording's spectrum, has known
power in every band if the noise is still the same. The logarithms of the powers in
eight bands are compared with those of recorded noise: their Mahalanobis distance, and
its rank among the recorded ones as the probability of a false alarm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

N_BANDS = 8
QUANTILES = 201
TAIL = 0.1
"""Below this probability the distribution of the distance is extrapolated."""
FALSE_ALARM = 0.01
"""A measurement is flagged below this probability."""
SHRINKAGE = 0.05
SAMPLES_AT_ONCE = 2**18
PRESENT = 0.5
"""Windows with less of their samples are not judged."""


def band_powers(white: Tensor) -> Tensor:
    """Log mean power in eight equal bands of white windows (n, N): (n, 8)."""
    powers = []
    for some in white.split(max(1, SAMPLES_AT_ONCE // white.shape[-1])):
        power = torch.fft.rfft(some.double(), norm="ortho").abs().square()[:, 1:]
        n_bands = min(N_BANDS, power.shape[-1])
        parts = torch.tensor_split(power, n_bands, dim=-1)
        powers.append(torch.stack([part.mean(-1) for part in parts], -1))
    return torch.cat(powers).clamp_min(1e-12).log()


def measure_null(white: Tensor) -> dict[str, Any]:
    """Statistics of recorded noise, to be stored with the prior.

    Half of the windows give mean and covariance, the other half the distribution of
    the distance.

    Args:
        white: whitened windows of noise (n, N), n >= 16.

    Returns:
        JSON-able table with mean, precision and quantiles of the distance.
    """
    powers = band_powers(white)
    first, second = powers[0::2], powers[1::2]
    mean = first.mean(0)
    covariance = torch.cov(first.T)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * torch.diag(
        covariance.diagonal()
    )
    precision = torch.linalg.inv(covariance)
    distance = _distance(second, mean, precision)
    levels = torch.linspace(0, 1, QUANTILES, dtype=torch.float64).to(distance)
    return {
        "mean": mean.tolist(),
        "precision": precision.tolist(),
        "quantiles": distance.quantile(levels).tolist(),
        "windows": len(second),
    }


def false_alarm_probability(
    null: dict[str, Any] | None, white: Tensor, present: Tensor
) -> Tensor:
    """Probability that unchanged noise looks at least as strange, (B,).

    Args:
        null: from `measure_null`, or None (then NaN).
        white: whitened residual (B, W, N).
        present: shape (B, W, N).

    Returns:
        The smallest over the windows of a measurement, corrected for their number;
        NaN where no window is complete enough.
    """
    n_measurements, n_windows = white.shape[:2]
    if null is None:
        return white.new_full((n_measurements,), float("nan"))
    powers = band_powers(white.flatten(0, 1))
    share = present.double().mean(-1).flatten()
    powers = powers - share.clamp_min(1e-12).log()[:, None]
    mean = powers.new_tensor(null["mean"])
    precision = powers.new_tensor(null["precision"])
    distance = _distance(powers, mean, precision)
    probability = _tail_probability(distance, powers.new_tensor(null["quantiles"]))
    probability = torch.where(share < PRESENT, torch.nan, probability)
    probability = probability.view(n_measurements, n_windows)
    judged = torch.isfinite(probability).sum(-1)
    least = torch.where(torch.isfinite(probability), probability, 2.0).amin(-1)
    corrected = -torch.expm1(judged * torch.log1p(-least.clamp_max(1.0)))
    return torch.where(judged > 0, corrected, torch.nan)


def _tail_probability(distance: Tensor, quantiles: Tensor) -> Tensor:
    """Share of recorded distances that are larger, for distances (n,).

    Up to `TAIL` by interpolation between the quantiles; beyond, exponential with the
    mean excess of the recorded ones (Davison and Smith 1990, with zero shape).
    """
    last = len(quantiles) - 1
    upper = torch.searchsorted(quantiles, distance).clamp(1, last)
    low, high = quantiles[upper - 1], quantiles[upper]
    part = ((distance - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
    inside = 1.0 - (upper - 1 + part) / last
    start = last - round(TAIL * last)
    threshold = quantiles[start]
    excess = quantiles[start:] - threshold
    mean_excess = torch.trapezoid(excess) / (last - start)
    beyond = (distance - threshold).clamp_min(0.0) / mean_excess.clamp_min(1e-12)
    return torch.where(distance > threshold, TAIL * torch.exp(-beyond), inside)


def _distance(powers: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    deviation = powers - mean
    return torch.einsum("ni,ij,nj->n", deviation, precision, deviation)
