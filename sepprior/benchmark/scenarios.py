"""Synthetic noise and trials with a known answer.

A *scenario* is a recipe for stationary noise, a *cell* a scenario at one window
duration ``T``. Every window holds 300 samples, so a cell's sample rate is ``300 / T``.
The measurements of a cell are

    x_n = A sin(2 pi f t_n + phi) + b + noise_n,        t_n = n / sample_rate,

with A log-uniform in [0.1, 10], f uniform in [1, 2] Hz, b uniform in [0.1, 10] and phi
uniform in (-pi, pi].

Your own scenario is ``Scenario("mine", function)`` with a noise function as in
`sepprior.benchmark.noise`, or `recorded_scenario`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from sepprior.benchmark.noise import WINDOW as WINDOW
from sepprior.benchmark.noise import (
    Array,
    bursts_components,
    pump_components,
    telegraph_components,
    total,
)
from sepprior.benchmark.noise import ar2 as ar2
from sepprior.benchmark.noise import bursts as bursts
from sepprior.benchmark.noise import pink as pink
from sepprior.benchmark.noise import pump as pump
from sepprior.benchmark.noise import telegraph as telegraph
from sepprior.benchmark.noise import white as white
from sepprior.errors import SeppriorError

NoiseFunction = Callable[[np.random.Generator, int, float], Array]
ComponentsFunction = Callable[[np.random.Generator, int, float], dict[str, Array]]

RECORD_WINDOWS = 1000
"""Windows in the whole noise-only record; a shorter record is its beginning."""
RUN_WINDOWS = 20
"""Windows of one run of the record: the instrument is recorded 50 times."""
FMIN, FMAX = 0.8, 2.5
"""Search band in Hz, the same for every method."""
PARAMETERS = ("amplitude", "frequency", "phase", "bias")


@dataclass(frozen=True)
class Scenario:
    """A recipe for noise.

    Attributes:
        name: Key of the scenario; it also seeds its random streams.
        noise: ``(rng, n_samples, sample_rate) -> (n_samples,)``.
        components: The same noise in parts, or None when it has only one.
        known: Names of the components that an oracle is told.
        record_noise: Where the noise-only record comes from, when that is not `noise`:
            one continuous series.
    """

    name: str
    noise: NoiseFunction
    components: ComponentsFunction | None = None
    known: tuple[str, ...] = ()
    record_noise: NoiseFunction | None = None

    def parts(
        self, rng: np.random.Generator, n_samples: int, sample_rate: float
    ) -> dict[str, Array]:
        """The noise as a dict of components, each (n_samples,), that sum to it."""
        if self.components is None:
            return {self.name: self.noise(rng, n_samples, sample_rate)}
        return self.components(rng, n_samples, sample_rate)


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("white", white),
        Scenario("pink", pink),
        Scenario("ar2", ar2),
        Scenario("bursts", bursts, bursts_components, ("bursts",)),
        Scenario("telegraph", telegraph, telegraph_components, ("levels",)),
        Scenario("pump", pump, pump_components, ("pulse",)),
    )
}


def get_scenario(scenario: str | Scenario) -> Scenario:
    """Look a scenario up by name; a `Scenario` is returned as it is.

    Raises:
        SeppriorError: The name is unknown.
    """
    if isinstance(scenario, Scenario):
        return scenario
    if scenario not in SCENARIOS:
        raise SeppriorError(
            f"unknown scenario {scenario!r}: expected one of {', '.join(SCENARIOS)}"
        )
    return SCENARIOS[scenario]


def recorded_scenario(name: str, values: Array) -> Scenario:
    """A scenario whose noise is cut from a recording at random places.

    The samples of the recording are taken to be at the sample rate of the cell. The
    training record comes from the first half, the noise of the trials from the second,
    so that no method has seen the noise that it is tested on.

    Args:
        name: Name of the scenario.
        values: (M,) recorded noise, M at least four windows.

    Raises:
        SeppriorError: The recording is too short, not one-dimensional or not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size < 4 * WINDOW or not np.isfinite(values).all():
        raise SeppriorError(
            f"recorded noise {name!r} has shape {values.shape}: expected one series of "
            f"at least {4 * WINDOW} finite samples"
        )
    half = values.size // 2

    def crop(rng: np.random.Generator, n_samples: int, sample_rate: float) -> Array:
        del sample_rate
        start = rng.integers(values.size - half - n_samples + 1)
        return values[half + start : half + start + n_samples].copy()

    def record(rng: np.random.Generator, n_samples: int, sample_rate: float) -> Array:
        del rng, sample_rate
        return values[: min(half, n_samples)].copy()

    return Scenario(name, crop, record_noise=record)


# --- cells and trials ---------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A scenario at one window duration (s); the label is e.g. ``pink10``."""

    scenario: Scenario
    duration: float

    @property
    def sample_rate(self) -> float:
        """Samples per second, ``300 / duration``."""
        return WINDOW / self.duration

    @property
    def label(self) -> str:
        """Name of the scenario followed by the duration in seconds."""
        return f"{self.scenario.name}{self.duration:g}"


