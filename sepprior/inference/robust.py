"""Cauchy regression on whitened residuals: the fit that outliers do not move.

Q problems, P parameters, L of them linear, C whitened samples. Of long records no array
but the residual is kept: what else is needed is worked out again, some windows at a
time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sepprior.inference.least_squares import (
    Fit,
    Part,
    bounded_step,
    gls_features,
    inverse_information,
    moved,
    parts_of,
    solve_normal,
)
from sepprior.inference.record import MaskedWhitener, Record
from sepprior.signals.form import Form, clamp, prior_energy

STEPS = 20
CAUCHY_SCALE = 2.385
"""Scale, in robust standard deviations, of 95 % efficiency in Gaussian noise."""
MAD_TO_SD = 1.4826
NEGLIGIBLE = 1e-10
"""Nats: a step that gains less is the last; steps shorten by a constant factor."""
MEDIAN_SAMPLES = 2**22
"""Of more residuals every k-th makes the median: its error is then one of 1e-3."""


@dataclass(frozen=True)
class _Point:
    """A batch of thetas and the quadratic model of the weighted squares about each.

    Attributes:
        theta: shape (Q, P), linear parameters solved.
        gram: weighted information, (Q, P, P).
        right: downward gradient, (Q, P).
        energy: shape (Q,).
    """

    theta: Tensor
    gram: Tensor
    right: Tensor
    energy: Tensor


class _Regression:
    """Re-weighted least squares of a batch of measurements.

    Args:
        form: the signal.
        record: B measurements.
        whitener: of the stationary noise.
        residual: of the start, (B, C); written to.
    """

    def __init__(
        self, form: Form, record: Record, whitener: MaskedWhitener, residual: Tensor
    ) -> None:
        self.form, self.residual = form, residual
        self.present = record.present.flatten(1)
        self.parts = parts_of(record, gls_features(whitener), len(record.x))
        everyone = torch.arange(len(record.x), device=record.x.device)
        self._whole = _target(self.parts[0], everyone) if self._in_one else None

    @property
    def _in_one(self) -> bool:
        return len(self.parts) == 1

    def scale(self, rows: Tensor) -> Tensor:
        """Scale c of the Cauchy loss, from the median of the residuals, (Q, 1)."""
        step = max(1, self.residual.shape[1] // MEDIAN_SAMPLES)
        magnitude = self.residual[rows, ::step].abs()
        magnitude.masked_fill_(~self.present[rows, ::step], math.nan)
        middle = magnitude.nanmedian(-1, keepdim=True).values
        return CAUCHY_SCALE * MAD_TO_SD * middle.clamp_min(1e-12)

    def solve_linear(self, rows: Tensor, theta: Tensor, scale: Tensor) -> Tensor:
        """Theta with the linear parameters solved; moves the residuals there."""
        form, n = self.form, self.form.n_linear
        columns = None
        if n:
            gram, right = theta.new_zeros(()), theta.new_zeros(())
            for part in self.parts:
                columns = part.features(
                    form.linear_columns(part.record.t, theta[:, n:]), rows
                )
                weights = cauchy_weights(self.residual[rows, part.at], scale)
                weighted = columns * weights.unsqueeze(1)
                target = self._target(part, rows)
                gram = gram + weighted @ columns.mT
                right = right + (weighted @ target.unsqueeze(-1)).squeeze(-1)
            linear = solve_normal(gram, right)
            theta = torch.cat([linear, theta[:, n:]], -1)
        for part in self.parts:
            if columns is not None and self._in_one:
                signal = (theta[:, :n].unsqueeze(1) @ columns)[:, 0]
            else:
                wave = form.evaluate(part.record.t, theta).unsqueeze(1)
                signal = part.features(wave, rows)[:, 0]
            self.residual[rows, part.at] = self._target(part, rows) - signal
        return theta

    def linearise(self, rows: Tensor, theta: Tensor, scale: Tensor) -> _Point:
        """The quadratic model at theta, weighted by the residuals there."""
        mean = self.form.prior_mean.to(theta)
        precision = self.form.prior_precision.to(theta)
        gram, right = torch.diag(precision), precision * (mean - theta)
        energy = prior_energy(self.form, theta)
        for part in self.parts:
            columns = self.form.jacobian_columns(part.record.t, theta)
            jacobian = part.features(columns, rows)
            residual = self.residual[rows, part.at]
            weights = cauchy_weights(residual, scale)
            weighted = jacobian * weights.unsqueeze(1)
            gram = gram + weighted @ jacobian.mT
            right = right + (weighted @ residual.unsqueeze(-1)).squeeze(-1)
            energy = energy + 0.5 * (residual.square() * weights).sum(-1)
        return _Point(theta, gram, right, energy)

    def covariance(self, rows: Tensor, theta: Tensor) -> Tensor:
        """The sandwich of an M-estimator (Huber 1981, section 7.6), (Q, P, P).

        ``E psi^2 / (E psi')^2 (J^T J)^-1``, with the degrees of freedom in the first
        mean.
        """
        scale, n_present = self.scale(rows), self.present[rows].sum(-1)
        information = theta.new_zeros(())
        psi_square, slope = theta.new_zeros(()), theta.new_zeros(())
        for part in self.parts:
            columns = self.form.jacobian_columns(part.record.t, theta)
            jacobian = part.features(columns, rows)
            information = information + jacobian @ jacobian.mT
            residual = self.residual[rows, part.at]
            u = (residual / scale).square()
            psi_square = psi_square + (residual / (1.0 + u)).square().sum(-1)
            bent = (1.0 - u) / (1.0 + u).square()
            slope = slope + (bent * self.present[rows, part.at]).sum(-1)
        freedom = (n_present - theta.shape[-1]).clamp_min(1)
        mean_slope = (slope / n_present).square().clamp_min(1e-12)
        inflation = (psi_square / freedom) / mean_slope
        information = information / inflation[:, None, None]
        information = information + torch.diag(
            self.form.prior_precision.to(information)
        )
        return inverse_information(information)

    def _target(self, part: Part, rows: Tensor) -> Tensor:
        return _target(part, rows) if self._whole is None else self._whole[rows]


def _target(part: Part, rows: Tensor) -> Tensor:
    """Whitened measurements (Q, C') of some windows."""
    return part.features(part.record.x[rows].unsqueeze(1), rows)[:, 0]


def cauchy_weights(residual: Tensor, scale: Tensor) -> Tensor:
    """``1 / (1 + (r / c)^2)`` of residuals (Q, C) and scales (Q, 1)."""
    return (residual / scale).square_().add_(1.0).reciprocal_()


def robust_fit(form: Form, record: Record, whitener: MaskedWhitener, start: Fit) -> Fit:
    """Cauchy regression on whitened residuals, by re-weighted least squares.

    Args:
        form: the signal.
        record: B measurements.
        whitener: of the stationary noise.
        start: generalised least squares.
    """
    everyone = torch.arange(len(record.x), device=record.x.device)
    regression = _Regression(form, record, whitener, start.residual.clone())
    active, theta = everyone, start.theta
    found, energy = theta.clone(), start.energy.clone()
    scale = regression.scale(everyone)
    for _ in range(STEPS + 1):
        theta = regression.solve_linear(active, theta, scale)
        scale = regression.scale(active)
        now = regression.linearise(active, theta, scale)
        found[active], energy[active] = now.theta, now.energy
        move = bounded_step(form, now.theta, now.gram, now.right, active)
        theta = moved(form, now.theta, move, active)
        going = 0.5 * (move * now.right).sum(-1) >= NEGLIGIBLE
        found[active[~going]] += move[~going]
        active, theta, scale = active[going], theta[going], scale[going]
        if not len(active):
            break
    n = form.n_linear
    q = clamp(form, found[:, n:], everyone)
    theta = torch.cat([found[:, :n], q], -1)
    covariance = regression.covariance(everyone, theta)
    return Fit(theta, covariance, energy, regression.residual)
