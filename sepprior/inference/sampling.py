"""How far Markov chains can be trusted: split R-hat and effective sample size.

After Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021): chains are split in half,
so that a drift shows as a disagreement; values are replaced by normal scores of their
ranks, so that heavy tails do no harm; and spread and location are looked at in turn.
C chains, S draws of each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RHAT_LIMIT = 1.05
"""Chains that agree less are not one sample of one distribution."""
ESS_LIMIT = 100.0
"""Fewer effective draws leave a standard error uncertain by 7 % and more."""
TAIL = 0.05
"""Probability in each tail whose effective sample size is looked at."""


def split_rhat(draws: Tensor) -> Tensor:
    """Potential scale reduction of chains (..., C, S), shape (...).

    ``sqrt((W (n - 1) / n + B / n) / W)`` of half chains of n draws, with W the mean of
    their variances and B / n the variance of their means; the larger one of the values
    and of their distances from the median (equations 3, 4 and 14). Near 1 where the
    chains agree.
    """
    halves = _split(draws)
    middle = quantile(halves.flatten(-2), 0.5)[..., None, None]
    bulk, spread = (_normal_scores(v) for v in (halves, (halves - middle).abs()))
    return torch.maximum(_rhat(bulk), _rhat(spread))


def effective_size(draws: Tensor) -> Tensor:
    """Effective number of draws of chains (..., C, S), shape (...).

    The smaller one of that for the bulk and of those for the 5 and 95 % quantiles.
    """
    halves = _split(draws)
    sizes = [_effective(_normal_scores(halves))]
    flat = halves.flatten(-2)
    for level in (TAIL, 1.0 - TAIL):
        end = quantile(flat, level)[..., None, None]
        sizes.append(_effective((halves <= end).to(halves.dtype)))
    return torch.stack(sizes).amin(0)


def well_sampled(rhat: Tensor, size: Tensor) -> Tensor:
    """Whether all parameters (..., R) are within both limits, shape (...).

    One that never varies (its size is not a number) needs no draws.
    """
    return ((rhat < RHAT_LIMIT) & ((size > ESS_LIMIT) | size.isnan())).all(-1)


def quantile(values: Tensor, level: float) -> Tensor:
    """Quantile of values (..., n) by linear interpolation, shape (...), n any size."""
    ordered = values.sort(-1).values
    place = level * (values.shape[-1] - 1)
    low = int(place)
    high = min(low + 1, values.shape[-1] - 1)
    return torch.lerp(ordered[..., low], ordered[..., high], place - low)


def _split(draws: Tensor) -> Tensor:
    """Each chain as two: (..., C, S) to (..., 2 C, S // 2)."""
    n = draws.shape[-1] // 2
    return torch.cat([draws[..., :n], draws[..., -n:]], -2)


def _normal_scores(draws: Tensor) -> Tensor:
    """Normal quantiles of the ranks among all chains (equation 14).

    Equal values get equal ranks, the middle one of theirs.
    """
    flat = draws.flatten(-2).contiguous()
    ordered = flat.sort(-1).values
    below = torch.searchsorted(ordered, flat)
    up_to = torch.searchsorted(ordered, flat, right=True)
    rank = 0.5 * (below + up_to + 1).to(draws.dtype)
    share = (rank - 0.375) / (flat.shape[-1] + 0.25)
    return torch.special.ndtri(share).view_as(draws)


def _rhat(chains: Tensor) -> Tensor:
    """Equations 3 and 4, of chains that are split already."""
    n = chains.shape[-1]
    within = chains.var(-1).mean(-1)
    between = chains.mean(-1).var(-1)
    # Chains that never move agree, or do not, without any scale to say by how much.
    ratio = torch.where(
        within > 0, between / within, torch.where(between > 0, torch.inf, 0.0)
    )
    return ((n - 1) / n + ratio).sqrt()


def _effective(chains: Tensor) -> Tensor:
    """Equations 10 to 13, with the sum cut as by Geyer (1992, section 3.3)."""
    m, n = chains.shape[-2:]
    centred = chains - chains.mean(-1, keepdim=True)
    spectrum = torch.fft.rfft(centred, 2 * n)
    lagged = torch.fft.irfft(spectrum.abs().square(), 2 * n)[..., :n] / n
    within = lagged[..., 0].mean(-1) * n / (n - 1)
    total = lagged[..., 0].mean(-1) + chains.mean(-1).var(-1)
    autocorrelation = 1.0 - (within[..., None] - lagged.mean(-2)) / total[..., None]
    autocorrelation[..., 0] = 1.0
    pairs = autocorrelation[..., : 2 * (n // 2)].unflatten(-1, (-1, 2)).sum(-1)
    positive = (pairs > 0).to(pairs.dtype).cummin(-1).values
    monotone = pairs.cummin(-1).values * positive
    # Alternating chains know a mean better than independent draws, within reason.
    time = (2.0 * monotone.sum(-1) - 1.0).clamp_min(1.0 / math.log10(m * n))
    return torch.where(total > 0, m * n / time, torch.nan)
