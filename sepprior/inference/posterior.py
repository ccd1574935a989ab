"""Draws from the posterior of the signal's parameters.

With a latent prior, from that of theta, the latents and the missing samples together,
by Hamiltonian Monte Carlo; with a score prior, from that of theta and the missing
samples, by Langevin dynamics. Either is run in the coordinates of the Laplace
approximation, where it is a standard normal. The prior of theta is flat in the
coordinates of the fit (the quadratures of a sinusoid and its frequency), within the
bounds, and Gaussian where the form says so.

B measurements, C chains, S draws, W windows, P parameters, D unknowns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sepprior.errors import SeppriorError
from sepprior.inference.chains import CHAINS, dispersed, hamiltonian, langevin
from sepprior.inference.hessian import GapTerms, Hessian, spread
from sepprior.inference.joint import JointFit, JointProblem
from sepprior.inference.record import Record
from sepprior.inference.score import ScoreFit, ScoreProblem
from sepprior.priors import GaussianPrior, LatentPrior, ScorePrior
from sepprior.signals.form import Form, clamp

AT_ONCE = 512
"""Windows, in all chains, that are evaluated together."""
MOST_NUMBERS = 2**26
"""Numbers in the matrices of one pass; memory is bounded by it."""
MOST_UNKNOWNS = 4096
SHARP = 0.06
"""Noise level at which a posterior is drawn, in units of the whitened noise.

