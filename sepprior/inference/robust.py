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
from sepprior.inference.periodogram import precision_times
from sepprior.inference.record import MaskedWhitener, Record
from sepprior.inference.starts import gls_starts
from sepprior.signals.form import Form, clamp, prior_energy

STEPS = 20
CAUCHY_SCALE = 2.385
"""Scale, in robust standard deviations, of 95 % efficiency in Gaussian noise."""
MAD_TO_SD = 1.4826
NEGLIGIBLE = 1e-10
"""Nats: a step that gains less is the last; steps shorten by a constant factor."""
GROSS = 8.0
"""Robust standard deviations beyond which a sample is no noise."""
MOST_OUTLIERS = 16
"""Gross outliers of one window that are looked for."""
CLEARLY = 0.1
"""Nats by which a fit from elsewhere has to be better."""
EACH_OUTLIER = 50.0
"""Nats that each sample has to gain to be left free."""
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


def robust_fit(
    form: Form,
    record: Record,
    whitener: MaskedWhitener,
    start: Fit,
    *,
    own_start: bool = True,
) -> Fit:
    """Cauchy regression on whitened residuals, by re-weighted least squares.

    Measurements with gross outliers have a second start, from least squares with these
    samples free; the lower Cauchy loss is kept. Where whitening has smeared an outlier
    over too much of the measurement the fit with the free samples is the answer.

    Args:
        form: the signal.
        record: B measurements.
        whitener: of the stationary noise.
        start: generalised least squares.
        own_start: search the measurements without their gross outliers too.
    """
    fit = _descend(_Regression(form, record, whitener, start.residual.clone()), start)
    if not own_start:
        return fit
    cleaned, outliers = without_outliers(record, whitener)
    rows = outliers.nonzero().flatten()
    if not len(rows):
        return fit
    given, part = record.select(rows), cleaned.select(rows)
    of_part = whitener.select(rows)
    (least, *_) = gls_starts(form, part, of_part, n_starts=1)
    regression = _Regression(form, part, of_part, least.residual.clone())
    freed = _descend(regression, least)
    change = gls_features(of_part)(
        (given.x - part.x).unsqueeze(1), torch.arange(len(rows), device=rows.device)
    )[:, 0]
    again = _Regression(form, given, of_part, freed.residual + change)
    for other, cost in (
        (_descend(again, freed), CLEARLY),
        (freed, EACH_OUTLIER * outliers[rows]),
    ):
        won = _lower_loss(form, fit, other, rows) > cost
        for name, value in vars(fit).items():
            value[rows[won]] = getattr(other, name)[won]
    return fit


def _descend(regression: _Regression, start: Fit) -> Fit:
    """The fit from the regression's residual on."""
    form = regression.form
    everyone = torch.arange(len(start.theta), device=start.theta.device)
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


def _lower_loss(form: Form, fit: Fit, other: Fit, rows: Tensor) -> Tensor:
    """By how much another fit of `rows` has the lower Cauchy loss, nats, (Q,).

    Both are judged on the smaller of their scales.
    """
    residuals = fit.residual[rows], other.residual
    middles = [r.abs().nanmedian(-1, keepdim=True).values for r in residuals]
    sd = MAD_TO_SD * torch.minimum(*middles).clamp_min(1e-12)
    loss = [
        0.5 * CAUCHY_SCALE**2 * (r / (CAUCHY_SCALE * sd)).square().log1p().sum(-1)
        for r in residuals
    ]
    prior = prior_energy(form, fit.theta[rows]) - prior_energy(form, other.theta)
    return loss[0] - loss[1] + prior


def without_outliers(record: Record, whitener: MaskedWhitener) -> tuple[Record, Tensor]:
    """Measurements whose gross outliers are what the noise around them predicts.

    In noise of precision P a lone sample that is off by a leaves ``P x`` largest
    there: the largest one of a window is set free (orthogonal matching pursuit), until
    none is beyond `GROSS`.

    Returns:
        The measurements (B, W, N), and how many samples of each were replaced, (B,).
    """
    everyone = torch.arange(len(record.x), device=record.x.device)
    weighted = precision_times(whitener, record.x.unsqueeze(1), everyone)[:, 0]
    free = torch.zeros_like(record.present)
    x = record.x
    rows = everyone
    for _ in range(MOST_OUTLIERS):
        size = weighted.view(len(rows), *x.shape[1:]).abs()
        some = size.masked_fill(~record.present[rows], math.nan).flatten(1)
        step = max(1, some.shape[1] // MEDIAN_SAMPLES)
        middle = some[:, ::step].nanmedian(-1).values
        largest, place = size.max(-1)
        beyond = largest > GROSS * MAD_TO_SD * middle[:, None]
        if not bool(beyond.any()):
            break
        x = x.clone() if x is record.x else x
        for q, w in beyond.nonzero().tolist():
            row = int(rows[q])
            free[row, w, place[q, w]] = True
            own = rows[q : q + 1]
            _set_free(x[row, w], free[row, w], whitener.select(own).windows(w, w + 1))
        going = beyond.any(-1)
        rows = rows[going]
        part = whitener.select(rows)
        columns = x[rows].unsqueeze(1)
        here = torch.arange(len(rows), device=rows.device)
        weighted = precision_times(part, columns, here)[:, 0]
    return record.with_values(x), free.flatten(1).sum(-1)


def _set_free(x: Tensor, free: Tensor, whitener: MaskedWhitener) -> None:
    """Gives some samples of a window (N,) their mean under the noise, in place."""
    eye = torch.eye(len(x), dtype=x.dtype, device=x.device)[free]
    columns = torch.cat([eye, x[None]])[None, :, None]
    white = whitener.forward(columns, torch.zeros(1, dtype=torch.long))[0, :, 0]
    impulses, target = white[:-1], white[-1]
    shift = torch.linalg.solve(impulses @ impulses.mT, impulses @ target)
    x[free] -= shift
