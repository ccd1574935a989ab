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

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sepprior.inference.gaps import Following, Gaps
from sepprior.inference.least_squares import inverse_information
from sepprior.inference.record import Record
from sepprior.priors import ScorePrior
from sepprior.signals.form import Form, clamp

STEPS = 4
"""Fisher steps per noise level."""
DAMPING = 0.8
"""Share of a step that is taken."""
LONGEST_STEP = 1.0
"""In standard errors."""
SETTLED = 0.1
"""A fit has converged when its last step is shorter, in standard errors."""
DRAW_SEED = 57
"""Key of the noise at which scores are evaluated, the same for all problems."""


@dataclass(frozen=True)
class ScoreFit:
    """A batch of fits.

    Attributes:
        theta: shape (Q, p).
        missing: shape (Q, G), values of the missing samples.
        covariance: shape (Q, p, p), of theta with the missing samples free.
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
        self.expects = bool(form.prior_precision.any())

    def residual(self, theta: Tensor, missing: Tensor, which: Tensor) -> Tensor:
        """Whitened noise hypotheses, (Q, W, N) float64."""
        noise = self.record.x[which] - self.form.evaluate(self.record.t, theta)
        if self.gaps.count:
            # A missing sample is an unknown of its own; the signal is not part of it.
            noise = noise * self.record.present[which] + self.gaps.fill(missing, which)
        return self.prior.features(noise)

    def jacobian(self, theta: Tensor, which: Tensor) -> Tensor:
        """Whitened derivatives by theta, (Q, p, W, N)."""
        columns = -self.form.jacobian_columns(self.record.t, theta)
        if self.gaps.count:
            columns = columns * self.record.present[which].unsqueeze(1)
        return self.prior.features(columns)

    def by_sample(self, white: Tensor) -> Tensor:
        """Derivatives by samples (..., N) from those by whitened samples."""
        return white @ self._whitening.mT

    @cached_property
    def _whitening(self) -> Tensor:
        """Whitened unit impulses, (N, N)."""
        eye = torch.eye(self.prior.window, dtype=torch.float64)
        return self.prior.features(eye.to(self.record.x.device))

    def sample_information(self, index: int) -> Tensor:
        """``E[score score^T]`` at a level, of scores by samples, (N, N)."""
        matrix = self.prior.information_matrix(index)
        return self.by_sample(self._whitening @ matrix)

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
        known = self.prior.information_matrix(index)
        score = self.score(residual, index, self.draws(index))
        values, gap_volume = None, 0.0
        if self.gaps.count:
            following = Following(self.gaps, which, self.sample_information(index))
            slopes = torch.cat([columns @ known, score.unsqueeze(1)], 1)
            values = following.values(self.by_sample(slopes))
            # What theta does with the missing samples at their most probable values.
            columns = columns - self.prior.features(values[:, :p])
            gap_volume = following.half_log_det()
        flat = columns.flatten(2)
        information, scatter = (
            (columns @ matrix).flatten(2) @ flat.mT
            for matrix in (known, self.prior.scatter_matrix(index))
        )
        gradient = (flat @ score.flatten(1).unsqueeze(-1)).squeeze(-1)
        if first is not None:
            held = torch.zeros_like(gradient)
            held[:, first:] = 1.0
            information = information + torch.diag_embed(held)
            scatter = scatter + torch.diag_embed(held)
        inverse = inverse_information(information)
        step = (inverse @ gradient.unsqueeze(-1)).squeeze(-1)
        # What a step leaves uncertain: the sandwich, since the score of clean noise
        # varies less than that of smoothed noise (Huber 1967).
        covariance = inverse @ scatter @ inverse
        if self.expects:
            free = torch.arange(p, device=score.device) < (
                p if first is None else first
            )
            step, covariance = _with_expected(
                step,
                covariance,
                form.prior_precision.to(score) * free,
                form.prior_mean.to(score) - fit.theta,
            )
        length = torch.linalg.solve(inverse, step.unsqueeze(-1)).squeeze(-1)
        length = (length * step).sum(-1).clamp_min(0.0).sqrt()
        scale = DAMPING * (LONGEST_STEP / length.clamp_min(LONGEST_STEP))
        of_theta = step * scale.unsqueeze(-1)
        n, reach = form.n_linear, form.reach.to(score)
        move = torch.minimum(torch.maximum(of_theta[:, n:], -reach), reach)
        nonlinear = clamp(form, fit.theta[:, n:] + move, which)
        theta = torch.cat([fit.theta[:, :n] + of_theta[:, :n], nonlinear], 1)
        volume = 0.5 * torch.linalg.slogdet(information).logabsdet + gap_volume
        missing = fit.missing
        if values is not None:
            moved = values[:, p] - torch.einsum("qi,qiwn->qwn", step, values[:, :p])
            missing = missing + DAMPING * self.gaps.gather(moved, which)
        return ScoreFit(theta, missing, covariance, volume, length)

    def energy(self, fit: ScoreFit, which: Tensor) -> Tensor:
        """``-log p`` of the noise hypotheses without constants, nats, (Q,)."""
        residual = self.residual(fit.theta, fit.missing, which)
        flat = residual.flatten(0, 1)
        energy = self.prior.gaussian_energy(flat) - self.prior.gain(flat)
        return energy.view(residual.shape[:2]).sum(-1)


def _with_expected(
    step: Tensor, covariance: Tensor, precision: Tensor, distance: Tensor
) -> tuple[Tensor, Tensor]:
    """A step and its covariance, with a Gaussian prior on the parameters.

    Args:
        step: to where the data alone would go, (Q, p).
        covariance: of that, (Q, p, p).
        precision: shape (Q, p) or (p,).
        distance: from the present values to the prior's mean, (Q, p).
    """
    data = inverse_information(covariance)
    joint = inverse_information(data + torch.diag_embed(precision))
    pull = (precision * distance).unsqueeze(-1) + data @ step.unsqueeze(-1)
    return (joint @ pull).squeeze(-1), joint
