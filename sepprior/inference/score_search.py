"""The search of annealed Fisher scoring: which starts are followed, and which one wins.

B measurements, W windows, N samples, Q problems (a start of a measurement each), P
parameters, L of them linear.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sepprior.inference.least_squares import Fit
from sepprior.inference.periodogram import Periodogram
from sepprior.inference.record import MaskedWhitener
from sepprior.inference.score import ScoreFit, ScoreProblem
from sepprior.inference.score_starts import (
    cleaned_starts,
    first_of_kind,
    hopeful,
    starts_at_lines,
)
from sepprior.inference.starts import HOPELESS, alike_within
from sepprior.signals.form import clamp

SCOUTED = 3
"""Noise levels, the highest ones, at which every start is followed."""
UNLIKELY = 2.0
"""Standard deviations below the mean log-likelihood of recorded noise from which other
starts are tried."""
RESTARTS = 16
"""New starts of a measurement whose noise hypothesis is unlikely."""
RESTART_SPREAD = 4.0
"""Standard errors, at the highest noise level, by which new starts scatter."""
RESTART_SEED = 58
"""Key of the new starts, the same for all measurements."""


@dataclass(frozen=True)
class Scored:
    """The best fit of each measurement.

    Attributes:
        fit: B fits.
        energy: shape (B,), ``-log p`` of the noise hypothesis, nats.
        agreement: shape (B,), share of the starts that came to the same frequency.
    """

    fit: ScoreFit
    energy: Tensor
    agreement: Tensor


def best_fit(
    problem: ScoreProblem,
    whitener: MaskedWhitener,
    starts: list[Fit],
    spectrum: Periodogram | None,
) -> Scored:
    """Fit from several starts and keep the most probable answer.

    Starts at different nonlinear parameters see the highest noise levels; of those that
    stay apart the two most probable go on, and the likelihood decides at the end. It is
    steep, and means little before a start has nearly arrived.

    Args:
        problem: B measurements.
        whitener: of the stationary part of the noise.
        starts: fits of the measurements by other methods, the most trusted first.
        spectrum: periodogram of the data; None where the frequencies are known.
    """
    levels = range(len(problem.prior.levels))
    scouting, rest = levels[:SCOUTED], levels[SCOUTED:]
    n_linear = problem.form.n_linear
    alike = alike_within(problem.form, starts[0])
    if spectrum is not None:
        cleaned = cleaned_starts(problem, whitener, starts[0])
        starts = [
            starts[0],
            *cleaned,
            *starts[1:],
            *starts_at_lines(problem, starts[0]),
        ]
    theta = torch.stack([start.theta for start in starts])
    n_starts, n, _ = theta.shape
    alive = first_of_kind(theta[..., n_linear:], alike)
    alive &= hopeful(problem.form, theta, spectrum)
    rows = alive.flatten().nonzero().flatten()
    fits = problem.descend(problem.start(theta.flatten(0, 1)[rows]), rows % n, scouting)
    # From here on problems are the rows that are alive; `slot` finds them.
    place = torch.full_like(theta[..., n_linear:], torch.nan).flatten(0, 1)
    place[rows] = fits.theta[:, n_linear:]
    place = place.view(n_starts, n, -1)
    slot = torch.full((n_starts * n,), -1, device=rows.device)
    slot[rows] = torch.arange(len(rows), device=rows.device)
    alive &= first_of_kind(place, alike)
    contested = (alive & (alive.sum(0) > 1)).flatten().nonzero().flatten()
    energy = torch.where(alive, 0.0, torch.inf).double()
    if len(contested):
        energy.view(-1)[contested] = problem.energy(
            fits.select(slot[contested]), contested % n
        )
    everyone = torch.arange(n, device=rows.device)
    ranked, order = energy.sort(0)
    best = problem.descend(fits.select(slot[order[0] * n + everyone]), everyone, rest)
    best_energy = problem.energy(best, everyone)
    if n_starts > 1:
        near = (ranked[1] - ranked[0] < HOPELESS).nonzero().flatten()
        if len(near):
            second = slot[order[1, near] * n + near]
            other = problem.descend(fits.select(second), near, rest)
            other_energy = problem.energy(other, near)
            won = other_energy < best_energy[near]
            best_energy[near[won]] = other_energy[won]
            best = best.replaced(near[won], other.select(won))
    rows = unlikely(problem, best_energy).nonzero().flatten()
    if len(rows):
        other = restarted(problem, best.select(rows), rows)
        other_energy = problem.energy(other, rows)
        won = other_energy < best_energy[rows]
        best_energy[rows[won]] = other_energy[won]
        best = best.replaced(rows[won], other.select(won))
    same = ((place - best.theta[:, n_linear:]).abs() < alike).all(-1)
    tried = place.isfinite().all(-1)
    agree = (same & tried).sum(0) / tried.sum(0)
    return Scored(best, best_energy, agree.double())


def unlikely(problem: ScoreProblem, energy: Tensor) -> Tensor:
    """Which noise hypotheses (B,) are less likely than nearly all recorded noise.

    A fit in a wrong optimum leaves noise with remains of the signal in it. False for
    priors that do not know what is usual.
    """
    usual = problem.prior.metadata.get("energy")
    if usual is None:
        return torch.zeros_like(energy, dtype=torch.bool)
    windows = problem.record.x.shape[1]
    deviation = usual["sd"] * windows**0.5
    return energy > usual["mean"] * windows + UNLIKELY * deviation


def restarted(problem: ScoreProblem, fit: ScoreFit, which: Tensor) -> ScoreFit:
    """The likeliest of fits from starts scattered about where the top level leads.

    The path from the highest level to the lowest can fork, and all starts that agree at
    the highest level take the same branch.

    Args:
        problem: B measurements.
        fit: Q fits in what may be a wrong optimum.
        which: measurement of each, (Q,).
    """
    levels = range(len(problem.prior.levels))
    first = problem.descend(problem.start(fit.theta), which, levels[:1])
    n, p = fit.theta.shape
    rng = torch.Generator().manual_seed(RESTART_SEED)
    draws = torch.randn((RESTARTS, 1, p, 1), generator=rng, dtype=torch.float64)
    root = torch.linalg.cholesky_ex(first.covariance).L
    shift = (root @ draws.to(root)).squeeze(-1)
    theta = (first.theta + RESTART_SPREAD * shift).flatten(0, 1)
    again = which.repeat(RESTARTS)
    form = problem.form
    nonlinear = clamp(form, theta[:, form.n_linear :], again)
    theta = torch.cat([theta[:, : form.n_linear], nonlinear], 1)
    tried = problem.descend(problem.start(theta), again, levels[:SCOUTED])
    best = problem.energy(tried, again).view(RESTARTS, n).argmin(0)
    kept = tried.select(best * n + torch.arange(n, device=best.device))
    return problem.descend(kept, which, levels[SCOUTED:])


def gain_over_silence(problem: ScoreProblem, scored: Scored) -> Tensor | None:
    """Log-likelihood of the best fits over that of no signal, nats, (B,).

    Twice the gain is asymptotically distributed as in Gaussian noise (Wilks 1938). The
    constant is fitted anew; None for forms without one.
    """
    form, fit = problem.form, scored.fit
    if not (form.has_constant and form.n_linear):
        return None
    everyone = torch.arange(len(fit.theta), device=fit.theta.device)
    quiet = fit.theta.clone()
    quiet[:, 1 : form.n_linear] = 0.0
    last = len(problem.prior.levels) - 1
    silent = problem.descend(
        replace(fit, theta=quiet), everyone, range(last, last + 1), first=1
    )
    return (problem.energy(silent, everyone) - scored.energy).clamp_min(0.0)
