"""Parametric bootstrap: noise of the prior on the fitted signal, fitted again.

The errors of the replicas' estimates stand for those of the estimate itself (Efron and
Tibshirani 1993, chapter 6). They are those of the *estimator*, whatever it is, in noise
of the prior. Every measurement meets the same noise, so that its replicas do not depend
on what else is in the batch. B measurements, S replicas of each, P parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sepprior.inference.pipeline import analyse
from sepprior.inference.record import MaskedWhitener, Record
from sepprior.inference.starts import gls_starts
from sepprior.priors import Prior
from sepprior.signals.form import Form
from sepprior.transforms import Whitener

AT_ONCE = 512
"""Windows that are fitted together; memory is bounded by it."""


def replicas(
    prior: Prior,
    record: Record,
    form: Form,
    theta: Tensor,
    *,
    n_draws: int,
    joint: bool,
    seed: int,
) -> Tensor:
    """Estimates (B, 1, S, P) from measurements with the same signal and new noise.

    Each replica has the gaps of its measurement, and is fitted from the known
    parameters on, without a search: a frequency that would be lost to another peak is
    not part of the error bars.

    Args:
        prior: gives the noise.
        record: the measurements.
        form: the signal, with bounds common to all measurements.
        theta: shape (B, P), the signal that is put into the noise.
        n_draws: S.
        joint: refit with the prior, else by generalised least squares.
        seed: of the noise.
    """
    n, n_windows, window = record.x.shape
    rng = torch.Generator().manual_seed(seed)
    noise = prior.sample(n_draws * n_windows, generator=rng).to(record.x) - prior.level
    noise = noise.view(n_draws, n_windows, window)
    signal = form.evaluate(record.t, theta)
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n_draws)).to(
        theta.device
    )
    rows = []
    for pair in pairs.split(max(1, AT_ONCE // n_windows)):
        which, draw = pair.unbind(1)
        replica = record.select(which).with_values(signal[which] + noise[draw])
        guess = theta[which, form.n_linear :]
        fit = _joint_refit if joint else _gls_refit
        rows.append(fit(prior, replica, form, guess))
    return torch.cat(rows).view(n, 1, n_draws, -1)


def _gls_refit(prior: Prior, record: Record, form: Form, guess: Tensor) -> Tensor:
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    return gls_starts(form, record, whitener, n_starts=1, guess=guess)[0].theta


def _joint_refit(prior: Prior, record: Record, form: Form, guess: Tensor) -> Tensor:
    outcome = analyse(
        prior,
        record,
        form=form,
        generator=torch.Generator().manual_seed(0),
        guess=guess,
    )
    assert outcome.joint is not None
    return outcome.joint.theta
