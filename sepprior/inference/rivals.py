"""Other frequencies of a weak sinusoid, in the noise that a found latent says.

Starts come from the periodogram of stationary noise, and where a signal is weak its
peak may not be among those. With the latent known the noise is Gaussian with a
covariance of its own, and the gain of a sinusoid in it can be had at all frequencies: a
higher peak elsewhere is a better answer at the same latent already.

B measurements of W windows of N samples, F frequencies, C features of a measurement.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sepprior.inference.joint import JointFit, JointProblem
from sepprior.inference.least_squares import solve_normal
from sepprior.signals import Sinusoids

WEAK = 20.0
"""Gain over no signal, nats, above which another frequency is out of the question."""
OVERSAMPLING = 4
NUMBERS = 2**23
"""Numbers in the columns of all frequencies: of more, nothing is tried."""


def rivals(
    problem: JointProblem, fit: JointFit, alike: Tensor
) -> tuple[Tensor, Tensor]:
    """The likeliest sinusoids at the latents of a fit, where they are not the fit's.

    Args:
        problem: B measurements.
        fit: of all of them.
        alike: differences of the frequency below which two answers are one, (B, 1).

    Returns:
        Measurements (R,) and their theta (R, 4): none of signals other than one
        sinusoid.
    """
    prior, record, form = problem.prior, problem.record, problem.form
    none = fit.theta.new_zeros(0, dtype=torch.long), fit.theta[:0]
    if not isinstance(form, Sinusoids) or form.count > 1 or form.low.dim() > 1:
        return none
    low, high = float(form.low[0]), float(form.high[0])
    count = math.ceil((high - low) * record.duration * OVERSAMPLING) + 1
    if count < 3 or 3 * count * record.x[0].numel() > NUMBERS:
        return none
    with torch.no_grad():
        decoded = problem.decode(fit.z)
        root = decoded.precision.sqrt()
        target = (prior.features(record.x + fit.missing) - decoded.mean) * root
        target = target.flatten(1)
        own = fit.theta[:, 3]
        near = prior.features(form.linear_columns(record.t, own[:, None]))
        gains, _ = _gain((near * root[:, None]).flatten(2), target)
        weak = (gains < WEAK).nonzero().flatten()
        if not len(weak):
            return none
        grid = torch.linspace(low, high, count, dtype=own.dtype, device=own.device)
        columns = prior.features(form.linear_columns(record.t, grid[:, None]))
        rows, theta = [], []
        for b in weak.tolist():
            gain, linear = _gain((columns * root[b]).flatten(2), target[b])
            best = int(gain.argmax())
            far = abs(float(grid[best] - own[b])) > float(alike[b, 0])
            if far and float(gain[best]) > float(gains[b]):
                rows.append(b)
                theta.append(torch.cat([linear[best], grid[best : best + 1]]))
    if not rows:
        return none
    return torch.tensor(rows, device=own.device), torch.stack(theta)


def _gain(white: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Gain (F,) of sinusoids over a bias alone, nats, and their linear part (F, 3).

    Args:
        white: whitened columns of bias and quadratures, (F, 3, C).
        target: whitened data (F, C) or (C,).
    """
    white, target = white.double(), target.double()
    gram = white @ white.mT
    right = (white @ target.unsqueeze(-1)).squeeze(-1)
    linear = solve_normal(gram, right)
    gain = 0.5 * (right * linear).sum(-1) - 0.5 * right[:, 0] ** 2 / gram[:, 0, 0]
    return gain, linear
