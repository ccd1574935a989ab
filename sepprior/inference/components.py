"""How many sinusoids there are, and whether two of them can be told apart."""

from __future__ import annotations

import torch
from torch import Tensor

from sepprior.inference.detection import null_gains
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
"""Standard errors by which two frequencies must differ to be resolved."""


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


def unresolved(form: Sinusoids, theta: Tensor, covariance: Tensor) -> Tensor:
    """Whether two sinusoids are closer than 1 / T and not told apart, (B,).

    They are told apart when their frequencies differ by three standard errors of the
    difference.
    """
    f = theta[:, form.n_linear :]
    block = covariance[:, form.n_linear :, form.n_linear :]
    found = torch.zeros(len(f), dtype=torch.bool, device=f.device)
    for p in range(form.count):
        for q in range(p):
            distance = (f[:, p] - f[:, q]).abs()
            variance = block[:, p, p] + block[:, q, q] - 2.0 * block[:, p, q]
            close = distance < 1.0 / form.geometry.duration
            found |= close & ~(distance > APART * variance.clamp_min(0.0).sqrt())
    return found
