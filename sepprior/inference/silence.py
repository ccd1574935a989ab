"""How much likelier a signal is than none, under a prior with a latent."""

from __future__ import annotations

import torch
from torch import Tensor

from sepprior.inference.joint import JointFit, JointProblem
from sepprior.inference.record import Record
from sepprior.inference.sections import fit_sections
from sepprior.priors import LatentPrior
from sepprior.signals import Sinusoids
from sepprior.signals.form import Form

ROUNDS = 3
"""Rounds of the search after the first, where a signal is in doubt."""
CLEAR = 100.0
"""Gain after the first round, nats, at which a signal is beyond doubt."""


def signal_gain(
    prior: LatentPrior,
    record: Record,
    form: Form,
    fit: JointFit,
    integrated: Tensor,
    *,
    generator: torch.Generator,
) -> Tensor | None:
    """Log-likelihood of fits over that of no signal, nats, (B,).

    The latent is integrated out by Laplace's method in both, the signal's parameters
    are at their best: twice the gain is asymptotically distributed as in Gaussian noise
    (Wilks 1938). A gain that exceeds `CLEAR` after the first round stays that rough.

    Args:
        prior: the noise prior.
        record: B measurements.
        form: the signal.
        fit: the best of each.
        integrated: energy of the fits with the latent integrated out, (B,).
        generator: for the latent's proposals.

    Returns:
        The gain; None for forms without a constant.
    """
    if not form.has_constant:
        return None
    constant = constant_like(form)
    everyone = torch.arange(len(record.x), device=record.x.device)
    first = JointProblem(prior, record, form=constant).search(
        _mean(record),
        fit.missing,
        everyone,
        candidates=prior.n_candidates,
        rounds=1,
        generator=generator,
        z=fit.z,
    )
    gain = first.energy - fit.energy
    doubtful = (gain < CLEAR).nonzero().flatten()
    if not len(doubtful):
        return gain
    silent = JointProblem(prior, record.select(doubtful), form=constant)
    first = first.select(doubtful)
    rows = torch.arange(len(doubtful), device=doubtful.device)
    searched = silent.search(
        first.theta,
        first.missing,
        rows,
        candidates=prior.n_candidates,
        rounds=ROUNDS,
        generator=generator,
        z=first.z,
    )
    best = silent.minimise(searched, rows)
    marginal, _, volume = silent.hessian(best, rows).summary()
    energy = integrated_energy(best.energy, marginal, volume)
    gain[doubtful] = energy - integrated[doubtful]
    return gain.clamp_min(0.0)


def signal_gain_long(
    prior: LatentPrior,
    record: Record,
    form: Form,
    fit: JointFit,
    integrated: Tensor,
    marginal: Tensor,
    *,
    generator: torch.Generator,
) -> Tensor | None:
    """The same for long measurements, worked on in sections.

    Where the linear parameters are beyond doubt, Wald's statistic stands in.

    Args:
        prior: the noise prior.
        record: B measurements.
        form: the signal.
        fit: the best of each.
        integrated: energy of the fits with the latent integrated out, (B,).
        marginal: covariance of the fits' theta, (B, P, P).
        generator: for the latent's proposals.
    """
    if not form.has_constant:
        return None
    constant = constant_like(form)
    linear = slice(1, form.n_linear)
    size, covariance = fit.theta[:, linear], marginal[:, linear, linear]
    wald = 0.5 * (size * torch.linalg.solve(covariance, size)).sum(-1)
    gains = []
    first_draws = generator.get_state()
    for b, start in enumerate(_mean(record).split(1)):
        generator.set_state(first_draws)
        if float(wald[b]) > CLEAR:
            gains.append(wald[b : b + 1])
            continue
        one = record.select(slice(b, b + 1))
        silent = fit_sections(prior, one, start, form=constant, generator=generator)
        energy = integrated_energy(silent.fit.energy, silent.marginal, silent.volume)
        gains.append(energy - integrated[b : b + 1])
    return torch.cat(gains).clamp_min(0.0)


def _mean(record: Record) -> Tensor:
    """Mean of the samples that are present, (B, 1)."""
    count = record.present.flatten(1).sum(-1, keepdim=True).clamp_min(1)
    return record.x.flatten(1).sum(-1, keepdim=True) / count


def integrated_energy(energy: Tensor, marginal: Tensor, volume: Tensor) -> Tensor:
    """Joint energies (Q,) with the latent integrated out at fixed parameters, nats.

    Args:
        energy: at the joint optimum, (Q,).
        marginal: covariance of the parameters there, (Q, P, P).
        volume: half the log-determinant of the whole Hessian, (Q,).
    """
    return energy + volume + 0.5 * torch.linalg.slogdet(marginal).logabsdet


def constant_like(form: Form) -> Sinusoids:
    """The form of a constant alone, for the same records."""
    nothing = form.low.new_zeros(0)
    return Sinusoids(0, form.geometry, low=nothing, high=nothing)