def cell(name: str | Scenario, T: float) -> Cell:
    """The cell of scenario `name` with windows of `T` seconds.

    Raises:
        SeppriorError: Unknown scenario, or `T` is not a positive number.
    """
    if not (np.isfinite(T) and T > 0):
        raise SeppriorError(f"window duration {T!r}: expected a positive number (s)")
    return Cell(get_scenario(name), float(T))


@dataclass(frozen=True)
class Trials:
    """Measurements with their true parameters.

    Attributes:
        x: (n, 300) measurements.
        truth: The true values of `PARAMETERS`, each (n,).
        noise: (n, 300) noise in `x`.
        components: The parts of the noise, each (n, 300).
        cell: Scenario and duration.
        sample_rate: Samples per second.
        fmin: Lower end of the search band in Hz.
        fmax: Upper end of the search band in Hz.
    """

    x: Array
    truth: dict[str, Array]
    noise: Array
    components: dict[str, Array]
    cell: Cell
    sample_rate: float
    fmin: float = FMIN
    fmax: float = FMAX

    @property
    def time(self) -> Array:
        """(300,) seconds."""
        return np.arange(self.x.shape[1]) / self.sample_rate

    def first(self, n: int) -> Trials:
        """The first `n` trials."""
        return replace(
            self,
            x=self.x[:n],
            truth={name: value[:n] for name, value in self.truth.items()},
            noise=self.noise[:n],
            components={name: value[:n] for name, value in self.components.items()},
        )


def sinusoid(time: Array, truth: Mapping[str, Array]) -> Array:
    """``A sin(2 pi f t + phi) + b`` for n sets of parameters, (n, len(time))."""
    a, f, phi, b = (np.asarray(truth[name])[:, None] for name in PARAMETERS)
    return a * np.sin(2 * np.pi * f * time + phi) + b


def draw_signals(rng: np.random.Generator, n: int) -> dict[str, Array]:
    """Parameters of `n` random signals; the first ones do not depend on `n`.

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


def _streams(this: Cell, seed: int) -> list[np.random.SeedSequence]:
    """Independent streams for the training record, the signals and the noise."""
    key = [seed, zlib.crc32(this.scenario.name.encode()), int(this.duration * 10)]
    return np.random.SeedSequence(key).spawn(3)


def make_trials(
    scenario: str | Scenario, T: float, n_trials: int, seed: int = 0
) -> Trials:
    """Draw the measurements of one cell.

    They depend on scenario, `T` and `seed` only, so that every method sees the same
    ones; trial i is the same whatever `n_trials`, and independent of `noise_record`.
    """
    this = cell(scenario, T)
    _, signal_key, noise_key = _streams(this, seed)
    truth = draw_signals(np.random.default_rng(signal_key), n_trials)
    drawn = [
        this.scenario.parts(np.random.default_rng(key), WINDOW, this.sample_rate)
        for key in noise_key.spawn(n_trials)
    ]
    components = {name: np.stack([part[name] for part in drawn]) for name in drawn[0]}
    noise = total(components)
    time = np.arange(WINDOW) / this.sample_rate
    return Trials(
        x=sinusoid(time, truth) + noise,
        truth=truth,
        noise=noise,
        components=components,
        cell=this,
        sample_rate=this.sample_rate,
    )


def noise_record(
    scenario: str | Scenario, T: float, n_windows: int, seed: int = 0
) -> list[Array]:
    """The noise-only record of a cell: separate runs of 20 windows each.

    Every run is drawn with a key of its own, so that what is random between
    measurements (the phases of the hum, of the pump) is random between runs as well;
    one long run would show a single value of it and let a learned prior take that for a
    law. A shorter record is the beginning of a longer one: 20 windows are its first
    run. The record of a scenario with `record_noise` is what was recorded, one run.

    Returns:
        The runs, each (6000,) but for the last one; `n_windows` windows in all, fewer
        when no more was recorded.
    """
    this = cell(scenario, T)
    record_key, _, _ = _streams(this, seed)
    recorded = this.scenario.record_noise
    if recorded is not None:
        rng = np.random.default_rng(record_key)
        return [recorded(rng, WINDOW * n_windows, this.sample_rate)]
    return draw_runs(this.scenario.noise, record_key, n_windows, this.sample_rate)


def draw_runs(
    noise: NoiseFunction,
    key: np.random.SeedSequence,
    n_windows: int,
    sample_rate: float,
) -> list[Array]:
    """Independent runs of up to 20 windows, `n_windows` in all."""
    n_runs = -(-n_windows // RUN_WINDOWS)
    runs = [
        noise(np.random.default_rng(child), WINDOW * RUN_WINDOWS, sample_rate)
        for child in key.spawn(n_runs)
    ]
    runs[-1] = runs[-1][: WINDOW * (n_windows - RUN_WINDOWS * (n_runs - 1))]
    return runs
