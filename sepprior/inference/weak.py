"""Error bars of a sinusoid that is hardly there: its posterior over the frequency.

A parabola at the highest peak of the likelihood does not know that there are others,
nor that a low peak is no parabola: where a signal can just be seen, its intervals hold
the truth too rarely. Given the frequency all else is linear. So frequencies are drawn
from a grid by their marginal likelihood, bias and quadratures from the Gaussian that
they have there (Bretthorst 1988, chapter 3), and the draws weighted to flat priors on
amplitude, frequency, phase and bias. For strong signals it is the same as the parabola.

R measurements, F frequencies, S draws, C whitened samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sepprior.inference.joint import JointFit
from sepprior.inference.least_squares import Fit, gls_features
from sepprior.inference.periodogram import Periodogram
from sepprior.inference.pipeline import Answer
from sepprior.inference.record import MaskedWhitener, Record
from sepprior.priors import LatentPrior
from sepprior.priors.marginal import decode_tangents, latent_information
from sepprior.signals import Sinusoids, wrap_phase
from sepprior.signals.form import Form
from sepprior.signals.sinusoids import polar

WEAK = 20.0
"""Gain over no signal, nats, above which the parabola is as good."""
DRAWS = 1000
NUMBERS = 2**23
"""Numbers in the whitened columns of all frequencies: of more, nothing is done."""
AT_ONCE = 64
"""Measurements whose draws are worked out together."""
LEAST_CYCLES = 0.5
"""Cycles in the record below which a sinusoid is hardly different from a bias."""
ABSORBED = 0.0
"""Share of the signal's variance due to the latents above which these are free."""
CENTRAL = 0.682689
TAIL = 0.025


def weak_widths(
    form: Sinusoids,
    record: Record,
    weak: Tensor,
    fit: Answer | Fit,
    band: Periodogram,
    model: Model,
) -> tuple[Tensor, Tensor, Tensor]:
    """Widths of the intervals of those measurements whose signal is weak.

    Args:
        form: one sinusoid, with bounds common to all measurements.
        record: B measurements.
        weak: which of them are, (B,).
        fit: the answers.
        band: its frequencies are the grid.
        model: linear given the frequency.

    Returns:
        The rows that were worked on (R,), half the width of their 68 % intervals
        (R, 4), and the ends of the 95 % intervals relative to the estimates (R, 4, 2),
        natural parameters.
    """
    frequency = band.within(float(form.low[0]), float(form.high[0])).frequency
    frequency = frequency[_resolved(frequency, record)]
    rows = (weak & _resolved(fit.theta[:, 3], record)).nonzero().flatten()
    windows, n = record.x.shape[1:]
    many = 3 * len(frequency) * windows * n > NUMBERS
    if len(frequency) < 3 or many or not len(rows):
        none = rows[:0]
        return none, fit.theta.new_zeros(0, 4), fit.theta.new_zeros(0, 4, 2)
    model.prepare(rows)
    columns = form.linear_columns(record.t, frequency[:, None])
    estimates = polar(fit.theta, middle=form.geometry.middle)
    parts = []
    for part in rows.split(model.at_once):
        white, target = model.white(columns, part)
        theta = _draws(white.double(), target.double(), frequency, form)
        parts.append(_widths(form, theta, estimates[part]))
    half, ends = (torch.cat(v) for v in zip(*parts, strict=True))
    return rows, half, ends


def _resolved(frequency: Tensor, record: Record) -> Tensor:
    """Frequencies (...) that are far enough from zero and from half the sample rate."""
    edge = LEAST_CYCLES / record.duration
    return (frequency >= edge) & (frequency <= 0.5 * record.sample_rate - edge)


