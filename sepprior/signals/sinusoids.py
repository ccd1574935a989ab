"""Sums of sinusoids.

The solvers use the form that is linear in all but the frequencies,

    s(t) = bias + sum_p a_p cos(2 pi f_p t) + b_p sin(2 pi f_p t),

with t counted from the middle of the record, where errors of frequency and phase are
least correlated (Rife and Boorstyn 1974). Q problems, P sinusoids, N samples.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sepprior.signals.form import Form, Geometry, wrap_phase

PER_SINUSOID = ("amplitude", "frequency", "phase")


def sinusoid(
    t: ArrayLike, amplitude: float, frequency: float, phase: float, bias: float = 0.0
) -> NDArray[np.float64]:
    """``amplitude * sin(2 pi frequency t + phase) + bias``.

    Args:
        t: times, s.
        amplitude: data units.
        frequency: Hz.
        phase: radians, at t = 0.
        bias: data units.

    Returns:
        An array of the shape of `t`.
    """
    t = np.asarray(t, dtype=np.float64)
    return amplitude * np.sin(2.0 * np.pi * frequency * t + phase) + bias


def parameter_names(n_sinusoids: int) -> tuple[str, ...]:
    """``amplitude, frequency, phase, bias``; numbered from 1 if there are several."""
    if n_sinusoids == 1:
        return (*PER_SINUSOID, "bias")
    names = [f"{name}_{p + 1}" for p in range(n_sinusoids) for name in PER_SINUSOID]
    return (*names, "bias")


def linear_columns(t: Tensor, frequency: Tensor) -> Tensor:
    """Columns ``1, cos_1, sin_1, ..., cos_P, sin_P``.

    Args:
        t: shape (..., N), s, from the middle of the record.
        frequency: shape (Q, P), Hz.

    Returns:
        Shape (Q, 1 + 2 P, ..., N).
    """
    angle = 2.0 * math.pi * frequency.view(*frequency.shape, *([1] * t.dim())) * t
    pairs = torch.stack([torch.cos(angle), torch.sin(angle)], 2).flatten(1, 2)
    ones = torch.ones_like(t).expand(len(frequency), 1, *t.shape)
    return torch.cat([ones, pairs], 1)


def jacobian_columns(t: Tensor, theta: Tensor) -> Tensor:
    """Derivatives of the signal by theta = (bias, a_1, b_1, ..., a_P, b_P, f_1, ...).

    Args:
        t: shape (..., N), s.
        theta: shape (Q, 1 + 3 P).

    Returns:
        Shape (Q, 1 + 3 P, ..., N).
    """
    n = (theta.shape[-1] - 1) // 3
    columns = linear_columns(t, theta[:, 1 + 2 * n :])
    shape = (len(theta), n, *([1] * t.dim()))
    a = theta[:, 1 : 1 + 2 * n : 2].view(shape)
    b = theta[:, 2 : 2 + 2 * n : 2].view(shape)
    cosine, sine = columns[:, 1::2], columns[:, 2::2]
    slope = 2.0 * math.pi * t * (b * cosine - a * sine)
    return torch.cat([columns, slope], 1)


def evaluate(t: Tensor, theta: Tensor) -> Tensor:
    """The signal at times t (..., N) for theta (Q, 1 + 3 P): shape (Q, ..., N)."""
    n = (theta.shape[-1] - 1) // 3
    columns = linear_columns(t, theta[:, 1 + 2 * n :])
    weights = theta[:, : 1 + 2 * n].view(len(theta), -1, *([1] * t.dim()))
    return (columns * weights).sum(1)


def polar(theta: Tensor, *, middle: float) -> Tensor:
    """The values of `to_polar` alone, (Q, 1 + 3 P)."""
    n = (theta.shape[-1] - 1) // 3
    a, b = theta[:, 1 : 1 + 2 * n : 2], theta[:, 2 : 2 + 2 * n : 2]
    f = theta[:, 1 + 2 * n :]
    phase = wrap_phase(torch.atan2(a, b) - 2.0 * math.pi * f * middle)
    amplitude = torch.hypot(a, b).clamp_min(1e-300)
    triples = torch.stack([amplitude, f, phase], -1).flatten(1)
    return torch.cat([triples, theta[:, :1]], 1)


def to_polar(
    theta: Tensor, covariance: Tensor, *, middle: float
) -> tuple[Tensor, Tensor]:
    """From the linear form about the middle to amplitude, frequency, phase, bias.

    ``a = A sin(phi'), b = A cos(phi')`` and ``phi = phi' - 2 pi f middle``, with the
    covariance carried along to first order.

    Args:
        theta: shape (Q, 1 + 3 P).
        covariance: shape (Q, 1 + 3 P, 1 + 3 P).
        middle: time of the record's middle after its first sample, s.

    Returns:
        Values (Q, 1 + 3 P) in the order of `parameter_names`, phases in (-pi, pi],
        and their covariance.
    """
    n = (theta.shape[-1] - 1) // 3
    rows = torch.zeros_like(covariance)
    values = polar(theta, middle=middle)
    for p in range(n):
        ia, ib, jf = 1 + 2 * p, 2 + 2 * p, 1 + 2 * n + p
        a, b, amplitude = theta[:, ia], theta[:, ib], values[:, 3 * p]
        rows[:, 3 * p, ia], rows[:, 3 * p, ib] = a / amplitude, b / amplitude
        rows[:, 3 * p + 1, jf] = 1.0
        square = amplitude.square()
        rows[:, 3 * p + 2, ia], rows[:, 3 * p + 2, ib] = b / square, -a / square
        rows[:, 3 * p + 2, jf] = -2.0 * math.pi * middle
    rows[:, 3 * n, 0] = 1.0
    return values, rows @ covariance @ rows.mT


class Sinusoids:
    """Sum of P sinusoids and a bias: ``theta = (bias, a_1, b_1, ..., f_1, ...)``.

    Args:
        count: P.
        geometry: of the records.
        low: lower edge of the band, Hz: one, (P,), or (B, P).
        high: upper edge, Hz, likewise.
    """

    steps = 8
    has_constant = True

    def __init__(
        self,
        count: int,
        geometry: Geometry,
        *,
        low: float | Tensor,
        high: float | Tensor,
    ) -> None:
        self.count, self.geometry = count, geometry
        self.names = parameter_names(count)
        self.kinds: tuple[str, ...] = (*PER_SINUSOID * count, "bias")
        pairs = zip(self.names, self.kinds, strict=True)
        self.curved = tuple(name for name, kind in pairs if kind == "frequency")
        self.search: Form = self
        self.n_linear = 1 + 2 * count
        ones = torch.ones(count, dtype=torch.float64)
        edges = [torch.as_tensor(edge, dtype=torch.float64) for edge in (low, high)]
        self.low, self.high = (edge * ones.to(edge) for edge in edges)
        resolution = 1.0 / geometry.duration
        self.reach = self.alike = 0.25 * resolution * ones
        self.prior_mean = self.prior_precision = torch.zeros(
            1 + 3 * count, dtype=torch.float64
        )

    def adopt(self, theta: Tensor) -> Tensor:
        """Theta as it is."""
        return theta

    def part(self, components: list[int]) -> Sinusoids:
        """The form of some of the components only."""
        return Sinusoids(
            len(components),
            self.geometry,
            low=self.low[..., components],
            high=self.high[..., components],
        )

    def linear_columns(self, t: Tensor, nonlinear: Tensor) -> Tensor:
        """See `linear_columns`."""
        return linear_columns(t, nonlinear)

    def evaluate(self, t: Tensor, theta: Tensor) -> Tensor:
        """See `evaluate`."""
        return evaluate(t, theta)

    def jacobian_columns(self, t: Tensor, theta: Tensor) -> Tensor:
        """See `jacobian_columns`."""
        return jacobian_columns(t, theta)

    def natural(self, theta: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """See `to_polar`."""
        return to_polar(theta, covariance, middle=self.geometry.middle)

    def from_natural(self, values: Tensor) -> Tensor:
        """The inverse of `natural`, (Q, 1 + 3 P)."""
        amplitude, frequency = values[:, 0:-1:3], values[:, 1:-1:3]
        phase = values[:, 2:-1:3] + 2.0 * math.pi * frequency * self.geometry.middle
        pairs = torch.stack(
            [amplitude * torch.sin(phase), amplitude * torch.cos(phase)], 2
        )
        return torch.cat([values[:, -1:], pairs.flatten(1), frequency], 1)

    def frequencies(self, theta: Tensor) -> dict[str, tuple[str, Tensor]]:
        """Each component at its own frequency, the bias at the first one."""
        f = theta[:, self.n_linear :]
        kinds = [(kind, p) for p in range(self.count) for kind in PER_SINUSOID]
        found = {
            name: (kind, f[:, p])
            for name, (kind, p) in zip(self.names[:-1], kinds, strict=True)
        }
        return found | {"bias": ("bias", f[:, 0])}
