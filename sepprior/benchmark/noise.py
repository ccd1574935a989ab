"""The noise of the benchmark: stationary streams of any length, whole or in parts.

A noise function has the signature ``(rng, n_samples, sample_rate) -> (n_samples,)`` and
returns one continuous stationary stream. Noise that is built from several parts also
has a *components* function that returns the parts; their sum is the noise.

Where a spectrum depends on the duration T of a window, that is the duration of 300
samples, ``T = 300 / sample_rate``, however long the stream.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.signal import lfilter, lfiltic

Array = NDArray[np.float64]

WINDOW = 300
"""Samples per window."""

WHITE_SD = PINK_SD = AR2_SD = 0.3
STRUCTURED_PINK_SD, STRUCTURED_WHITE_SD = 0.15, 0.05
PINK_CORNER_CYCLES = 0.2
AR2_FREQUENCY, AR2_WIDTH = 2.2, 0.4
BURSTS_PER_SAMPLE, BURST_SD, BURST_DECAY = 3 / WINDOW, 1.5, (3.0, 12.0)
HUM = ((50.03, 0.2), (100.06, 0.08))
TELEGRAPH_LEVEL, TELEGRAPH_DWELL = 0.3, 30.0
PULSE_SD, PULSE_FREQUENCY, PULSE_FALL, PULSE_RISE = 0.5, 1.413, 0.12, 0.03


# --- building blocks ----------------------------------------------------------------


def pink_corner(sample_rate: float) -> float:
    """Frequency in Hz below which the pink spectrum is flat, ``0.2 / T``.

    ``T = 300 / sample_rate`` is the duration of one *window*, however long the record.
    """
    return PINK_CORNER_CYCLES * sample_rate / WINDOW


def pink_noise(
    rng: np.random.Generator, n_samples: int, sample_rate: float, *, sd: float
) -> Array:
    """Gaussian noise with one-sided spectrum ``1 / max(f, f0)``, f0 = `pink_corner`.

    White noise is shaped in the Fourier domain over at least 20 windows more than asked
    for, so that the period of the transform leaves no visible correlation between the
    ends (< 3e-4 of the variance). The scale follows from the exact integral of the
    spectrum, ``1 + ln(f_nyquist / f0)``, not from the sample, and the zero frequency is
    kept: the mean of a window varies as it would in a longer record.

    Returns:
        (n_samples,) noise with standard deviation `sd`.
    """
    corner = pink_corner(sample_rate)
    length = fft.next_fast_len(n_samples + 20 * WINDOW, real=True)
    frequency = fft.rfftfreq(length, 1 / sample_rate)
    density = sd**2 / (np.maximum(frequency, corner) * pink_log_range())
    # White noise of unit variance has the one-sided density 2 / sample_rate.
    gain = np.sqrt(density * sample_rate / 2)
    spectrum = gain * fft.rfft(rng.standard_normal(length))
    return np.asarray(fft.irfft(spectrum, length))[:n_samples]


def pink_log_range() -> float:
    """Integral of ``1 / max(f, f0)`` from 0 to the Nyquist frequency."""
    return 1.0 + float(np.log(WINDOW / (2 * PINK_CORNER_CYCLES)))


def ar2_coefficients(sample_rate: float) -> tuple[float, float]:
    """Coefficients of ``x_n = a1 x_{n-1} + a2 x_{n-2} + e_n``.

    The poles are ``r exp(+-2 pi i f0 / sample_rate)`` with f0 = 2.2 Hz and
    ``r = exp(-pi w / sample_rate)``, where w = 0.4 Hz is the full width at half maximum
    of the resonance in the power spectrum.
    """
    radius = np.exp(-np.pi * AR2_WIDTH / sample_rate)
    angle = 2 * np.pi * AR2_FREQUENCY / sample_rate
    return float(2 * radius * np.cos(angle)), float(-(radius**2))


def hum(rng: np.random.Generator, n_samples: int, sample_rate: float) -> Array:
    """Mains hum: 50.03 Hz (amplitude 0.2) and 100.06 Hz (0.08), random phases.

    At 30 Hz both lines are aliased, to 9.97 Hz and 10.06 Hz.
    """
    time = np.arange(n_samples) / sample_rate
    total = np.zeros(n_samples)
    for frequency, amplitude in HUM:
        phase = rng.uniform(-np.pi, np.pi)
        total += amplitude * np.sin(2 * np.pi * frequency * time + phase)
    return total


def burst_train(rng: np.random.Generator, n_samples: int) -> Array:
    """Bursts at Poisson times, 3 per 300 samples on average.

    Each has an amplitude from N(0, 1.5^2) and decays as ``exp(-k / d)`` in the k
    samples after its onset, d uniform in [3, 12] samples. Onsets before the first
    sample are drawn as well, so that the stream is stationary from the start.
    """
    reach = int(20 * BURST_DECAY[1])  # exp(-20) of the amplitude is left
    counts = rng.poisson(BURSTS_PER_SAMPLE, n_samples + reach)
    onsets = np.repeat(np.arange(counts.size), counts)
    amplitudes = rng.normal(0.0, BURST_SD, onsets.size)
    decays = rng.uniform(*BURST_DECAY, onsets.size)
    train: Array = np.zeros(n_samples + 2 * reach)
    after = np.arange(reach)
    for onset, amplitude, decay in zip(onsets, amplitudes, decays, strict=True):
        train[onset : onset + reach] += amplitude * np.exp(-after / decay)
    return train[reach : reach + n_samples]


def telegraph_levels(rng: np.random.Generator, n_samples: int) -> Array:
    """Two-state Markov chain with levels +-0.3 and a mean dwell of 30 samples."""
    switches = rng.random(n_samples) < 1 / TELEGRAPH_DWELL
    first = rng.integers(2)
    state = (first + np.cumsum(switches)) % 2
    return np.where(state == 1, TELEGRAPH_LEVEL, -TELEGRAPH_LEVEL)


def pulse_moments() -> tuple[float, float]:
    """Mean and standard deviation of ``exp(-u/0.12) - exp(-u/0.03)`` over u in [0, 1).

    In closed form, from ``integral exp(-u/c) du = c (1 - exp(-1/c))``.
    """

    def integral(c: float) -> float:
        return c * -np.expm1(-1 / c)

    a, b = PULSE_FALL, PULSE_RISE
    mean = integral(a) - integral(b)
    square = integral(a / 2) + integral(b / 2) - 2 * integral(a * b / (a + b))
    return float(mean), float(np.sqrt(square - mean**2))


def pulse_waveform(phase: Array) -> Array:
    """The pulse at `phase` (periods, any real number): zero mean, sd 0.5."""
    u = np.mod(phase, 1.0)
    mean, sd = pulse_moments()
    return PULSE_SD * (np.exp(-u / PULSE_FALL) - np.exp(-u / PULSE_RISE) - mean) / sd


# --- the scenarios ------------------------------------------------------------------


def white(rng: np.random.Generator, n_samples: int, sample_rate: float) -> Array:
    """Independent Gaussian samples, sd 0.3."""
    del sample_rate
    return rng.normal(0.0, WHITE_SD, n_samples)


def pink(rng: np.random.Generator, n_samples: int, sample_rate: float) -> Array:
    """1/f noise, flat below 0.2/T Hz (T = 300 / sample_rate), sd 0.3."""
    return pink_noise(rng, n_samples, sample_rate, sd=PINK_SD)


def ar2(rng: np.random.Generator, n_samples: int, sample_rate: float) -> Array:
    """Second-order autoregressive resonance next to the search band, sd 0.3.

    The first two samples come from the stationary distribution (lag-one correlation
    ``a1 / (1 - a2)``), so no burn-in is needed.
    """
    a1, a2 = ar2_coefficients(sample_rate)
    rho = a1 / (1 - a2)
    innovation = AR2_SD * np.sqrt((1 - a2**2) * (1 - rho**2))
    before = AR2_SD * rng.standard_normal(2)
    before[0] = rho * before[1] + np.sqrt(1 - rho**2) * before[0]
    state = lfiltic([1.0], [1.0, -a1, -a2], before)
    noise = innovation * rng.standard_normal(n_samples)
    return np.asarray(lfilter([1.0], [1.0, -a1, -a2], noise, zi=state)[0])


def bursts_components(
    rng: np.random.Generator, n_samples: int, sample_rate: float
) -> dict[str, Array]:
    """The parts of `bursts`: pink, white, hum and bursts."""
    return {
        "pink": pink_noise(rng, n_samples, sample_rate, sd=STRUCTURED_PINK_SD),
        "white": rng.normal(0.0, STRUCTURED_WHITE_SD, n_samples),
        "hum": hum(rng, n_samples, sample_rate),
        "bursts": burst_train(rng, n_samples),
    }


def bursts(rng: np.random.Generator, n_samples: int, sample_rate: float) -> Array:
    """Pink (sd 0.15), white (sd 0.05), mains hum and about 3 bursts per window."""
    return total(bursts_components(rng, n_samples, sample_rate))


def telegraph_components(
    rng: np.random.Generator, n_samples: int, sample_rate: float
) -> dict[str, Array]:
    """The parts of `telegraph`: levels and white."""
    del sample_rate
    return {
        "levels": telegraph_levels(rng, n_samples),
        "white": rng.normal(0.0, STRUCTURED_WHITE_SD, n_samples),
    }


def telegraph(rng: np.random.Generator, n_samples: int, sample_rate: float) -> Array:
    """Random switching between +-0.3, mean dwell 30 samples, and white (sd 0.05)."""
    return total(telegraph_components(rng, n_samples, sample_rate))


def pump_components(
    rng: np.random.Generator, n_samples: int, sample_rate: float
) -> dict[str, Array]:
    """The parts of `pump`: pink, white and pulse."""
    phase = rng.random()
    time = np.arange(n_samples) / sample_rate
    return {
        "pink": pink_noise(rng, n_samples, sample_rate, sd=STRUCTURED_PINK_SD),
        "white": rng.normal(0.0, STRUCTURED_WHITE_SD, n_samples),
        "pulse": pulse_waveform(phase + PULSE_FREQUENCY * time),
    }


def pump(rng: np.random.Generator, n_samples: int, sample_rate: float) -> Array:
    """Pink (sd 0.15), white (sd 0.05) and a pulse (sd 0.5) repeating at 1.413 Hz.

    The pulse keeps its random phase for the whole record.
    """
    return total(pump_components(rng, n_samples, sample_rate))


def total(components: Mapping[str, Array]) -> Array:
    """Sum of the components, (n_samples,)."""
    return np.sum(list(components.values()), axis=0)