class Model(Protocol):
    """What makes a measurement linear in bias and quadratures, in unit white noise.

    Attributes:
        at_once: measurements that share their columns.
    """

    at_once: int

    def prepare(self, rows: Tensor) -> None:
        """Work out what `white` will need of measurements `rows`, all together."""
        ...

    def white(self, columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Columns (F, 3, W, N) as (F, 3, C), and measurements `rows` as (R, C)."""
        ...


class Stationary:
    """Noise of the recording's spectrum.

    Args:
        record: B measurements.
        whitener: of their noise.
    """

    def __init__(self, record: Record, whitener: MaskedWhitener) -> None:
        self.record, self.features = record, gls_features(whitener)
        # Without gaps the columns are the same for all.
        self.at_once = AT_ONCE if whitener.complete else 1

    def prepare(self, rows: Tensor) -> None:
        """See `Model.prepare`; nothing is needed."""

    def white(self, columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `Model.white`."""
        target = self.features(self.record.x[rows].unsqueeze(1), rows)[:, 0]
        white = self.features(columns.flatten(0, 1)[None], rows[:1])[0]
        return white.unflatten(0, columns.shape[:2]), target


class Conditional:
    """Noise of a prior whose latents are near those of a fit.

    Latents in reach of the fit are integrated out, to first order: of a signal that the
    noise could take along, other frequencies are less unlikely than in the noise that
    was found for this one. With J the derivative of the whitened mean by the latent, H
    the latent's information and e what the fit leaves, whitened signals d away from
    the fit's have ``-log p = d^T (1 - J H^-1 J^T) d / 2 + d^T e``: the gradient of the
    latent's own terms at the optimum is ``J^T e``.

    Args:
        prior: the noise prior.
        record: B measurements.
        fit: of all of them.
        form: the signal.
        absorption: share of the signal's variance that is due to the latents, (B,); up
            to `ABSORBED` they are taken as known, which comes to the same.
    """

    at_once = 1

    def __init__(
        self,
        prior: LatentPrior,
        record: Record,
        fit: JointFit,
        form: Form,
        absorption: Tensor,
    ) -> None:
        self.prior, self.record, self.fit, self.form = prior, record, fit, form
        self.absorption = absorption
        self._columns: Tensor | None = None
        self._near: dict[int, _Near] = {}

    @torch.no_grad()
    def prepare(self, rows: Tensor) -> None:
        """See `Model.prepare`."""
        prior = self.prior
        windows = self.fit.z.shape[1]
        rows = rows[self.absorption[rows] > ABSORBED]
        if not len(rows):
            return
        for part in rows.split(max(1, AT_ONCE // windows)):
            z = self.fit.z[part].flatten(0, 1)
            decoded, d_mean, d_log = decode_tangents(prior, z)
            information = latent_information(
                decoded,
                d_mean,
                d_log,
                prior.latent_curvature(z),
                redundancy=prior.window / decoded.mean.shape[-1],
            )
            parts = decoded.mean, decoded.precision, d_mean, information
            each = zip(*(v.split(windows) for v in parts), strict=True)
            for row, values in zip(part.tolist(), each, strict=True):
                self._near[row] = _Near(*values)

    @torch.no_grad()
    def white(self, columns: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """See `Model.white`; of one measurement."""
        prior, near = self.prior, self._near.get(int(rows))
        if self._columns is None:
            self._columns = prior.features(columns)
        data = prior.features(self.record.x[rows] + self.fit.missing[rows])
        if near is None:
            decoded = prior.decode(self.fit.z[rows])
            root = decoded.precision.sqrt()
            target = (data - decoded.mean) * root
            return (self._columns * root).flatten(-2), target.flatten(1)
        root = near.precision.sqrt()
        found = self.form.evaluate(self.record.t, self.fit.theta[rows])
        signal = (prior.features(found).flatten(0, 1) * root).double()
        left = ((data.flatten(0, 1) - near.mean) * root).double() - signal
        known = _Known(near.slopes * root.unsqueeze(1), near.information)
        target = known.root(signal) + known.root(left, inverse=True)
        white = known.root((self._columns * root).double())
        return white.flatten(-2), target.flatten()[None]


@dataclass(frozen=True)
class _Near:
    """A measurement's noise near the latents of its fit.

    Attributes:
        mean: shape (W, C).
        precision: shape (W, C).
        slopes: of the mean, (W, K, C).
        information: of the latents, (W, K, K).
    """

    mean: Tensor
    precision: Tensor
    slopes: Tensor
    information: Tensor


class _Known:
    """Powers of ``1 - J H^-1 J^T``: what is known with the latents integrated out.

    Args:
        slopes: J transposed, (W, K, C).
        information: H, (W, K, K).
    """

    def __init__(self, slopes: Tensor, information: Tensor) -> None:
        self.basis, triangle = torch.linalg.qr(slopes.double().mT)
        taken = triangle @ torch.linalg.solve(information.double(), triangle.mT)
        share, self.vectors = torch.linalg.eigh(0.5 * (taken + taken.mT))
        self.kept = (1.0 - share).clamp(1e-9, 1.0)

    def root(self, values: Tensor, *, inverse: bool = False) -> Tensor:
        """Its square root, or the inverse of that, times values (..., W, C)."""
        power = self.kept.rsqrt() if inverse else self.kept.sqrt()
        middle = (self.vectors * (power - 1.0).unsqueeze(-2)) @ self.vectors.mT
        inside = values.unsqueeze(-2) @ self.basis
        return values + (inside @ middle @ self.basis.mT).squeeze(-2)


def _draws(white: Tensor, target: Tensor, frequency: Tensor, form: Sinusoids) -> Tensor:
    """Draws of theta (R, S, 4) for a flat prior on bias, quadratures and frequency.

    Args:
        white: columns of bias and quadratures, whitened, (F, 3, C).
        target: whitened measurements (R, C).
        frequency: of the columns, (F,), Hz, evenly spaced.
        form: with the bounds of the frequency.
    """
    root, failed = torch.linalg.cholesky_ex(white @ white.mT)
    alone = torch.eye(3, dtype=root.dtype, device=root.device)
    root = torch.where((failed > 0)[:, None, None], alone, root)
    right = (white.flatten(0, 1) @ target.mT).unflatten(0, (len(frequency), 3))
    mean = torch.cholesky_solve(right, root)
    volume = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    weight = 0.5 * (right * mean).sum(1) - volume[:, None]
    weight[failed > 0] = -torch.inf
    below = torch.softmax(weight, 0).cumsum(0).mT.contiguous()
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(DRAWS, 3, 1, generator=generator, dtype=torch.float64)
    within = torch.rand(DRAWS, generator=generator, dtype=torch.float64) - 0.5
    normal, within = normal.to(target.device), within.to(target.device)
    # Evenly spaced quantiles: the frequencies of the draws are hardly random.
    level = (torch.arange(DRAWS, device=target.device) + 0.5) / DRAWS
    level = level.to(below).expand(len(target), -1).contiguous()
    at = torch.searchsorted(below, level).clamp_max(len(frequency) - 1)
    spread = torch.linalg.solve_triangular(
        root.mT.expand(len(frequency), 3, 3)[at], normal, upper=True
    )
    own = torch.arange(len(target), device=at.device)[:, None]
    linear = mean.permute(2, 0, 1)[own, at] + spread.squeeze(-1)
    step = frequency[1] - frequency[0]
    drawn = (frequency[at] + within * step).clamp(
        float(form.low[0]), float(form.high[0])
    )
    return torch.cat([linear, drawn.unsqueeze(-1)], -1)


def _widths(form: Sinusoids, theta: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    """Widths (R, 4) and ends (R, 4, 2) about estimates, from draws (R, S, 4)."""
    values = polar(theta.flatten(0, 1), middle=form.geometry.middle).view_as(theta)
    away = values - estimate[:, None]
    away[..., 2] = wrap_phase(away[..., 2])
    # Flat in the quadratures is proportional to the amplitude.
    weight = 1.0 / values[..., 0].clamp_min(1e-300)
    weight = (weight / weight.sum(1, keepdim=True)).unsqueeze(-1).expand_as(away)
    half = _quantile(away.abs(), weight, CENTRAL)
    low, high = (_quantile(away, weight, level) for level in (TAIL, 1.0 - TAIL))
    return half, torch.stack([low.clamp_max(0.0), high.clamp_min(0.0)], -1)


def _quantile(values: Tensor, weight: Tensor, level: float) -> Tensor:
    """Quantile (R, 4) of weighted values (R, S, 4)."""
    order = values.argsort(1)
    below = weight.gather(1, order).cumsum(1)
    place = (below < level).sum(1, keepdim=True).clamp_max(values.shape[1] - 1)
    return values.gather(1, order).gather(1, place)[:, 0]
