"""Annealed Fisher scoring: the signal's parameters from the score of the noise.

With whitened residual ``r = W (x - s(theta))`` and whitened Jacobian J the gradient of
the log-likelihood is ``-J^T score(r)``, and the Fisher information of the parameters is
``J^T K J`` with ``K = E[score score^T]`` known from training. Steps
``(J^T K J)^-1 (-J^T score)`` are taken from the highest noise level, where the
likelihood is smooth, to the lowest (Fisher scoring: Rao 1948; annealing: Song and
Ermon 2019). Off the support of the noise the score exceeds by far what K predicts:
every step is clipped to unit length in the metric of the information.

Q problems (a start of a measurement each), W windows, N samples, p parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sepprior.inference.gaps import Gaps
from sepprior.inference.least_squares import Fit, inverse_information
from sepprior.inference.periodogram import Periodogram
from sepprior.inference.record import MaskedWhitener, Record
from sepprior.inference.starts import HOPELESS, alike_within, gls_starts
from sepprior.priors import ScorePrior
from sepprior.signals.form import Form, clamp
from sepprior.signals.sinusoids import Sinusoids

STEPS = 4
"""Fisher steps per noise level."""
DAMPING = 0.8
"""Share of a step that is taken."""
LONGEST_STEP = 1.0
"""In standard errors."""
SETTLED = 0.1
"""A fit has converged when its last step is shorter, in standard errors."""
SCOUTED = 1
"""Noise levels at which every start is followed."""
CLEANING_LEVEL = 2
"""Index of the noise level at which the data are cleaned for the periodogram."""
CLEANED_PEAKS = 2
"""Peaks of the cleaned data's periodogram that are followed."""
FAR_BELOW = 60.0
"""Nats below the periodogram's maximum at which a start is not followed."""
DRAW_SEED = 57
"""Key of the noise at which scores are evaluated, the same for all problems."""


@dataclass(frozen=True)
class ScoreFit:
    """A batch of fits.

    Attributes:
        theta: shape (Q, p).
        missing: shape (Q, G), values of the missing samples.
        covariance: shape (Q, p, p), inverse information with the missing samples free.
        volume: shape (Q,), half the log-determinant of the whole information.
        step: shape (Q,), length of the last step in standard errors.
    """

    theta: Tensor
    missing: Tensor
    covariance: Tensor
    volume: Tensor
    step: Tensor

    def select(self, which: Tensor) -> ScoreFit:
        """A sub-batch."""
        return ScoreFit(*(getattr(self, name)[which] for name in vars(self)))

    def replaced(self, rows: Tensor, other: ScoreFit) -> ScoreFit:
        """A copy whose `rows` are those of `other`."""
        parts = {}
        for name, value in vars(self).items():
            parts[name] = value.index_copy(0, rows, getattr(other, name))
        return ScoreFit(**parts)


