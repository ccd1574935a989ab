"""The joint optimum of a long measurement, a section of its windows at a time.

Given theta, windows know nothing of each other. So their latents are optimised window
by window, and theta moves by Newton's method on what is left: with z*(theta) the best
latents, ``E(theta, z*(theta))`` has the gradient of E at fixed z (the derivative by z
vanishes), and the information with the latents eliminated. Both are sums over windows,
so that memory is that of a section, however long the measurement is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sepprior.inference.joint import (
    DECREASE_TOLERANCE,
    JointFit,
    JointProblem,
    Optimum,
)
from sepprior.inference.least_squares import (
    inverse_information,
    moved,
    solve_normal,
)
from sepprior.inference.record import Record
from sepprior.priors import LatentPrior
from sepprior.signals.form import Form, Geometry, prior_energy
from sepprior.signals.nothing import Nothing

SECTION = 64
"""Windows that are worked on together."""
MOST_STEPS = 12
NEGLIGIBLE = 5e-3
"""Nats: a step of theta that promises less, a tenth of an error bar, ends it."""
SEARCH_ROUNDS = 2
EVALUATIONS_AGAIN = 12
"""Evaluations of the energy for latents that were nearly right at the last theta."""


@dataclass(frozen=True)
class _Curvature:
    """Second derivatives, summed over windows.

    Attributes:
        freed: information about theta with the latents free, (1, P, P).
        corner: the same with the latents fixed, (1, P, P).
        volume: half the log-determinants of the windows' own parts, (1,).
    """

    freed: Tensor
    corner: Tensor
    volume: Tensor


def fit_sections(
    prior: LatentPrior,
    record: Record,
    theta: Tensor,
    *,
    form: Form,
    generator: torch.Generator,
) -> Optimum:
    """Newton's method for theta, the latents at their best at each of its steps.

    The information is that of the start until the end: steps become small long before
    it has changed.

    Args:
        prior: the noise prior.
        record: one measurement.
        theta: where to start, (1, P).
        form: the signal.
        generator: for the latents' proposals.

    Returns:
        The optimum; its volume is that of the whole Hessian.
    """
    sections = [
        record.windows(slice(begin, begin + SECTION))
        for begin in range(0, record.x.shape[1], SECTION)
    ]
    everyone = torch.zeros(1, dtype=torch.long, device=theta.device)
    n = form.n_linear
    # Windows stop when they gain little more: their sum is certain to no less.
    double = prior.dtype == torch.float64
    slack = DECREASE_TOLERANCE[double] * record.x.shape[1] + NEGLIGIBLE
    latents: list[JointFit | None] = [None] * len(sections)
    best: tuple[Tensor, list[JointFit], Tensor] | None = None
    right, curvature, promised = torch.zeros_like(theta), None, theta.new_zeros(1)
    small, share, surprise = torch.zeros_like(everyone).bool(), 1.0, math.inf
    for _ in range(MOST_STEPS):
        found = [
            _windows(prior, section, theta, known, form, generator)
            for section, known in zip(sections, latents, strict=True)
        ]
        latents = list(found)
        energy = prior_energy(form, theta) + sum(f.energy.sum() for f in found)
        if best is None or float(energy) < float(best[2]) + slack:
            if best is not None:
                surprise = abs(float(best[2] - energy - promised))
            best, share = (theta, found, energy), 1.0
            right = _downhill(prior, sections, *best[:2], form=form)
        else:
            share *= 0.25  # uphill: a shorter step from the best point
        if curvature is None:
            curvature = _curvature(prior, sections, *best[:2], form=form)
        whole = solve_normal(curvature.freed, right)
        step, promised = share * whole, 0.5 * share * (whole * right).sum(-1)
        small = 0.5 * (whole * right).sum(-1) < NEGLIGIBLE
        if bool(small) and surprise < 2 * slack:
            break
        q = moved(form, best[0], step, everyone)[:, n:]
        theta = torch.cat([best[0][:, :n] + step[:, :n], q], 1)
    assert best is not None
    theta, found, energy = best
    curvature = _curvature(prior, sections, theta, found, form=form)
    missing = [
        _measured(section, theta, windows, form)
        for section, windows in zip(sections, found, strict=True)
    ]
    fit = JointFit(
        theta,
        torch.cat([f.z[:, 0] for f in found])[None],
        torch.cat(missing, 1),
        energy,
        small & (surprise < 2 * slack),
    )
    volume = 0.5 * torch.linalg.slogdet(curvature.freed).logabsdet
    return Optimum(
        fit,
        inverse_information(curvature.freed),
        inverse_information(curvature.corner),
        curvature.volume + volume,
        torch.ones_like(volume),
    )


def _windows(
    prior: LatentPrior,
    section: Record,
    theta: Tensor,
    known: JointFit | None,
    form: Form,
    generator: torch.Generator,
) -> JointFit:
    """The best latents of each window at fixed theta: a fit of n problems."""
    signal = form.evaluate(section.t, theta)
    n, size = section.x.shape[1:]
    present = section.present[0].unsqueeze(1)
    noise = ((section.x - signal)[0].unsqueeze(1)) * present
    alone = Record(noise, present, size, section.sample_rate)
    nothing = Nothing(Geometry(size, section.sample_rate))
    problem = JointProblem(prior, alone, form=nothing)
    which = torch.arange(n, device=theta.device)
    if known is None:
        known = problem.search(
            theta.new_zeros(n, 0),
            torch.zeros_like(noise),
            which,
            candidates=prior.n_candidates,
            rounds=SEARCH_ROUNDS,
            generator=generator,
        )
        return problem.minimise(known, which)
    return problem.minimise(known, which, max_evaluations=EVALUATIONS_AGAIN)


def _measured(section: Record, theta: Tensor, windows: JointFit, form: Form) -> Tensor:
    """What the missing samples would measure, (1, W, N): their noise and the signal."""
    signal = form.evaluate(section.t, theta)
    return (windows.missing[:, 0] + signal) * ~section.present


def _downhill(
    prior: LatentPrior,
    sections: list[Record],
    theta: Tensor,
    found: list[JointFit],
    *,
    form: Form,
) -> Tensor:
    """The energy's downward gradient by theta, the latents at their best, (1, P)."""
    total = form.prior_precision.to(theta) * (form.prior_mean.to(theta) - theta)
    everyone = torch.zeros(1, dtype=torch.long, device=theta.device)
    for section, windows in zip(sections, found, strict=True):
        problem = JointProblem(prior, section, form=form)
        filled = _measured(section, theta, windows, form)
        with torch.no_grad():
            decoded = problem.decode(windows.z[:, 0][None])
            noise = problem.noise_features(theta, filled, everyone).double()
            pull = (noise - decoded.mean.double()) * decoded.precision.double()
        slopes = problem.features(form.jacobian_columns(section.t, theta), everyone)
        total = total + (slopes @ pull.flatten(1).unsqueeze(-1))[..., 0]
    return total


def _curvature(
    prior: LatentPrior,
    sections: list[Record],
    theta: Tensor,
    found: list[JointFit],
    *,
    form: Form,
) -> _Curvature:
    """Second derivatives at theta and the latents that were found."""
    everyone = torch.zeros(1, dtype=torch.long, device=theta.device)
    own = torch.diag(form.prior_precision.to(theta))  # counted once, not per section
    freed = own.expand(1, -1, -1).clone()
    corner, volume = freed.clone(), theta.new_zeros(1)
    for section, windows in zip(sections, found, strict=True):
        problem = JointProblem(prior, section, form=form)
        filled = _measured(section, theta, windows, form)
        fit = JointFit(
            theta,
            windows.z[:, 0][None],
            filled,
            windows.energy[:1],
            windows.converged[:1],
        )
        part, cross, latent, gaps = problem.hessian(fit, everyone).present()
        inverse = torch.linalg.inv(latent)
        taken = torch.einsum("qwik,qwkl,qwjl->qij", cross, inverse, cross)
        freed = freed + part - own - taken
        corner = corner + part - own
        volume = volume + gaps
        volume = volume + 0.5 * torch.linalg.slogdet(latent).logabsdet.sum(-1)
    return _Curvature(freed, corner, volume)
