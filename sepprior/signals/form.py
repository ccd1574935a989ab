"""The contract between kinds of signals and the code that fits them.

A form evaluates ``s(t; theta)`` and its derivatives for a batch of problems. theta is
ordered with the L parameters first that enter linearly,

    s(t; theta) = sum_l theta_l phi_l(t; q),    q = theta[L:],

so that they can be solved exactly at any q (variable projection; Golub and Pereyra
1973), and L may be zero. What a user reads are the *natural* parameters (amplitude,
frequency, phase, ...), a smooth function of theta.

A form belongs to records of one length and sample rate. Times t are in seconds from the
middle of the record, where errors of frequency and phase are least correlated (Rife and
Boorstyn 1974); natural phases are those at the first sample. Q problems, P parameters,
L linear ones, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BOUND_MARGIN = 1e-6
"""Share of the range next to its edge in which a parameter counts as on the edge."""


@dataclass(frozen=True)
class Geometry:
    """Length and sampling of the records a form is for.

    Attributes:
        length: samples.
        sample_rate: Hz.
        skipped: samples before these, from the first of which time is counted.
    """

    length: int
    sample_rate: float
    skipped: int = 0

    @property
    def duration(self) -> float:
        """Length of the record, s."""
        return self.length / self.sample_rate

    @property
    def middle(self) -> float:
        """Time of the middle after the first sample, s."""
        return (self.skipped + 0.5 * (self.length - 1)) / self.sample_rate


class Form(Protocol):
    """A kind of signal.

    Attributes:
        names: the natural parameters, in the order they are reported.
        kinds: what each of them is, in that order: "amplitude", "frequency", "phase",
            "bias", "decay" or "chirp"; "" for a parameter of a user's function, whose
            name says nothing about it.
        curved: names of the nonlinear parameters, in the order of theta.
        n_linear: L.
        low: smallest values of the others, (P - L,), or (B, P - L) where each
            measurement has its own.
        high: largest values, likewise.
        reach: largest change of them in one iteration, (P - L,).
        alike: two answers agree when they differ by less, (P - L,).
        steps: iterations that a fit from a good start needs.
        geometry: the records the form is for.
        prior_mean: centre of a Gaussian prior on theta, (P,).
        prior_precision: its inverse variances, (P,), zero where there is none.
        search: the form with which starts are looked for; often itself.
        has_constant: whether a constant can be part of the signal.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    curved: tuple[str, ...]
    n_linear: int
    low: Tensor
    high: Tensor
    reach: Tensor
    alike: Tensor
    steps: int
    geometry: Geometry
    prior_mean: Tensor
    prior_precision: Tensor
    search: Form
    has_constant: bool

    def adopt(self, theta: Tensor) -> Tensor:
        """Theta of this form from one of the `search` form."""
        ...

    def linear_columns(self, t: Tensor, nonlinear: Tensor) -> Tensor:
        """``phi_l`` at times (..., N) for q (Q, P - L): shape (Q, L, ..., N)."""
        ...

    def evaluate(self, t: Tensor, theta: Tensor) -> Tensor:
        """The signal at times (..., N) for theta (Q, P): shape (Q, ..., N)."""
        ...

    def jacobian_columns(self, t: Tensor, theta: Tensor) -> Tensor:
        """Derivatives of the signal by theta, shape (Q, P, ..., N)."""
        ...

    def natural(self, theta: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Reported values (Q, R) and covariance (Q, R, R), in the order of `names`."""
        ...

    def from_natural(self, values: Tensor) -> Tensor:
        """Theta (Q, P) that gives the natural parameters (Q, R)."""
        ...

    def frequencies(self, theta: Tensor) -> dict[str, tuple[str, Tensor]]:
        """For each name, which error bar of a sinusoid it is most like, and where.

        Returns:
            Kind ("amplitude", "frequency", "phase" or "bias") and frequency (Q,), Hz.
            Names that are left out have error bars that were not calibrated.
        """
        ...


def clamp(form: Form, nonlinear: Tensor, which: Tensor | None = None) -> Tensor:
    """Q (Q, P - L) of the measurements `which` moved into the form's bounds."""
    low, high = bounds_of(form, which)
    low, high = low.to(nonlinear), high.to(nonlinear)
    return torch.minimum(torch.maximum(nonlinear, low), high)


def bounds_of(form: Form, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Bounds of q, (P - L,), or (Q, P - L) where measurements have their own."""
    if form.low.dim() == 1 or which is None:
        return form.low, form.high
    return form.low[which], form.high[which]


def at_bound(form: Form, theta: Tensor) -> Tensor:
    """Which of the nonlinear parameters of theta (Q, P) sit on a bound, (Q, P - L)."""
    q = theta[:, form.n_linear :]
    low, high = (bound.to(q) for bound in bounds_of(form))
    margin = BOUND_MARGIN * torch.where((high - low).isfinite(), high - low, 1.0)
    return ((q < low + margin) | (q > high - margin)) & (high > low)


def prior_energy(form: Form, theta: Tensor) -> Tensor:
    """``-log p(theta)`` up to a constant for theta (Q, P), nats, shape (Q,)."""
    deviation = theta - form.prior_mean.to(theta)
    return 0.5 * (form.prior_precision.to(theta) * deviation.square()).sum(-1)


def carry_covariance(
    function: Callable[[Tensor], Tensor], theta: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """Values and first-order covariance of a smooth function of theta.

    Args:
        function: maps (P,) to (R,).
        theta: shape (Q, P).
        covariance: shape (Q, P, P).
    """
    values = torch.func.vmap(function)(theta)
    rows = torch.func.vmap(torch.func.jacrev(function))(theta)
    return values, rows @ covariance @ rows.mT


def wrap_phase(phase: Tensor) -> Tensor:
    """Radians wrapped to (-pi, pi]."""
    wrapped = math.pi - torch.remainder(math.pi - phase, 2.0 * math.pi)
    # A remainder that rounds up to 2 pi would give the excluded end.
    return torch.where(wrapped > -math.pi, wrapped, wrapped + 2.0 * math.pi)
