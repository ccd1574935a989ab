"""A form in its natural parameters: bounds, fixed values and Gaussian priors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from sepprior.signals.form import Form, clamp, wrap_phase


class Constrained:
    """A form whose theta are the natural parameters that are free.

    The linear parameters of an oscillation are quadratures, and a bound on an
    amplitude or a fixed phase is no simple condition on them. So the fit is made in
    amplitude, frequency, phase, ... themselves: ``s(t; theta(values))``, with the
    derivatives by the chain rule. Starts come from the `search` form.

    Args:
        base: the form that evaluates the signal.
        search: the form that finds starts, with the same theta as `base`.
        bounds: lowest and highest value by name (others are unbounded).
        fixed: value by name.
        expected: mean and standard deviation of a Gaussian prior by name.
        reach: largest change in one iteration by name (others: any).
        alike: difference below which two answers agree by name (others: any).
    """

    n_linear = 0
    steps = 40

    def __init__(
        self,
        base: Form,
        search: Form,
        *,
        bounds: Mapping[str, tuple[float, float]],
        fixed: Mapping[str, float],
        expected: Mapping[str, tuple[float, float]],
        reach: Mapping[str, float],
        alike: Mapping[str, float],
    ) -> None:
        self.base, self.search = base, search
        self.names, self.kinds, self.geometry = base.names, base.kinds, base.geometry
        self.has_constant = base.has_constant
        free = [name for name in base.names if name not in fixed]
        self.curved = tuple(free)
        self.free = [base.names.index(name) for name in free]
        self.held = torch.tensor(
            [fixed.get(n, 0.0) for n in base.names], dtype=torch.float64
        )

        def row(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)

        whole = (-math.inf, math.inf)
        self.low = row([bounds.get(n, whole)[0] for n in free])
        self.high = row([bounds.get(n, whole)[1] for n in free])
        self.reach = row([reach.get(n, math.inf) for n in free])
        self.alike = row([alike.get(n, math.inf) for n in free])
        self.prior_mean = row([expected[n][0] if n in expected else 0.0 for n in free])
        self.prior_precision = row(
            [expected[n][1] ** -2 if n in expected else 0.0 for n in free]
        )
        self._phases = [
            i for i, at in enumerate(self.free) if self.kinds[at] == "phase"
        ]

    def adopt(self, theta: Tensor) -> Tensor:
        """Free natural parameters, within bounds, of a start in the search form's."""
        nothing = theta.new_zeros((*theta.shape, theta.shape[-1]))
        values, _ = self.base.natural(theta, nothing)
        values = values[:, self.free]
        for i in self._phases:
            centre = 0.5 * float(self.low[i] + self.high[i])
            if float(self.prior_precision[i]):
                centre = float(self.prior_mean[i])
            if math.isfinite(centre):
                values[:, i] = centre + wrap_phase(values[:, i] - centre)
        return clamp(self, values)

    def linear_columns(self, t: Tensor, nonlinear: Tensor) -> Tensor:
        """No columns: (Q, 0, ..., N)."""
        return t.new_zeros((len(nonlinear), 0, *t.shape))

    def evaluate(self, t: Tensor, theta: Tensor) -> Tensor:
        """The signal, (Q, ..., N)."""
        return self.base.evaluate(t, self.base.from_natural(self._whole(theta)))

    def jacobian_columns(self, t: Tensor, theta: Tensor) -> Tensor:
        """Derivatives by the free natural parameters, (Q, P, ..., N)."""

        def inner(row: Tensor) -> Tensor:
            return self.base.from_natural(self._whole(row[None]))[0]

        rows = torch.func.vmap(torch.func.jacrev(inner))(theta)
        columns = self.base.jacobian_columns(t, torch.func.vmap(inner)(theta))
        return torch.einsum("qb...,qbp->qp...", columns, rows)

    def natural(self, theta: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """All natural parameters; fixed ones have no variance."""
        values = self._whole(theta)
        for i in (self.free[position] for position in self._phases):
            values[:, i] = wrap_phase(values[:, i])
        n = len(self.names)
        place = torch.zeros(n, len(self.free)).to(covariance)
        place[self.free, range(len(self.free))] = 1.0
        return values, place @ covariance @ place.T

    def from_natural(self, values: Tensor) -> Tensor:
        """The free ones."""
        return values[:, self.free]

    def frequencies(self, theta: Tensor) -> dict[str, tuple[str, Tensor]]:
        """As those of the base."""
        return self.base.frequencies(self.base.from_natural(self._whole(theta)))

    def _whole(self, theta: Tensor) -> Tensor:
        """All natural parameters (Q, R) from the free ones (Q, P)."""
        columns = list(self.held.to(theta).expand(len(theta), -1).unbind(1))
        for position, i in enumerate(self.free):
            columns[i] = theta[:, position]
        return torch.stack(columns, 1)