class ScoreProblem:
    """Fits of measurements under a score prior.

    Args:
        prior: the prior.
        record: B measurements.
        form: the signal.
    """

    def __init__(self, prior: ScorePrior, record: Record, *, form: Form) -> None:
        self.prior, self.record, self.form = prior, record, form
        self.gaps = Gaps(record.present)

    def residual(self, theta: Tensor, missing: Tensor, which: Tensor) -> Tensor:
        """Whitened noise hypotheses, (Q, W, N) float64."""
        noise = self.record.x[which] - self.form.evaluate(self.record.t, theta)
        if self.gaps.count:
            # A missing sample is an unknown of its own; the signal is not part of it.
            noise = noise * self.record.present[which] + self.gaps.fill(missing, which)
        return self.prior.features(noise)

    def jacobian(self, theta: Tensor, which: Tensor) -> Tensor:
        """Whitened derivatives by theta and the missing samples, (Q, p + G, W, N)."""
        columns = -self.form.jacobian_columns(self.record.t, theta)
        if self.gaps.count:
            columns = columns * self.record.present[which].unsqueeze(1)
            columns = torch.cat([columns, self.gaps.impulses(which)], 1)
        return self.prior.features(columns)

    def start(self, theta: Tensor) -> ScoreFit:
        """Fits at given parameters, missing samples at the level of the noise."""
        q, p = theta.shape
        nothing = theta.new_zeros(q)
        return ScoreFit(
            theta,
            theta.new_zeros(q, self.gaps.count),
            theta.new_zeros(q, p, p),
            nothing,
            nothing,
        )

    def descend(
        self, fit: ScoreFit, which: Tensor, levels: range, *, first: int | None = None
    ) -> ScoreFit:
        """Fisher steps at the prior's noise levels of these indices, in turn.

        Args:
            fit: Q problems.
            which: measurement of each, (Q,).
            levels: indices.
            first: only so many parameters move, and the missing samples.
        """
        for index in levels:
            for _ in range(STEPS):
                fit = self._step(fit, which, index, first)
        return fit

    def draws(self, index: int) -> Tensor:
        """Noise (1, W, N) of one level, to be used with both signs."""
        rng = torch.Generator().manual_seed(DRAW_SEED + index)
        noise = torch.randn((1, *self.record.x.shape[1:]), generator=rng)
        return noise.to(self.record.x.device)

    def score(self, residual: Tensor, index: int, draws: Tensor) -> Tensor:
        """Mean score over antithetic draws, (Q, W, N) float64."""
        sigma = float(self.prior.levels[index])
        total = torch.zeros_like(residual)
        for noise in (draws, -draws):
            noisy = (residual + sigma * noise).flatten(0, 1)
            total += self.prior.score(noisy, sigma).view_as(residual)
        return 0.5 * total

    def _step(
        self, fit: ScoreFit, which: Tensor, index: int, first: int | None = None
    ) -> ScoreFit:
        form, p = self.form, fit.theta.shape[-1]
        residual = self.residual(fit.theta, fit.missing, which)
        columns = self.jacobian(fit.theta, which)
        if first is not None:
            columns[:, first:p] = 0.0
        weighted = columns @ self.prior.information_matrix(index)
        information = weighted.flatten(2) @ columns.flatten(2).mT
        score = self.score(residual, index, self.draws(index)).flatten(1)
        gradient = (columns.flatten(2) @ score.unsqueeze(-1)).squeeze(-1)
        mean, precision = form.prior_mean.to(score), form.prior_precision.to(score)
        gradient[:, :p] += precision * (mean - fit.theta)
        diagonal = torch.zeros_like(gradient)
        diagonal[:, :p] = precision
        if first is not None:
            gradient[:, first:p], diagonal[:, first:p] = 0.0, 1.0
        if self.gaps.count:
            diagonal[:, p:] = 1.0 - self.gaps.used[which].double()
        information = information + torch.diag_embed(diagonal)
        covariance = inverse_information(information)
        step = (covariance @ gradient.unsqueeze(-1)).squeeze(-1)
        own, of_theta = covariance[:, :p, :p], step[:, :p]
        length = torch.linalg.solve(own, of_theta.unsqueeze(-1)).squeeze(-1)
        length = (length * of_theta).sum(-1).clamp_min(0.0).sqrt()
        scale = DAMPING * (LONGEST_STEP / length.clamp_min(LONGEST_STEP))
        of_theta = of_theta * scale.unsqueeze(-1)
        n, reach = form.n_linear, form.reach.to(score)
        move = torch.minimum(torch.maximum(of_theta[:, n:], -reach), reach)
        nonlinear = clamp(form, fit.theta[:, n:] + move, which)
        theta = torch.cat([fit.theta[:, :n] + of_theta[:, :n], nonlinear], 1)
        volume = 0.5 * torch.linalg.slogdet(information).logabsdet
        missing = fit.missing + DAMPING * step[:, p:]
        return ScoreFit(theta, missing, own, volume, length)

    def energy(self, fit: ScoreFit, which: Tensor) -> Tensor:
        """``-log p`` of the noise hypotheses without constants, nats, (Q,)."""
        residual = self.residual(fit.theta, fit.missing, which)
        flat = residual.flatten(0, 1)
        energy = self.prior.gaussian_energy(flat) - self.prior.gain(flat)
        return energy.view(residual.shape[:2]).sum(-1)


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

    Starts at different nonlinear parameters see the highest noise level; of those that
    stay apart the two most probable go on, and the likelihood decides at the end.

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
        starts = [starts[0], *cleaned, *starts[1:]]
    theta = torch.stack([start.theta for start in starts])
    n_starts, n, _ = theta.shape
    alive = _first_of_kind(theta[..., n_linear:], alike)
    alive &= _hopeful(problem.form, theta, spectrum)
    rows = alive.flatten().nonzero().flatten()
    fits = problem.descend(problem.start(theta.flatten(0, 1)[rows]), rows % n, scouting)
    # From here on problems are the rows that are alive; `slot` finds them.
    place = torch.full_like(theta[..., n_linear:], torch.nan).flatten(0, 1)
    place[rows] = fits.theta[:, n_linear:]
    place = place.view(n_starts, n, -1)
    slot = torch.full((n_starts * n,), -1, device=rows.device)
    slot[rows] = torch.arange(len(rows), device=rows.device)
    alive &= _first_of_kind(place, alike)
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
    same = ((place - best.theta[:, n_linear:]).abs() < alike).all(-1)
    tried = place.isfinite().all(-1)
    agree = (same & tried).sum(0) / tried.sum(0)
    return Scored(best, best_energy, agree.double())


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


