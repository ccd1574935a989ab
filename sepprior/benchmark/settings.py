"""The sinusoids of the benchmark: which signals are drawn, and where they are sought.

A *setting* draws the parameters of

    x_n = A sin(2 pi f t_n + phi) + b + noise_n,        t_n = n / sample_rate,

and fixes the search band that every method is given. Phases are at the first sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sepprior.benchmark.noise import WINDOW, Array

PARAMETERS = ("amplitude", "frequency", "phase", "bias")

ARTICLE_SPAN = (-5.0, 5.0)
"""First and last sample (s) of ``t = linspace(-5, 5, 300)``."""

DrawFunction = Callable[[np.random.Generator, int], dict[str, Array]]


@dataclass(frozen=True)
class Setting:
    """Signals and search band.

    Attributes:
        draw: ``(rng, n) -> {parameter: (n,)}``; the first rows do not depend on n.
        fmin: Lower end of the search band in Hz.
        fmax: Upper end of the search band in Hz.
        strong: Amplitude from which a trial counts as strong.
        duration: Seconds of a window where the setting fixes it, else None.
    """

    draw: DrawFunction
    fmin: float
    fmax: float
    strong: float = 1.0
    duration: float | None = None


def sinusoid(time: Array, truth: Mapping[str, Array]) -> Array:
    """``A sin(2 pi f t + phi) + b`` for n sets of parameters, (n, len(time))."""
    a, f, phi, b = (np.asarray(truth[name])[:, None] for name in PARAMETERS)
    return a * np.sin(2 * np.pi * f * time + phi) + b


def draw_signals(rng: np.random.Generator, n: int) -> dict[str, Array]:
    """A log-uniform in [0.1, 10], f in [1, 2] Hz, phi and b uniform.

    Returns:
        Amplitude, frequency (Hz), phase (rad, in (-pi, pi]) and bias, each (n,).
    """
    u = rng.random((n, 4))
    return {
        "amplitude": 0.1 * 100.0 ** u[:, 0],
        "frequency": 1.0 + u[:, 1],
        "phase": np.pi * (1.0 - 2.0 * u[:, 2]),
        "bias": 0.1 + 9.9 * u[:, 3],
    }


def draw_article_signals(rng: np.random.Generator, n: int) -> dict[str, Array]:
    """``A sin(omega t) + b`` on ``t = linspace(-5, 5, 300)``, without a phase.

    omega is uniform in [1, 2] rad/s, A and b are drawn from {0.1, 0.2, ..., 10}. The
    phase at the first sample is ``-5 omega``. Every method fits it as a free parameter,
    and the bound is that of four unknowns: that the phase is tied to the frequency is
    known of this setting alone.
    """
    u = rng.random((n, 3))
    omega = 1.0 + u[:, 0]
    tenths = np.minimum(np.floor(100 * u[:, 1:]), 99) + 1
    phase = np.pi - np.mod(np.pi - ARTICLE_SPAN[0] * omega, 2 * np.pi)
    return {
        "amplitude": tenths[:, 0] / 10,
        "frequency": omega / (2 * np.pi),
        "phase": phase,
        "bias": tenths[:, 1] / 10,
    }


@dataclass(frozen=True)
class InjectedSignals:
    """Sinusoids for recorded noise: the standard ones, scaled to its rate and level.

    Frequencies are uniform in [10, 20] cycles per window, amplitudes log-uniform from a
    tenth to ten times `unit`, the bias uniform in [0.1, 10] units.

    Attributes:
        duration: Seconds of a window.
        unit: Amplitude that stands to the noise in the band as 1 to white noise of 0.3.
    """

    duration: float
    unit: float

    def __call__(self, rng: np.random.Generator, n: int) -> dict[str, Array]:
        """Draw n signals."""
        truth = draw_signals(rng, n)
        truth["frequency"] = 10 * truth["frequency"] / self.duration
        truth["amplitude"] = self.unit * truth["amplitude"]
        truth["bias"] = self.unit * truth["bias"]
        return truth


STANDARD = Setting(draw_signals, 0.8, 2.5)
"""The sinusoids of all synthetic scenarios but `article`."""

ARTICLE = Setting(
    draw_article_signals,
    0.8 / (2 * np.pi),
    2.5 / (2 * np.pi),
    duration=(ARTICLE_SPAN[1] - ARTICLE_SPAN[0]) * WINDOW / (WINDOW - 1),
)
"""The setting of the article: 300 samples with 10 s between the ends."""


def injected(duration: float, unit: float) -> Setting:
    """The setting for noise recorded in windows of `duration` seconds."""
    signals = InjectedSignals(duration, unit)
    return Setting(signals, 8 / duration, 25 / duration, unit, duration)
