"""Harmonics, damped sinusoids and linear chirps.

Each is a bias and H pairs of quadratures with an envelope,

    s(t) = bias + e(t) sum_h a_h cos(psi_h(t)) + b_h sin(psi_h(t)),

linear in bias, a and b. Only the angle ``psi`` and the envelope ``e`` differ. The
amplitude of a pair is ``hypot(a, b)`` and its phase ``atan2(a, b)``, carried back from
the reference time of the angle to the first sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sepprior.signals.form import Form, Geometry, carry_covariance, wrap_phase

TWO_PI = 2.0 * math.pi
SLOWEST_DECAYS = (0.5, 1.0, 2.0, 4.0)
"""Decay rates to search first, in units of 1 / T; then doubled up to the limit."""


class Oscillation(ABC):
    """What the forms of this module share; see the module's text.

    theta is (bias, a_1, b_1, ..., a_H, b_H, q). Sub-classes give the quadratures with
    the envelope, `pairs`, and their derivatives by q, `slopes`.
    """

    steps = 12
    has_constant = True
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    curved: tuple[str, ...]
    low: Tensor
    high: Tensor
    reach: Tensor
    alike: Tensor

    def __init__(self, n_pairs: int, n_nonlinear: int, geometry: Geometry) -> None:
        self.n_pairs, self.geometry = n_pairs, geometry
        self.n_linear = 1 + 2 * n_pairs
        self.search: Form = self
        self.prior_mean = self.prior_precision = torch.zeros(
            self.n_linear + n_nonlinear, dtype=torch.float64
        )

    def adopt(self, theta: Tensor) -> Tensor:
        """Theta as it is."""
        return theta

    @abstractmethod
    def pairs(self, t: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """``e cos psi_h`` and ``e sin psi_h``, each (Q, H, ..., N)."""

    @abstractmethod
    def slopes(self, t: Tensor, q: Tensor, even: Tensor, odd: Tensor) -> list[Tensor]:
        """Derivatives by each q from those by the angle and the logarithm of e.

        Args:
            t: shape (..., N).
            q: shape (Q, M).
            even: the oscillation, summed over pairs where e is common, (Q, H, ..., N).
            odd: its derivative by the angle, (Q, H, ..., N).

        Returns:
            M tensors (Q, ..., N).
        """

    def linear_columns(self, t: Tensor, nonlinear: Tensor) -> Tensor:
        """Columns ``1, e cos psi_1, e sin psi_1, ...``, (Q, 1 + 2 H, ..., N)."""
        both = torch.stack(self.pairs(t, nonlinear), 2).flatten(1, 2)
        return torch.cat([torch.ones_like(both[:, :1]), both], 1)

    def evaluate(self, t: Tensor, theta: Tensor) -> Tensor:
        """The signal, (Q, ..., N)."""
        columns = self.linear_columns(t, theta[:, self.n_linear :])
        weights = theta[:, : self.n_linear]
        return (columns * _spread(weights, columns)).sum(1)

    def jacobian_columns(self, t: Tensor, theta: Tensor) -> Tensor:
        """Derivatives of the signal by theta, (Q, P, ..., N)."""
        q = theta[:, self.n_linear :]
        columns = self.linear_columns(t, q)
        cosine, sine = columns[:, 1::2], columns[:, 2::2]
        a = _spread(theta[:, 1 : self.n_linear : 2], cosine)
        b = _spread(theta[:, 2 : self.n_linear : 2], sine)
        even, odd = a * cosine + b * sine, b * cosine - a * sine
        slopes = torch.stack(self.slopes(t, q, even, odd), 1)
        return torch.cat([columns, slopes], 1)

    def amplitudes(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitudes and phases at the reference of the angle of theta (P,)."""
        a, b = theta[1 : self.n_linear : 2], theta[2 : self.n_linear : 2]
        # A pair of zeros has no phase; a tiny one keeps the derivatives finite.
        a = a + 1e-150 * (a.abs() + b.abs() == 0)
        return (a.square() + b.square()).sqrt(), torch.atan2(a, b)

    def natural(self, theta: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Reported values and covariance, phases in (-pi, pi]."""
        values, covariance = carry_covariance(self._values, theta, covariance)
        phases = [kind == "phase" for kind in self.kinds]
        wrapped = torch.where(
            torch.tensor(phases, device=values.device), wrap_phase(values), values
        )
        return wrapped, covariance

    @abstractmethod
    def _values(self, theta: Tensor) -> Tensor:
        """Natural parameters (R,) of theta (P,), phases not wrapped."""

    @abstractmethod
    def from_natural(self, values: Tensor) -> Tensor:
        """The inverse of `natural`."""

    @abstractmethod
    def frequencies(self, theta: Tensor) -> dict[str, tuple[str, Tensor]]:
        """See `Form`."""

    def _theta(
        self, bias: Tensor, amplitude: Tensor, phase: Tensor, q: Tensor
    ) -> Tensor:
        """Theta from amplitudes and reference phases (Q, H), and q (Q, M)."""
        quadratures = torch.stack(
            [amplitude * torch.sin(phase), amplitude * torch.cos(phase)], 2
        )
        return torch.cat([bias, quadratures.flatten(1), q], 1)


class Harmonics(Oscillation):
    """H harmonics of one fundamental: ``psi_h = 2 pi h f t``, q = (f,).

    Args:
        count: H.
        geometry: of the records.
        low: lowest fundamental, Hz.
        high: highest fundamental, Hz.
    """

    def __init__(
        self, count: int, geometry: Geometry, *, low: float, high: float
    ) -> None:
        super().__init__(count, 1, geometry)
        each = [f"{name}_{h}" for h in range(1, count + 1) for name in _PAIR]
        self.names: tuple[str, ...] = ("frequency", *each, "bias")
        self.kinds: tuple[str, ...] = ("frequency", *_PAIR * count, "bias")
        self.curved: tuple[str, ...] = ("frequency",)
        self.low = torch.tensor([low], dtype=torch.float64)
        self.high = torch.tensor([high], dtype=torch.float64)
        self.reach = torch.tensor(
            [0.25 / (count * geometry.duration)], dtype=torch.float64
        )
        self.alike = self.reach

    def pairs(self, t: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the harmonics."""
        order = torch.arange(1, self.n_pairs + 1, dtype=q.dtype, device=q.device)
        rate = TWO_PI * order * q
        angle = rate.view(*rate.shape, *([1] * t.dim())) * t
        return torch.cos(angle), torch.sin(angle)

    def slopes(self, t: Tensor, q: Tensor, even: Tensor, odd: Tensor) -> list[Tensor]:
        """``ds/df = sum_h 2 pi h t ds/dpsi_h``."""
        order = torch.arange(1, self.n_pairs + 1, dtype=t.dtype, device=t.device)
        return [TWO_PI * t * (order.view(-1, *([1] * t.dim())) * odd).sum(1)]

    def _values(self, theta: Tensor) -> Tensor:
        amplitude, phase = self.amplitudes(theta)
        f = theta[self.n_linear]
        order = torch.arange(1, self.n_pairs + 1, dtype=f.dtype, device=f.device)
        phase = phase - TWO_PI * order * f * self.geometry.middle
        each = torch.stack([amplitude, phase], 1).flatten()
        return torch.cat([f[None], each, theta[:1]])

    def from_natural(self, values: Tensor) -> Tensor:
        """The inverse of `natural`."""
        f = values[:, :1]
        order = torch.arange(1, self.n_pairs + 1, dtype=f.dtype, device=f.device)
        phase = values[:, 2:-1:2] + TWO_PI * order * f * self.geometry.middle
        return self._theta(values[:, -1:], values[:, 1:-1:2], phase, f)

    def frequencies(self, theta: Tensor) -> dict[str, tuple[str, Tensor]]:
        """Each harmonic at its own frequency."""
        f = theta[:, self.n_linear]
        found = {"frequency": ("frequency", f), "bias": ("bias", f)}
        for h in range(1, self.n_pairs + 1):
            for kind in _PAIR:
                found[f"{kind}_{h}"] = (kind, h * f)
        return found


class DampedSinusoid(Oscillation):
    """``psi = 2 pi f t`` with ``e = exp(-decay tau)``, tau from the first sample.

    q = (f, decay).

    Args:
        geometry: of the records.
        low: lowest frequency, Hz.
        high: highest frequency, Hz.
    """

    names: tuple[str, ...] = ("amplitude", "frequency", "phase", "decay", "bias")
    kinds: tuple[str, ...] = names
    curved: tuple[str, ...] = ("frequency", "decay")

    def __init__(self, geometry: Geometry, *, low: float, high: float) -> None:
        super().__init__(1, 2, geometry)
        resolution = 1.0 / geometry.duration
        self.low = torch.tensor([low, 0.0], dtype=torch.float64)
        self.high = torch.tensor(
            [high, 0.5 * geometry.sample_rate], dtype=torch.float64
        )
        self.reach = torch.tensor([0.25 * resolution, math.inf], dtype=torch.float64)
        self.alike = torch.tensor([0.25, 1.0], dtype=torch.float64) * resolution

    @property
    def shapes(self) -> Tensor:
        """Decay rates to search, 1/s."""
        resolution = 1.0 / self.geometry.duration
        low, high = float(self.low[1]), float(self.high[1])
        rates = [k * resolution for k in SLOWEST_DECAYS]
        while rates[-1] * 2.0 < 0.25 * self.geometry.sample_rate:
            rates.append(rates[-1] * 2.0)
        inside = [r for r in rates if low < r < high]
        edges = [low, high] if high < 0.5 * self.geometry.sample_rate else [low]
        return torch.tensor(sorted({*edges, *inside}), dtype=torch.float64)

    def taper(self, t: Tensor, shape: Tensor) -> tuple[Tensor, float]:
        """The envelope (..., N) of one decay rate; its frequency does not move."""
        return torch.exp(-shape * (t + self.geometry.middle)).to(torch.complex128), 0.0

    def pairs(self, t: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Quadratures times the envelope."""
        f, decay = (_spread(q[:, i : i + 1], t[None, None]) for i in (0, 1))
        # Beyond exp(-300) nothing is left; the clamp keeps trial points finite.
        fall = (decay * (t + self.geometry.middle)).clamp(-300.0, 300.0)
        angle, envelope = TWO_PI * f * t, torch.exp(-fall)
        return envelope * torch.cos(angle), envelope * torch.sin(angle)

    def slopes(self, t: Tensor, q: Tensor, even: Tensor, odd: Tensor) -> list[Tensor]:
        """``ds/df = 2 pi t ds/dpsi`` and ``ds/d decay = -tau (s - bias)``."""
        tau = t + self.geometry.middle
        return [TWO_PI * t * odd[:, 0], -tau * even[:, 0]]

    def _values(self, theta: Tensor) -> Tensor:
        amplitude, phase = self.amplitudes(theta)
        f, decay = theta[3:4], theta[4:5]
        phase = phase - TWO_PI * f * self.geometry.middle
        return torch.cat([amplitude, f, phase, decay, theta[:1]])

    def from_natural(self, values: Tensor) -> Tensor:
        """The inverse of `natural`."""
        amplitude, f, phase, decay, bias = values.split(1, 1)
        phase = phase + TWO_PI * f * self.geometry.middle
        return self._theta(bias, amplitude, phase, torch.cat([f, decay], 1))

    def frequencies(self, theta: Tensor) -> dict[str, tuple[str, Tensor]]:
        """All at the one frequency; the decay's error is like an amplitude's."""
        kinds = ("amplitude", "frequency", "phase", "amplitude", "bias")
        return {
            name: (k, theta[:, 3]) for name, k in zip(self.names, kinds, strict=True)
        }


class Chirp(Oscillation):
    """``psi = 2 pi (f t + c t^2 / 2)`` with f in the middle of the record.

    q = (f, c), with c the chirp rate in Hz/s.

    Args:
        geometry: of the records.
        low: lowest frequency in the middle of the record, Hz.
        high: highest frequency in the middle, Hz.
    """

    names: tuple[str, ...] = ("amplitude", "frequency", "phase", "chirp_rate", "bias")
    kinds: tuple[str, ...] = ("amplitude", "frequency", "phase", "chirp", "bias")
    curved: tuple[str, ...] = ("frequency", "chirp_rate")

    def __init__(self, geometry: Geometry, *, low: float, high: float) -> None:
        super().__init__(1, 2, geometry)
        resolution = 1.0 / geometry.duration
        fastest = max(high - low, 2.0 * resolution) * resolution
        self.low = torch.tensor([low, -fastest], dtype=torch.float64)
        self.high = torch.tensor([high, fastest], dtype=torch.float64)
        self.reach = torch.tensor(
            [0.25 * resolution, resolution**2], dtype=torch.float64
        )
        self.alike = torch.tensor(
            [0.25 * resolution, 3.0 * resolution**2], dtype=torch.float64
        )

    @property
    def shapes(self) -> Tensor:
        """Chirp rates to search, Hz/s: pi / 4 of phase at the ends between two."""
        low, high = float(self.low[1]), float(self.high[1])
        step = 2.0 / self.geometry.duration**2
        count = max(1, math.ceil((high - low) / step))
        return torch.linspace(low, high, count + 1, dtype=torch.float64)

    def taper(self, t: Tensor, shape: Tensor) -> tuple[Tensor, float]:
        """``exp(i pi c t^2)`` (..., N) of one chirp rate, and the band it sweeps."""
        angle = math.pi * shape * t.square()
        return torch.polar(torch.ones_like(angle), angle), abs(
            float(shape) * self.geometry.duration
        )

    def pairs(self, t: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the angle."""
        f, rate = (_spread(q[:, i : i + 1], t[None, None]) for i in (0, 1))
        angle = TWO_PI * (f * t + 0.5 * rate * t.square())
        return torch.cos(angle), torch.sin(angle)

    def slopes(self, t: Tensor, q: Tensor, even: Tensor, odd: Tensor) -> list[Tensor]:
        """``ds/df = 2 pi t ds/dpsi`` and ``ds/dc = pi t^2 ds/dpsi``."""
        return [TWO_PI * t * odd[:, 0], math.pi * t.square() * odd[:, 0]]

    def _values(self, theta: Tensor) -> Tensor:
        amplitude, phase = self.amplitudes(theta)
        f, rate, m = theta[3:4], theta[4:5], self.geometry.middle
        phase = phase - TWO_PI * (f * m - 0.5 * rate * m**2)
        return torch.cat([amplitude, f - rate * m, phase, rate, theta[:1]])

    def from_natural(self, values: Tensor) -> Tensor:
        """The inverse of `natural`."""
        amplitude, first, phase, rate, bias = values.split(1, 1)
        m = self.geometry.middle
        f = first + rate * m
        phase = phase + TWO_PI * (f * m - 0.5 * rate * m**2)
        return self._theta(bias, amplitude, phase, torch.cat([f, rate], 1))

    def frequencies(self, theta: Tensor) -> dict[str, tuple[str, Tensor]]:
        """All at the frequency in the middle; the rate's error is like its own."""
        kinds = ("amplitude", "frequency", "phase", "frequency", "bias")
        return {
            name: (k, theta[:, 3]) for name, k in zip(self.names, kinds, strict=True)
        }


_PAIR = ("amplitude", "phase")


def _spread(weights: Tensor, like: Tensor) -> Tensor:
    """(Q, k) with as many further dimensions of length 1 as `like` has after two."""
    return weights.view(*weights.shape, *([1] * (like.dim() - 2)))
