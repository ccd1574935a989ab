"""Scenarios from outside: a noise recording, or a function in a Python file."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np

from sepprior.benchmark.noise import WHITE_SD, WINDOW, Array
from sepprior.benchmark.scenarios import RECORD_WINDOWS, NoiseFunction, Scenario
from sepprior.benchmark.settings import injected
from sepprior.data import Recording, split_recording
from sepprior.errors import SeppriorError

MOST_SAMPLES = 10_000_000
"""Samples of the held-out part that are kept to cut trials from."""


@dataclass(frozen=True)
class Crops:
    """Windows at random places of stretches of noise.

    Attributes:
        stretches: Noise without gaps, each (M_i,).
    """

    stretches: tuple[Array, ...]

    def __call__(
        self, rng: np.random.Generator, n_samples: int, sample_rate: float
    ) -> Array:
        """One crop, every place where it fits being as likely."""
        del sample_rate
        counts = [max(0, each.size - n_samples + 1) for each in self.stretches]
        ends = np.cumsum(counts)
        place = int(rng.integers(ends[-1]))
        which = int(np.searchsorted(ends, place, side="right"))
        start = place - int(ends[which]) + counts[which]
        return self.stretches[which][start : start + n_samples].copy()


def recorded_scenario(name: str, recording: Recording) -> Scenario:
    """A scenario whose noise is cut from a recording, for known sinusoids to go into.

    The recording is split by contiguous block, half and half: the noise-only record
    comes from the first part, the noise of the trials from the second, so that no
    method has seen the noise that it is tested on. A window is 300 samples at the
    recording's own rate; the signals are those of `settings.injected`, scaled to the
    spectral density of the record in the search band. Trials of a short recording
    overlap: their errors are then correlated, and intervals over trials too narrow.

    Args:
        name: Name of the scenario.
        recording: Noise alone, with at least two windows without gaps in each half.

    Raises:
        SeppriorError: The recording is too short.
    """
    first, second = split_recording(recording, window=WINDOW, validation_fraction=0.5)
    runs = _stretches(first, 2 * WINDOW, RECORD_WINDOWS * WINDOW)
    tests = _stretches(second, WINDOW, MOST_SAMPLES)
    if not runs or not tests:
        raise SeppriorError(
            f"the noise {name!r} is too short: {recording.n_samples} samples hold no "
            f"stretch of {2 * WINDOW} without gaps to learn from and one of {WINDOW} "
            "to test with; record more"
        )
    duration = WINDOW / recording.sample_rate
    unit = _band_level(runs, recording.sample_rate) / WHITE_SD
    return Scenario(name, Crops(tests), recorded=runs, setting=injected(duration, unit))


def _stretches(recording: Recording, least: int, most: int) -> tuple[Array, ...]:
    """Stretches of at least `least` samples without gaps, at most `most` in all."""
    found, total = [], 0
    for segment in recording.segments:
        values = np.asarray(segment.values[: most - total], dtype=np.float64)
        gaps = np.flatnonzero(np.isnan(values))
        for stretch in np.split(values, gaps):
            stretch = stretch[1:] if stretch.size and np.isnan(stretch[0]) else stretch
            if stretch.size >= least:
                found.append(stretch)
                total += stretch.size
        if most - total < least:
            break
    return tuple(found)


def _band_level(runs: tuple[Array, ...], sample_rate: float) -> float:
    """Standard deviation of white noise as dense as the noise is in the search band."""
    from scipy.signal import welch

    density, weight = 0.0, 0
    for run in runs:
        f, power = welch(run, sample_rate, nperseg=2 * WINDOW)
        cycles = f * WINDOW / sample_rate
        band = (cycles >= 8) & (cycles <= 25)
        density += run.size * float(power[band].mean())
        weight += run.size
    return float(np.sqrt(density / weight * sample_rate / 2))


# --- a function in a file -----------------------------------------------------------


@dataclass(frozen=True)
class FileNoise:
    """A noise function in a Python file, loaded where it is called.

    Attributes:
        path: The file.
        function: Name of the function.
    """

    path: Path
    function: str

    def __call__(
        self, rng: np.random.Generator, n_samples: int, sample_rate: float
    ) -> Array:
        """Call the function and check what it returns."""
        noise = np.asarray(
            _load(self.path, self.function)(rng, n_samples, sample_rate),
            dtype=np.float64,
        )
        if noise.shape != (n_samples,) or not np.isfinite(noise).all():
            raise SeppriorError(
                f"{self.path}:{self.function} returned an array of shape {noise.shape}:"
                f" expected {n_samples} finite samples"
            )
        return noise


def file_scenario(text: str) -> Scenario:
    """The scenario ``FILE.py:FUNCTION``, named after the function.

    The function has the signature ``(rng, n_samples, sample_rate) -> (n_samples,)``.
    The file is run as a program is: give only one that you trust.

    Raises:
        SeppriorError: There is no such file or function.
    """
    name, _, function = text.rpartition(":")
    path = Path(name).resolve()
    _load(path, function)
    return Scenario(function, FileNoise(path, function))


@cache
def _load(path: Path, function: str) -> NoiseFunction:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SeppriorError(
            f"scenario file '{path}' cannot be read: expected FILE.py:FUNCTION"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SeppriorError(
            f"scenario file '{path}' fails with {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise SeppriorError(
            f"scenario file '{path}' has no function {function!r}: expected "
            "FILE.py:FUNCTION"
        )
    return cast(NoiseFunction, found)
