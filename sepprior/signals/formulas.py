"""Signals as plain functions of time and named parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

TWO_PI = 2.0 * np.pi


def harmonics(
    t: ArrayLike,
    frequency: float,
    amplitudes: Sequence[float],
    phases: Sequence[float],
    bias: float = 0.0,
) -> NDArray[np.float64]:
    """``bias + sum_h amplitude_h * sin(2 pi h frequency t + phase_h)``, h = 1, 2, ...

    Args:
        t: times, s.
        frequency: of the fundamental, Hz.
        amplitudes: of the harmonics, data units.
        phases: radians, at t = 0.
        bias: data units.
    """
    t = np.asarray(t, dtype=np.float64)
    total = np.full_like(t, bias)
    for h, (amplitude, phase) in enumerate(zip(amplitudes, phases, strict=True), 1):
        total += amplitude * np.sin(TWO_PI * h * frequency * t + phase)
    return total


def damped_sinusoid(
    t: ArrayLike,
    amplitude: float,
    frequency: float,
    phase: float,
    decay: float,
    bias: float = 0.0,
) -> NDArray[np.float64]:
    """``amplitude * exp(-decay t) * sin(2 pi frequency t + phase) + bias``.

    Args:
        t: times, s.
        amplitude: at t = 0, data units.
        frequency: Hz.
        phase: radians, at t = 0.
        decay: 1/s.
        bias: data units.
    """
    t = np.asarray(t, dtype=np.float64)
    wave = np.sin(TWO_PI * frequency * t + phase)
    return amplitude * np.exp(-decay * t) * wave + bias


def chirp(
    t: ArrayLike,
    amplitude: float,
    frequency: float,
    phase: float,
    chirp_rate: float,
    bias: float = 0.0,
) -> NDArray[np.float64]:
    """``amplitude * sin(2 pi (frequency t + chirp_rate t^2 / 2) + phase) + bias``.

    Args:
        t: times, s.
        amplitude: data units.
        frequency: at t = 0, Hz.
        phase: radians, at t = 0.
        chirp_rate: change of the frequency, Hz/s.
        bias: data units.
    """
    t = np.asarray(t, dtype=np.float64)
    cycles = frequency * t + 0.5 * chirp_rate * t**2
    return amplitude * np.sin(TWO_PI * cycles + phase) + bias
