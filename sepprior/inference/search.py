"""The joint optimum of theta and latents, searched from several starts.

B measurements of W windows, S starts of each, P parameters of which L are linear.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sepprior.inference.joint import (
    JointFit,
    JointProblem,
    Optimum,
    joined,
    number_within,
)
from sepprior.inference.least_squares import Fit
from sepprior.inference.record import Record
from sepprior.inference.rivals import rivals
from sepprior.inference.sections import fit_sections
from sepprior.inference.starts import HOPELESS, alike_within
from sepprior.priors import LatentPrior
from sepprior.signals.form import Form, clamp

N_KEPT = 3
"""Starts at most that are still followed after the first round of the search."""
ROUNDS = 3
"""Alternations between the latent's proposals and the signal's fit."""
MOST_LONG_STARTS = 2
N_SPREAD, SPREAD_CANDIDATES = 16, 2
"""Starts spread about least squares, and latents proposed for each."""
FAR = 4.0
"""Errors of least squares over those in the noise found, from which that is done."""
SPREAD_AT_ONCE = 64
"""Windows whose spread starts are worked out together; bounds memory."""


def search_together(
    prior: LatentPrior,
    record: Record,
    starts: list[Fit],
    *,
    form: Form,
    generator: torch.Generator,
) -> Optimum:
    """Latents of all windows and theta together, from several starts.

    Args:
        prior: the noise prior.
        record: B measurements.
        starts: fits of all of them, that of generalised least squares first.
        form: the signal.
        generator: for the latents' proposals.
    """
    problem = JointProblem(prior, record, form=form)
    n = len(record.x)
    everyone = torch.arange(n, device=record.x.device)
    which = everyone.repeat(len(starts))
    theta = torch.cat([fit.theta for fit in starts])
    filled = _interpolate(record)[which]
    first = problem.search(
        theta,
        filled,
        which,
        candidates=prior.n_candidates,
        rounds=1,
        generator=generator,
    )
    alike = alike_within(form, starts[0])
    kept = _worth_following(first, form.n_linear, alike)
    first, which = first.select(kept), which[kept]
    searched = problem.search(
        first.theta,
        first.missing,
        which,
        candidates=prior.n_candidates,
        rounds=ROUNDS - 1,
        generator=generator,
        z=first.z,
        n_starts=N_KEPT,
    )
    best, second = (searched.select(v) for v in _ranked(searched.energy, which, n))
    rivalling = _worth_refining(form, best, second, alike)
    far, spread = _spread_starts(problem, best, starts[0], generator)
    rows = everyone, rivalling, far
    refined = problem.minimise(
        joined([best, second.select(rivalling), spread]), torch.cat(rows)
    )
    fit, *others = refined.split([len(part) for part in rows])
    for other, part in zip(others, rows[1:], strict=True):
        fit = _lower(fit, other, part)
    fit = _try_rivals(problem, fit, alike, generator)
    near = problem.tangent(fit)
    hessian = problem.hessian(fit, everyone, near)
    marginal, conditional, volume = hessian.summary()
    at = slice(form.n_linear, None)
    close = ((searched.theta - fit.theta[which])[:, at].abs() < alike[which]).all(-1)
    followed = torch.bincount(which, minlength=n)
    agreement = torch.bincount(which, close.double(), minlength=n) / followed
    return Optimum(fit, marginal, conditional, volume, agreement, near)


def _worth_following(fits: JointFit, n_linear: int, alike: Tensor) -> Tensor:
    """Rows that could still win, of fits from S starts of each of n measurements.

    The best of each measurement, and of the next ones those that trail by less than
    `HOPELESS` and have nonlinear parameters of their own: `N_KEPT` at most.

    Args:
        fits: S n of them, start by start.
        n_linear: number of linear parameters.
        alike: differences of the others below which two answers are one, (n, P - L).
    """
    n = len(alike)
    energy = fits.energy.view(-1, n).nan_to_num(nan=torch.inf)
    order = energy.argsort(0)
    everyone = torch.arange(n, device=order.device)
    places = fits.theta[:, n_linear:].unflatten(0, (-1, n))
    places = places[order, everyone]
    kept = torch.zeros_like(order, dtype=torch.bool)
    for s in range(len(order)):
        near = ((places[:s] - places[s]).abs() < alike).all(-1) & kept[:s]
        close = energy[order[s], everyone] - energy[order[0], everyone] < HOPELESS
        kept[s] = close & ~near.any(0) & (kept[:s].sum(0) < N_KEPT)
    kept[0] = True
    return (order * n + everyone)[kept]


def _ranked(energy: Tensor, which: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Rows of the best fit of each of n measurements and of the second best.

    Where there is one fit alone it is both.
    """
    order = energy.nan_to_num(nan=torch.inf).argsort(stable=True)
    rank = number_within(which[order])
    first, next_best = order[rank == 0], order[rank == 1]
    best = order.new_empty(n)
    best[which[first]] = first
    second = best.clone()
    second[which[next_best]] = next_best
    return best, second


