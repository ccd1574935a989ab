"""Real and generated windows side by side, and the form every comparison takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sepprior import measures, two_sample
from sepprior.measures import jackknife_stderr

_BLOCKS = 8  # contiguous blocks of real windows that are dealt into halves
_SPLITS = 5
_EXAMPLES = 3  # waveforms kept for the picture
_HISTOGRAM_BINS = 101


@dataclass(frozen=True)
class Measure:
    """One comparison of generated with real noise.

    Attributes:
        title: name with units, for people.
        error: how far generated is from real noise.
        floor: the same for real against real noise, of half as many windows.
        limit: the largest error that still counts as the same.
        meaning: what a larger error says about the prior.
        generated: the quantity in generated noise; None for a pure distance.
        real: the quantity in real noise; None for a pure distance.
        stderr: standard error of `error`, where there is one.
        ideal: the error of two indistinguishable, endless sets.
    """

    title: str
    error: float
    floor: float
    limit: float
    meaning: str
    generated: float | None = None
    real: float | None = None
    stderr: float | None = None
    ideal: float = 0.0

    @property
    def within(self) -> bool:
        """Whether the error is within the limit (NaN is not)."""
        return bool(self.error <= self.limit)


@dataclass(frozen=True, eq=False)
class Comparison:
    """As many real as generated windows, and what several measures need of them.

    Attributes:
        real: (n, N) in the order of the recording.
        generated: (n, N).
        sample_rate: Hz.
        splits: ways to deal the windows into two halves, as pairs of index arrays.
    """

    real: np.ndarray
    generated: np.ndarray
    sample_rate: float
    splits: tuple[tuple[np.ndarray, np.ndarray], ...]

    @classmethod
    def of(
        cls, real: np.ndarray, generated: np.ndarray, *, sample_rate: float
    ) -> Comparison:
        """Compare; the blocks of real windows are dealt the same way every time.

        Args:
            real: windows (n, N) in the order of the recording, data units.
            generated: as many, (n, N).
            sample_rate: Hz.
        """
        block = np.arange(len(real)) * _BLOCKS // len(real)
        shuffle = np.random.default_rng(0)
        splits = []
        for _ in range(_SPLITS):
            first = np.isin(block, shuffle.permutation(_BLOCKS)[: _BLOCKS // 2])
            splits.append((np.flatnonzero(first), np.flatnonzero(~first)))
        return cls(real, generated, float(sample_rate), tuple(splits))

    @cached_property
    def level(self) -> float:
        """Mean of the real noise, which is subtracted from both."""
        return float(self.real.mean())

    @cached_property
    def scale(self) -> float:
        """Standard deviation of the real noise."""
        return float(self.real.std())

    @cached_property
    def real_spectra(self) -> np.ndarray:
        """(n, F) periodograms."""
        return measures.periodograms(
            self.real - self.level, sample_rate=self.sample_rate
        )

    @cached_property
    def generated_spectra(self) -> np.ndarray:
        """(n, F) periodograms."""
        return measures.periodograms(
            self.generated - self.level, sample_rate=self.sample_rate
        )

    @cached_property
    def real_covariances(self) -> np.ndarray:
        """(n, K) autocovariances of the windows."""
        return measures.autocovariances(self.real - self.level)

    @cached_property
    def generated_covariances(self) -> np.ndarray:
        """(n, K) autocovariances of the windows."""
        return measures.autocovariances(self.generated - self.level)

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, D) of real and generated windows."""
        real = (self.real - self.level) / self.scale
        generated = (self.generated - self.level) / self.scale
        spectrum = measures.periodograms(real).mean(0)
        return (
            two_sample.window_features(real, spectrum),
            two_sample.window_features(generated, spectrum),
        )

    def distance(
        self,
        of: Callable[[np.ndarray, np.ndarray], float],
        real: np.ndarray,
        generated: np.ndarray,
    ) -> tuple[float, float, float]:
        """A distance real to generated, real to real, and its standard error.

        The first two are medians over the splits, at half size: a distance is
        positive by chance alone, and this way it is so by the same amount in both.

        Args:
            of: distance of two sets of rows (m, ...).
            real: a row for each real window, (n, ...).
            generated: a row for each generated window, (n, ...).
        """
        errors, floors = [], []
        for a, b in self.splits:
            floors.append(of(real[a], real[b]))
            errors.append(0.5 * (of(real[a], generated[b]) + of(real[b], generated[a])))
        stderr = math.hypot(
            jackknife_stderr(lambda x: of(x, generated), real, blocks=_BLOCKS),
            jackknife_stderr(lambda x: of(real, x), generated, blocks=_BLOCKS),
        )
        return float(np.median(errors)), float(np.median(floors)), stderr


def curves(pair: Comparison) -> dict[str, np.ndarray]:
    """Arrays that a figure of the comparison shows, by name.

    Args:
        pair: real and generated windows, data units.

    Returns:
        ``frequency`` (Hz) with spectra over it, ``lag`` (s) with autocorrelations,
        ``amplitude`` with densities, ``time`` (s) with some windows of both.
    """
    n_samples = pair.real.shape[1]
    halves = [pair.real_spectra[half].mean(0) for half in pair.splits[0]]
    tiny = np.finfo(float).tiny
    low, high = np.quantile(pair.real, [0.0, 1.0])
    spread = high - low
    edges = np.linspace(low - 0.1 * spread, high + 0.1 * spread, _HISTOGRAM_BINS)
    real_acf, generated_acf = (
        measures.autocorrelation(c)
        for c in (pair.real_covariances, pair.generated_covariances)
    )
    chosen = np.linspace(0, len(pair.real) - 1, _EXAMPLES).astype(int)
    return {
        "frequency": np.fft.rfftfreq(n_samples, 1 / pair.sample_rate),
        "psd_real": pair.real_spectra.mean(0),
        "psd_generated": pair.generated_spectra.mean(0),
        "psd_floor_ratio": np.maximum(halves[1], tiny) / np.maximum(halves[0], tiny),
        "lag": np.arange(len(real_acf)) / pair.sample_rate,
        "autocorrelation_real": real_acf,
        "autocorrelation_generated": generated_acf,
        "amplitude": 0.5 * (edges[1:] + edges[:-1]),
        "amplitude_density_real": np.histogram(pair.real, edges, density=True)[0],
        "amplitude_density_generated": np.histogram(
            pair.generated, edges, density=True
        )[0],
        "time": np.arange(n_samples) / pair.sample_rate,
        "examples_real": pair.real[chosen],
        "examples_generated": pair.generated[chosen],
    }
