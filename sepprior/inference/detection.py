"""Signal or noise only: how large the gain gets when there is no signal.

The statistic is the gain in log-likelihood of the GLS fit over no signal (a constant,
if the signal has one). Its distribution in noise alone is known in closed form for one
sinusoid in Gaussian noise; elsewhere it is that in noise drawn from the prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sepprior.inference.least_squares import gls_features, solve_normal
from sepprior.inference.record import MaskedWhitener, Record, lay_out
from sepprior.inference.starts import gls_starts
from sepprior.priors import Prior
from sepprior.signals.form import Form, Geometry
from sepprior.signals.sinusoids import Sinusoids
from sepprior.transforms import Whitener

N_SIMULATED = 60
"""Noise records that are fitted to learn the distribution of the gain."""
TAIL = 0.2
"""Share of the largest simulated gains that the exponential tail is fitted to."""


@dataclass(frozen=True)
class NullGains:
    """Distribution of the largest gain in noise alone.

    Attributes:
        width: effective number of independent frequencies, W; see `probability`.
        gains: simulated gains in ascending order, nats, which take precedence.
    """

    width: float
    gains: Tensor | None = None

    def probability(self, gain: Tensor) -> Tensor:
        """Probability that noise alone gains at least as much, any shape.

        In Gaussian noise the gain of a sinusoid is half a chi-square variate of two
        degrees of freedom at each frequency, and its maximum over a band of width B
        exceeds z with probability ``1 - (1 - exp(-z)) exp(-W sqrt(z) exp(-z))`` where
        ``W = B T sqrt(pi / 3)`` (Baluev 2008, equations 5 and 6). Simulated gains are
        ranked; beyond four fifths of them the tail is exponential with their mean
        excess.
        """
        gain = gain.clamp_min(0.0)
        if self.gains is None:
            z = gain.clamp_min(1e-12)
            crossings = self.width * z.sqrt() * torch.exp(-z)
            return -torch.expm1(torch.log1p(-torch.exp(-z)) - crossings)
        gains = self.gains.to(gain)
        n = len(gains)
        larger = n - torch.searchsorted(gains, gain.contiguous())
        start = n - math.ceil(TAIL * n)
        excess = gains[start:] - gains[start]
        scale = excess.mean().clamp_min(1e-12)
        beyond = TAIL * torch.exp(-(gain - gains[start]) / scale)
        ranked = (larger + 1.0) / (n + 1.0)
        return torch.where(gain > gains[start], beyond, ranked)

    def threshold(self, probability: float) -> float:
        """Gain that noise alone exceeds with this probability, nats."""
        low, high = 0.0, 1.0
        while float(self.probability(torch.tensor(high).double())) > probability:
            high *= 2.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            above = float(self.probability(torch.tensor(middle).double()))
            low, high = (middle, high) if above > probability else (low, middle)
        return high


def null_gains(
    prior: Prior, form: Form, geometry: Geometry, *, fmin: float, fmax: float, seed: int
) -> NullGains:
    """The distribution of the gain of a form in Gaussian noise of the prior's spectrum.

    Args:
        prior: the noise.
        form: the signal.
        geometry: of the records.
        fmin: lowest frequency searched, Hz.
        fmax: highest frequency searched, Hz.
        seed: of the simulated noise.
    """
    width = (fmax - fmin) * geometry.duration * math.sqrt(math.pi / 3.0)
    if isinstance(form.search, Sinusoids):
        return NullGains(width)
    n_windows = -(-geometry.length // prior.window)
    n = max(20, N_SIMULATED // n_windows)
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(
        (n * n_windows, prior.window), generator=generator, dtype=torch.float64
    )
    noise = Whitener(prior.autocovariance).inverse(white.to(prior.device))
    record = lay_out(
        noise.reshape(n, -1)[:, : geometry.length],
        window=prior.window,
        level=0.0,
        sample_rate=geometry.sample_rate,
    )
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    fit = gls_starts(form, record, whitener, n_starts=1)[0]
    gain = no_signal_energy(form, record, whitener) - fit.energy
    return NullGains(width, gain.clamp_min(0.0).sort().values)


def no_signal_energy(form: Form, record: Record, whitener: MaskedWhitener) -> Tensor:
    """Half the whitened squares of the data, a constant fitted if the form has one."""
    everyone = torch.arange(len(record.x), device=record.x.device)
    features = gls_features(whitener)
    target = features(record.x.unsqueeze(1), everyone)[:, 0]
    energy = 0.5 * target.square().sum(-1)
    if not form.has_constant:
        return energy
    ones = features(torch.ones_like(record.x).unsqueeze(1), everyone)
    right = (ones @ target.unsqueeze(-1)).squeeze(-1)
    return energy - 0.5 * (right * solve_normal(ones @ ones.mT, right)).sum(-1)
