"""How many sinusoids there are, and whether two of them can be told apart."""

from __future__ import annotations

import torch
from scipy.special import chdtri
from torch import Tensor

from sepprior.inference.detection import NullGains, null_gains
from sepprior.inference.least_squares import Fit
from sepprior.inference.record import MaskedWhitener, Record
from sepprior.inference.starts import gls_starts
from sepprior.priors import Prior
from sepprior.signals.form import Geometry
from sepprior.signals.sinusoids import Sinusoids
from sepprior.transforms import Whitener

FALSE_ADDITION = 0.01
"""Probability that one sinusoid too many is accepted."""
MOST = 8
APART = 3.0
"""Standard errors by which two close frequencies must differ."""


def choose_components(
    prior: Prior, record: Record, *, fmin: float, fmax: float, seed: int
) -> int:
    """Number of sinusoids in one measurement, by a penalised likelihood.

    Sinusoids are added while the joint fit gains more than noise alone would with a
    probability of 1 % when the whole band is searched for one more sinusoid.

    Returns:
        At least 1.
    """
    geometry = Geometry(record.length, record.sample_rate)
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)

    def best(count: int) -> float:
        form = Sinusoids(count, geometry, low=fmin, high=fmax)
        return float(gls_starts(form, record, whitener, n_starts=2)[0].energy)

    single = Sinusoids(1, geometry, low=fmin, high=fmax)
    null = null_gains(prior, single, geometry, fmin=fmin, fmax=fmax, seed=seed)
    threshold = null.threshold(FALSE_ADDITION)
    energy = best(1)
    for count in range(1, MOST):
        more = best(count + 1)
        if energy - more < threshold:
            return count
        energy = more
    return MOST


def unresolved(
    form: Sinusoids, record: Record, whitener: MaskedWhitener, gls: Fit, null: NullGains
) -> Tensor:
    """Whether the data do not show as many sinusoids as were fitted, (B,).

    Two that are closer than 1 / T are told apart when their frequencies differ by three
    standard errors and they gain more over a fit with one fewer than, with a
    probability of 1 %, the three parameters saved would (Wilks 1938). Elsewhere the
    last sinusoid must gain more than noise does when the band is searched.

    Args:
        form: of the fit, P > 1 sinusoids.
        record: B measurements.
        whitener: of the stationary noise.
        gls: the GLS fit.
        null: of the gain of one sinusoid in noise.
    """
    f, n = gls.theta[:, form.n_linear :], form.n_linear
    close = torch.zeros(len(f), dtype=torch.bool, device=f.device)
    merged = torch.zeros_like(close)
    for p in range(form.count):
        for q in range(p):
            block = gls.covariance[:, [n + p, n + q]][:, :, [n + p, n + q]]
            variance = block[:, 0, 0] + block[:, 1, 1] - 2.0 * block[:, 0, 1]
            distance = (f[:, p] - f[:, q]).abs()
            near = distance < 1.0 / form.geometry.duration
            close |= near
            merged |= near & ~(distance > APART * variance.clamp_min(0.0).sqrt())
    if bool((form.low != form.low[0]).any() or (form.high != form.high[0]).any()):
        return merged
    fewer = form.part(list(range(form.count - 1)))
    without = gls_starts(fewer, record, whitener, n_starts=2)[0].energy
    needed = torch.where(
        close,
        0.5 * float(chdtri(3, FALSE_ADDITION)),
        null.threshold(FALSE_ADDITION),
    )
    return merged | (without - gls.energy < needed)
