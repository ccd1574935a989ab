"""How much likelier a signal is than none, under a prior with a latent."""

from __future__ import annotations

import torch
from torch import Tensor

from sepprior.inference.joint import JointFit, JointProblem
from sepprior.signals import Sinusoids
from sepprior.signals.form import Form

ROUNDS = 3
"""Rounds of the search after the first, where a signal is in doubt."""
CLEAR = 100.0
"""Gain after the first round, nats, at which a signal is beyond doubt."""


def gain_over_silence(
    problem: JointProblem,
    fit: JointFit,
    integrated: Tensor,
    *,
    generator: torch.Generator,
) -> Tensor | None:
    """Log-likelihood of fits over that of no signal, nats, (B,).

    The latent is integrated out by Laplace's method in both, the signal's parameters
    are at their best: twice the gain is asymptotically distributed as in Gaussian noise
    (Wilks 1938). Where it is beyond doubt it is only known to be at least `CLEAR`.

    Args:
        problem: B measurements.
        fit: the best of each.
        integrated: energy of the fits with the latent integrated out, (B,).
        generator: for the latent's proposals.

    Returns:
        The gain; None for forms without a constant.
    """
    form, record, prior = problem.form, problem.record, problem.prior
    if not form.has_constant:
        return None
    constant = constant_like(form)
    n = len(record.x)
    everyone = torch.arange(n, device=record.x.device)
    count = record.present.flatten(1).sum(-1).clamp_min(1)
    first = JointProblem(prior, record, form=constant).search(
        (record.x.flatten(1).sum(-1) / count)[:, None],
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
    gain[doubtful] = (
        integrated_energy(best.energy, marginal, volume) - integrated[doubtful]
    )
    return gain.clamp_min(0.0)


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