def _first_of_kind(nonlinear: Tensor, alike: Tensor) -> Tensor:
    """Which starts (S, B) differ from every earlier one.

    Args:
        nonlinear: shape (S, B, P - L); NaN for a start that is not there.
        alike: differences that count as none, (B, P - L) or (P - L,).
    """
    apart = (nonlinear.unsqueeze(0) - nonlinear.unsqueeze(1)).abs()
    count = len(nonlinear)
    earlier = torch.ones(count, count, dtype=torch.bool, device=nonlinear.device)
    close = (apart < alike).all(-1)
    return ~(close & earlier.tril(-1).unsqueeze(-1)).any(1)


def _hopeful(form: Form, theta: Tensor, spectrum: Periodogram | None) -> Tensor:
    """Which starts (S, B) of a sinusoid are not far below the periodogram's maximum.

    A strong signal leaves no doubt about its frequency; the noise's structure adds to
    the likelihood there, so that what trails by far in the periodogram cannot win.
    """
    hopeful = torch.ones(theta.shape[:2], dtype=torch.bool, device=theta.device)
    if spectrum is None or not isinstance(form, Sinusoids) or form.count > 1:
        return hopeful
    frequency = theta[..., form.n_linear]
    index = torch.searchsorted(spectrum.frequency, frequency.contiguous())
    gains = []
    for shift in (-1, 0):
        at = (index + shift).clamp(0, len(spectrum.frequency) - 1)
        gains.append(spectrum.gain.gather(1, at.mT).mT)
    gain = torch.maximum(*gains)
    hopeful = gain > spectrum.gain.amax(-1) - FAR_BELOW
    hopeful[0] = True
    return hopeful


def cleaned_starts(
    problem: ScoreProblem, whitener: MaskedWhitener, start: Fit
) -> list[Fit]:
    """Least-squares fits of the data with the noise's structure taken out.

    For Gaussian noise of covariance S the score is ``-S^-1 w``. Applying -S to the
    learned score therefore gives back Gaussian noise as it is, and other noise as
    Gaussian noise of equal information: what stands out (a burst, a jump, a pulse
    train) is gone, and a weak signal's peak in the periodogram is not hidden by it.

    Args:
        problem: B measurements.
        whitener: of the stationary part of the noise.
        start: fits whose constant part is taken as the level of the data.
    """
    prior, record, form = problem.prior, problem.record, problem.form
    index = min(CLEANING_LEVEL, len(prior.levels) - 1)
    constant = torch.zeros_like(record.x[:, :1, :1])
    if form.has_constant and form.n_linear:
        constant = start.theta[:, :1, None]
    noise = (record.x - constant) * record.present
    score = problem.score(prior.features(noise), index, problem.draws(index))
    cleaned = prior.gaussianised(score.flatten(0, 1), index).view_as(record.x)
    twin = record.with_values((cleaned + constant) * record.present)
    return gls_starts(form, twin, whitener, n_starts=CLEANED_PEAKS)
