"""Any function of time and parameters as a signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sepprior.errors import SeppriorError
from sepprior.signals.form import Form, Geometry, bounds_of

DRAWS_PER_PARAMETER = 128
MOST_DRAWS = 1024
GUESS_SPREAD = 0.3
"""Standard deviation of the logarithm of starts around a guess without bounds."""
WIDE = 100.0
"""Ratio of positive bounds from which starts are drawn evenly in the logarithm."""
CHECK_POINTS = 3


class FunctionForm:
    """``s(t; theta) = f(t, *theta)`` for a function written with torch operations.

    Derivatives are those of `torch.func`. Parameters in which the function is jointly
    linear are found by comparing derivatives at random points; they need neither
    bounds nor a guess. The others are started from a Sobol sequence within their
    bounds, or from draws around their guess.

    Args:
        function: f(t, a, b, ...); t in seconds from the first sample, shape (N,);
            a, b, ... scalars; returns shape (N,), data units.
        names: of a, b, ...
        geometry: of the records.
        bounds: lowest and highest value by name.
        guess: starting value by name.

    Raises:
        SeppriorError: the function fails, or a parameter cannot be started.
    """

    n_linear = 0
    steps = 40

    def __init__(
        self,
        function: Callable[..., Tensor],
        names: tuple[str, ...],
        geometry: Geometry,
        *,
        bounds: Mapping[str, tuple[float, float]],
        guess: Mapping[str, float],
    ) -> None:
        self.function, self.names, self.geometry = function, names, geometry
        self.kinds: tuple[str, ...] = ("",) * len(names)
        self.curved = names
        self.search: Form = self
        limits = [bounds.get(name, (-math.inf, math.inf)) for name in names]
        self.low = torch.tensor([low for low, _ in limits], dtype=torch.float64)
        self.high = torch.tensor([high for _, high in limits], dtype=torch.float64)
        self.guess = torch.tensor(
            [guess.get(n, math.nan) for n in names], dtype=torch.float64
        )
        span = self.high - self.low
        self.reach = torch.where(span.isfinite() & (span > 0), 0.25 * span, torch.inf)
        self.alike = torch.full_like(span, math.inf)
        self.prior_mean = self.prior_precision = torch.zeros_like(span)
        self._check()
        self.linear = self._find_linear()
        columns = self.jacobian_columns(self._times(), self._probe()[:1])[0]
        if not bool(columns.isfinite().all()):
            raise SeppriorError(
                f"signal '{self._title}' has derivatives that are not finite numbers: "
                "write it without such a point, or give bounds or a guess away from it"
            )
        constant = (columns - columns[:, :1]).abs().amax(-1) == 0
        self.has_constant = bool(constant[list(self.linear)].any())
        for i, name in enumerate(names):
            bounded = math.isfinite(float(span[i]))
            if i not in self.linear and not bounded and name not in guess:
                raise SeppriorError(
                    f"parameter '{name}' of signal '{self._title}' is not linear: "
                    "give it bounds or a guess to start from"
                )

    @property
    def _title(self) -> str:
        return getattr(self.function, "__name__", "function")

    def adopt(self, theta: Tensor) -> Tensor:
        """Theta as it is."""
        return theta

    def linear_columns(self, t: Tensor, nonlinear: Tensor) -> Tensor:
        """No columns: (Q, 0, ..., N)."""
        return t.new_zeros((len(nonlinear), 0, *t.shape))

    def evaluate(self, t: Tensor, theta: Tensor) -> Tensor:
        """The signal, (Q, ..., N)."""
        each = torch.func.vmap(self._at(t))(theta)
        return each.view(len(theta), *t.shape)

    def jacobian_columns(self, t: Tensor, theta: Tensor) -> Tensor:
        """Derivatives by forward-mode differentiation, (Q, P, ..., N)."""
        columns = torch.func.vmap(torch.func.jacfwd(self._at(t)))(theta)
        return columns.mT.reshape(*theta.shape, *t.shape)

    def natural(self, theta: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Both as they are."""
        return theta, covariance

    def from_natural(self, values: Tensor) -> Tensor:
        """The values as they are."""
        return values

    def frequencies(self, theta: Tensor) -> dict[str, tuple[str, Tensor]]:
        """Each like an amplitude, at the centre frequency of its derivative's power."""
        rate, length = self.geometry.sample_rate, self.geometry.length
        t = torch.arange(length, dtype=theta.dtype, device=theta.device)
        columns = self.jacobian_columns((t - 0.5 * (length - 1)) / rate, theta)
        power = torch.fft.rfft(columns).abs().square()
        grid = torch.fft.rfftfreq(length, 1.0 / rate, device=t.device).to(t)
        centre = (power * grid).sum(-1) / power.sum(-1).clamp_min(1e-300)
        return {name: ("amplitude", centre[:, i]) for i, name in enumerate(self.names)}

    def draws(self, *, seed: int) -> Tensor:
        """Starting points (n, P), the guess first; linear parameters are zero.

        Args:
            seed: of the scrambled Sobol sequence.
        """
        curved = [i for i in range(len(self.names)) if i not in self.linear]
        count = min(MOST_DRAWS, DRAWS_PER_PARAMETER * len(curved)) if curved else 1
        points = torch.zeros(count, len(self.names), dtype=torch.float64)
        if not curved:
            return points
        engine = torch.quasirandom.SobolEngine(len(curved), scramble=True, seed=seed)
        unit = engine.draw(count, dtype=torch.float64).clamp(1e-6, 1.0 - 1e-6)
        low, high = bounds_of(self)
        for column, i in enumerate(curved):
            a, b, g = float(low[i]), float(high[i]), float(self.guess[i])
            u = unit[:, column]
            if math.isfinite(b - a) and a > 0 and b > WIDE * a:
                points[:, i] = torch.exp(math.log(a) + u * math.log(b / a))
            elif math.isfinite(b - a):
                points[:, i] = a + u * (b - a)
            else:
                spread = torch.exp(GUESS_SPREAD * torch.special.ndtri(u))
                points[:, i] = (g * spread).clamp(a, b)
        if not self.guess[curved].isnan().any():
            points[0, curved] = self.guess[curved]
        return points

    def _at(self, t: Tensor) -> Callable[[Tensor], Tensor]:
        """The function of theta (P,) at times (..., N) from the middle, flattened."""
        tau = (t + self.geometry.middle).flatten()

        def at(theta: Tensor) -> Tensor:
            return self.function(tau, *theta.unbind()) + torch.zeros_like(tau)

        return at

    def _times(self) -> Tensor:
        length = self.geometry.length
        index = torch.arange(length, dtype=torch.float64)
        return (index - 0.5 * (length - 1)) / self.geometry.sample_rate

    def _check(self) -> None:
        """Call the function once as the solvers do, and look at what comes back."""
        t, theta = self._times(), self._probe()[:1]
        hint = "write it with torch operations on t and scalar parameters"
        try:
            raw: Any = self.evaluate(t, theta)
            columns = self.jacobian_columns(t, theta)
        except Exception as error:
            reason = str(error).split("\n")[0]
            raise SeppriorError(
                f"signal '{self._title}' cannot be evaluated "
                f"({type(error).__name__}: {reason}); {hint}"
            ) from error
        if raw.dtype != torch.float64 or raw.shape[1:] != t.shape:
            raise SeppriorError(
                f"signal '{self._title}' gives {raw.dtype} of shape "
                f"{tuple(raw.shape[1:])} for {len(t)} times; give one float per time"
            )
        if columns.isfinite().all() and (columns == 0).all():
            raise SeppriorError(
                f"signal '{self._title}' depends on none of its parameters; {hint}"
            )

    def _probe(self) -> Tensor:
        """Random points (n, P) within bounds, near the guess, or of order one."""
        generator = torch.Generator().manual_seed(0)
        shape = (CHECK_POINTS, len(self.names))
        u = torch.rand(shape, generator=generator, dtype=torch.float64)
        free = torch.where(self.guess.isnan(), 0.5 + u, self.guess * (0.9 + 0.2 * u))
        inside = self.low + u * (self.high - self.low)
        bounded = (self.high - self.low).isfinite()
        return torch.where(
            bounded, inside, torch.minimum(torch.maximum(free, self.low), self.high)
        )

    def _find_linear(self) -> tuple[int, ...]:
        """Indices of the parameters in which the function is jointly linear."""
        t, points = self._times(), self._probe()
        other = points + 0.7 + points.abs()
        found: list[int] = []
        before = self.jacobian_columns(t, points)
        scale = before.abs().amax((0, 2)).clamp_min(1e-300)
        for i in range(len(self.names)):
            trial = [*found, i]
            moved = points.clone()
            moved[:, trial] = other[:, trial]
            change = self.jacobian_columns(t, moved) - before
            # NaN compares false: what cannot be evaluated there is not linear.
            if bool((change.abs().amax((0, 2))[trial] <= 1e-9 * scale[trial]).all()):
                found.append(i)
        return tuple(found)
