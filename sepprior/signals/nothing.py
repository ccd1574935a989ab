"""The form of no signal at all: noise alone, nothing to be fitted."""

from __future__ import annotations

import torch
from torch import Tensor

from sepprior.signals.form import Form, Geometry


class Nothing:
    """Zero, without parameters.

    Args:
        geometry: of the records.
    """

    names: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    curved: tuple[str, ...] = ()
    n_linear = 0
    steps = 0
    has_constant = False

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.low = self.high = self.reach = self.alike = torch.zeros(0).double()
        self.prior_mean = self.prior_precision = torch.zeros(0).double()
        self.search: Form = self

    def adopt(self, theta: Tensor) -> Tensor:
        """Theta as it is."""
        return theta

    def linear_columns(self, t: Tensor, nonlinear: Tensor) -> Tensor:
        """No columns: (Q, 0, ..., N)."""
        return t.new_zeros((len(nonlinear), 0, *t.shape))

    def evaluate(self, t: Tensor, theta: Tensor) -> Tensor:
        """Zeros, (Q, ..., N)."""
        return t.new_zeros((len(theta), *t.shape))

    def jacobian_columns(self, t: Tensor, theta: Tensor) -> Tensor:
        """No columns: (Q, 0, ..., N)."""
        return self.linear_columns(t, theta)

    def natural(self, theta: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing, (Q, 0)."""
        return theta, covariance

    def from_natural(self, values: Tensor) -> Tensor:
        """Nothing, (Q, 0)."""
        return values

    def frequencies(self, theta: Tensor) -> dict[str, tuple[str, Tensor]]:
        """None."""
        return {}