def search_in_sections(
    prior: LatentPrior,
    record: Record,
    starts: list[Fit],
    *,
    form: Form,
    generator: torch.Generator,
) -> Optimum:
    """The same for long measurements, one after the other."""
    alike = alike_within(form, starts[0])
    first_draws = generator.get_state()
    rows = []
    for b in range(len(record.x)):
        generator.set_state(first_draws)  # whatever else is in the batch
        one = slice(b, b + 1)
        tried: list[Optimum] = []
        for start in starts[:MOST_LONG_STARTS]:
            q = start.theta[one, form.n_linear :]
            known = [f.fit.theta[:, form.n_linear :] for f in tried]
            again = any(bool(((q - k).abs() < alike[one]).all()) for k in known)
            behind = float(start.energy[b] - starts[0].energy[b])
            if again or behind > HOPELESS:
                continue
            tried.append(
                fit_sections(
                    prior,
                    record.select(one),
                    start.theta[one],
                    form=form,
                    generator=generator,
                )
            )
        best = min(tried, key=lambda found: float(found.fit.energy))
        places = torch.cat([f.fit.theta[:, form.n_linear :] for f in tried])
        close = (places - best.fit.theta[:, form.n_linear :]).abs() < alike[one]
        agreement = close.all(-1).double().mean(0, keepdim=True)
        rows.append(replace(best, agreement=agreement))
    return Optimum(
        fit=joined([row.fit for row in rows]),
        marginal=torch.cat([row.marginal for row in rows]),
        conditional=torch.cat([row.conditional for row in rows]),
        volume=torch.cat([row.volume for row in rows]),
        agreement=torch.cat([row.agreement for row in rows]),
    )


def _worth_refining(
    form: Form, best: JointFit, second: JointFit, alike: Tensor
) -> Tensor:
    """Measurements of which the second-best start could still win.

    That is where it trails by little and sits at other nonlinear parameters: at the
    same ones the search has already chosen between the two latents.
    """
    close = second.energy - best.energy < HOPELESS
    shift = (second.theta - best.theta)[:, form.n_linear :].abs()
    return (close & (shift > alike).any(-1)).nonzero().flatten()


def _spread_starts(
    problem: JointProblem, best: JointFit, gls: Fit, generator: torch.Generator
) -> tuple[Tensor, JointFit]:
    """Starts spread as the errors of least squares are, where these are large.

    That is where the noise that was found leaves errors smaller by `FAR`: the true
    parameters are then many of its standard errors away from least squares, and the
    latents that fit what least squares leaves may be none of those near the truth.

    Returns:
        Measurements for which one was better than the best fit so far, and these.
    """
    own = problem.information(best)
    # In the scale of the errors of least squares; unknown ones have none.
    root, failed = torch.linalg.cholesky_ex(gls.covariance)
    scaled = root.mT @ own @ root
    usable = (failed == 0) & scaled.isfinite().all(-1).all(-1)
    scaled = torch.where(usable[:, None, None], scaled, torch.zeros_like(scaled))
    most = torch.linalg.eigvalsh(scaled)[:, -1]
    rows = (most > FAR**2).nonzero().flatten()
    # Whatever else is in the batch, the draws are the same, here and afterwards.
    draws = generator.get_state()
    at_once = max(1, SPREAD_AT_ONCE // problem.record.x.shape[1])
    found = [best.select(rows[:0])]
    for part in rows.split(at_once) if len(rows) else ():
        found.append(_best_spread(problem, best, gls.theta, root, part, generator))
        generator.set_state(draws)
    starts = joined(found)
    better = starts.energy < best.energy[rows]
    return rows[better], starts.select(better)


def _best_spread(
    problem: JointProblem,
    searched: JointFit,
    centre: Tensor,
    root: Tensor,
    rows: Tensor,
    generator: torch.Generator,
) -> JointFit:
    """The likeliest of the spread starts of measurements `rows`."""
    linear = problem.form.n_linear
    shape = (N_SPREAD, centre.shape[-1], 1)
    normal = torch.randn(shape, generator=generator, dtype=centre.dtype)
    step = (root[rows] @ normal.to(root.device)[:, None]).squeeze(-1)
    theta = (centre[rows] + step).flatten(0, 1)
    which = rows.repeat(N_SPREAD)
    inside = clamp(problem.form, theta[:, linear:], which)
    theta = torch.cat([theta[:, :linear], inside], -1)
    spread = problem.search(
        theta,
        searched.missing[which],
        which,
        candidates=SPREAD_CANDIDATES,
        rounds=1,
        generator=generator,
        n_starts=N_SPREAD,
    )
    energy = spread.energy.view(N_SPREAD, -1).nan_to_num(nan=torch.inf)
    own = torch.arange(len(rows), device=rows.device)
    return spread.select(energy.argmin(0) * len(rows) + own)


def _try_rivals(
    problem: JointProblem, fit: JointFit, alike: Tensor, generator: torch.Generator
) -> JointFit:
    """Follow weak sinusoids that are likelier elsewhere in the noise that was found."""
    rows, theta = rivals(problem, fit, alike)
    if not len(rows):
        return fit
    # Whatever else is in the batch, the draws that follow are the same.
    draws = generator.get_state()
    start = problem.search(
        theta,
        fit.missing[rows],
        rows,
        candidates=problem.prior.n_candidates,
        rounds=1,
        generator=generator,
        z=fit.z[rows],
        n_starts=1,
    )
    generator.set_state(draws)
    return _lower(fit, problem.minimise(start, rows), rows)


def _lower(fit: JointFit, other: JointFit, rows: Tensor) -> JointFit:
    """The fit with those of `rows` replaced that another one has at lower energy."""
    won = other.energy < fit.energy[rows]
    merged = {}
    for name in vars(fit):
        value = getattr(fit, name).clone()
        value[rows[won]] = getattr(other, name)[won]
        merged[name] = value
    return JointFit(**merged)


def _interpolate(record: Record) -> Tensor:
    """A first guess of the missing samples: the mean of the present ones."""
    if bool(record.present.all()):
        return torch.zeros_like(record.x)
    count = record.present.flatten(1).sum(-1).clamp_min(1)
    mean = record.x.flatten(1).sum(-1) / count
    return torch.where(record.present, 0.0, mean[:, None, None])