The levels at which estimates are best smooth so much that a posterior is too wide, by
1.5 to 8 times; at half this level errors of the network show in slow parameters.
"""
ANNEALED = 0.6
"""Share of the warm-up in which Langevin dynamics goes down to that level."""


def sample_latent(
    prior: LatentPrior,
    record: Record,
    form: Form,
    fit: JointFit,
    *,
    n_draws: int,
    seed: int,
) -> Tensor:
    """Posterior draws of theta under a latent prior, (B, C, S, P).

    Args:
        prior: the noise prior.
        record: the measurements.
        form: the signal, with bounds common to all measurements.
        fit: the joint optimum of each.
        n_draws: S.
        seed: of the chains.

    Raises:
        SeppriorError: too many unknowns.
    """
    n_unknown = fit.theta.shape[1] + fit.z[0].numel() + _most_gaps(record)
    rows = []
    for part in _parts(record, n_unknown):
        problem = JointProblem(prior, record.select(part), form=form)
        rows.append(_latent_part(problem, fit.select(part), n_draws, seed))
    return torch.cat(rows)


def _latent_part(
    problem: JointProblem, fit: JointFit, n_draws: int, seed: int
) -> Tensor:
    form, gaps = problem.form, problem.gaps
    n, p = fit.theta.shape
    which = torch.arange(n, device=fit.theta.device)
    root = spread(problem.hessian(fit, which).dense())
    values = gaps.gather(fit.missing, which)
    which = which.repeat_interleave(CHAINS)
    mode = torch.cat([fit.theta, values, fit.z.double().flatten(1)], 1)

    def natural(u: Tensor) -> Tensor:
        return mode[:, None] + u @ root.mT

    def potential(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            x = natural(u).flatten(0, 1)
            theta, missing = x[:, :p], x[:, p : p + gaps.count]
            z = x[:, p + gaps.count :].to(fit.z.dtype)
            filled = gaps.fill(missing, which)
            z = z.view(len(x), *fit.z.shape[1:])
            energy = problem.energy(theta, filled, z, which)
            (gradient,) = torch.autograd.grad(energy.sum(), u)
        outside = ~_within(form, theta) | ~energy.isfinite()
        energy = energy.detach().masked_fill(outside, torch.inf)
        return energy.view(n, CHAINS), gradient.nan_to_num(0.0, 0.0, 0.0)

    rng = torch.Generator().manual_seed(seed)
    return hamiltonian(
        potential,
        _starts(natural, form, mode, p, rng),
        n_draws=n_draws,
        kept=lambda u: natural(u)[..., :p],
        rng=rng,
    )


def least_squares_optimum(
    prior: GaussianPrior, record: Record, form: Form, theta: Tensor
) -> JointFit:
    """The optimum of stationary Gaussian noise, from the fit by least squares."""
    problem = JointProblem(prior, record, form=form)
    which = torch.arange(len(theta), device=theta.device)
    z = theta.new_zeros(len(theta), record.x.shape[1], 0)
    zero = torch.zeros_like(record.x)
    theta, missing, energy = problem.refit(
        theta, zero, z, problem.decode(z), which, steps=0
    )
    return JointFit(theta, z, missing, energy, torch.ones_like(energy).bool())


def sample_score(
    prior: ScorePrior,
    record: Record,
    form: Form,
    fit: ScoreFit,
    *,
    n_draws: int,
    seed: int,
) -> Tensor:
    """Posterior draws of theta under a score prior, (B, C, S, P).

    The likelihood is that of the noise smoothed to `sharp_level` sigma, averaged over
    the noise that smooths it: ``E log p_sigma(r + sigma e)``, of which the learned
    score is the gradient. Nothing is corrected for the smoothing: it widens the error
    bars, in Gaussian noise of whitened covariance C to those of ``C + sigma^2``. The
    warm-up anneals from the prior's last level down to that one, and ``J^T K J`` at the
    former sets the scale of the first steps.

    Args:
        prior: the noise prior.
        record: the measurements.
        form: the signal, with bounds common to all measurements.
        fit: the end of the Fisher scoring of each.
        n_draws: S.
        seed: of the chains.

    Raises:
        SeppriorError: too many unknowns.
    """
    n_unknown = fit.theta.shape[1] + _most_gaps(record)
    rows = []
    for part in _parts(record, n_unknown):
        problem = ScoreProblem(prior, record.select(part), form=form)
        own = fit.select(part)
        # The batch may have had more gaps than this part of it.
        own = ScoreFit(
            own.theta,
            own.missing[:, : problem.gaps.count],
            own.covariance,
            own.volume,
            own.step,
        )
        rows.append(_score_part(problem, own, n_draws, seed))
    return torch.cat(rows)


def sharp_level(prior: ScorePrior) -> float:
    """Noise level at which a posterior is drawn."""
    return max(min(SHARP, float(prior.levels[-1])), prior.lowest)


def _score_part(
    problem: ScoreProblem, fit: ScoreFit, n_draws: int, seed: int
) -> Tensor:
    form = problem.form
    n, p = fit.theta.shape
    last, sharp = len(problem.prior.levels) - 1, sharp_level(problem.prior)
    above = float(problem.prior.levels[last]) / sharp
    draws = problem.draws(last)
    which = torch.arange(n, device=fit.theta.device)
    root = spread(_information(problem, fit.theta, last))
    which = which.repeat_interleave(CHAINS)
    mode = torch.cat([fit.theta, fit.missing], 1)

    def natural(u: Tensor) -> Tensor:
        return mode[:, None] + u @ root.mT

    def force(u: Tensor, done: float) -> Tensor:
        x = natural(u).flatten(0, 1)
        sigma = sharp * above ** max(0.0, 1.0 - done / ANNEALED)
        slope = _slope(problem, x[:, :p], x[:, p:], which, sigma, draws)
        return -(slope.view_as(u) @ root)

    rng = torch.Generator().manual_seed(seed)
    return langevin(
        force,
        _starts(natural, form, mode, p, rng),
        n_draws=n_draws,
        kept=lambda u: natural(u)[..., :p],
        inside=lambda u: _within(form, natural(u)[..., :p]),
        rng=rng,
    )


def _slope(
    problem: ScoreProblem,
    theta: Tensor,
    missing: Tensor,
    which: Tensor,
    sigma: float,
    draws: Tensor,
) -> Tensor:
    """Gradient of the smoothed ``log p`` by theta and the missing samples, (Q, D)."""
    residual = problem.residual(theta, missing, which)
    score = torch.zeros_like(residual)
    for noise in (draws, -draws):
        noisy = (residual + sigma * noise).flatten(0, 1)
        score += 0.5 * problem.prior.score(noisy, sigma).view_as(residual)
    columns = problem.jacobian(theta, which).flatten(2)
    slope = (columns @ score.flatten(1).unsqueeze(-1)).squeeze(-1)
    distance = problem.form.prior_mean.to(theta) - theta
    slope = slope + problem.form.prior_precision.to(theta) * distance
    if not problem.gaps.count:
        return slope
    of_missing = problem.gaps.gather(problem.by_sample(score), which)
    return torch.cat([slope, of_missing], 1)


def _information(problem: ScoreProblem, theta: Tensor, index: int) -> Tensor:
    """``J^T K J`` at a level, with the precision of the prior, (B, D, D)."""
    which = torch.arange(len(theta), device=theta.device)
    columns = problem.jacobian(theta, which)
    n, p, n_windows, _ = columns.shape
    weighted = columns @ problem.prior.information_matrix(index)
    corner = weighted.flatten(2) @ columns.flatten(2).mT
    gaps = []
    if problem.gaps.count:
        information = problem.sample_information(index)
        slopes = problem.by_sample(weighted)
        for block in problem.gaps.blocks(which, width=columns.shape[-1]):
            place = block.position
            own = information[place[:, :, None], place[:, None]]
            at = block.problem[:, None], slice(None), block.window[:, None], place
            gaps.append(GapTerms(block, own, slopes[at], own[..., :0]))
    return Hessian(
        corner + torch.diag(problem.form.prior_precision.to(corner)),
        corner.new_zeros(n, n_windows, p, 0),
        corner.new_zeros(n, n_windows, 0, 0),
        gaps,
        problem.gaps.count,
    ).dense()


def _most_gaps(record: Record) -> int:
    return int((~record.present).flatten(1).sum(-1).max())


def _parts(record: Record, n_unknown: int) -> tuple[Tensor, ...]:
    """Numbers of the measurements that are sampled together."""
    if n_unknown > MOST_UNKNOWNS:
        raise SeppriorError(
            f"sampling would have {n_unknown} unknowns per measurement (parameters, "
            f"latents and missing samples) and can have {MOST_UNKNOWNS}; use "
            "method='laplace' or 'bootstrap', or cut the measurement"
        )
    n, n_windows, window = record.x.shape
    at_once = min(
        AT_ONCE // (CHAINS * n_windows),
        MOST_NUMBERS // (n_unknown * max(n_unknown, n_windows * window)),
    )
    everyone = torch.arange(n, device=record.x.device)
    return everyone.split(max(1, at_once))


def _starts(
    natural: Callable[[Tensor], Tensor],
    form: Form,
    mode: Tensor,
    p: int,
    rng: torch.Generator,
) -> Tensor:
    """Points (B, C, D) about the optimum; those out of bounds are put on it."""
    u = dispersed((len(mode), CHAINS, mode.shape[1]), like=mode, rng=rng)
    return u * _within(form, natural(u)[..., :p])[..., None]


def _within(form: Form, theta: Tensor) -> Tensor:
    """Whether theta (..., P) respects the form's bounds, shape (...)."""
    q = theta[..., form.n_linear :]
    return (clamp(form, q) == q).all(-1)
