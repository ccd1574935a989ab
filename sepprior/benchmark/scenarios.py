"""Noise and trials with a known answer.

A *scenario* is a recipe for stationary noise, a *cell* a scenario at one window
duration ``T``. Every window holds 300 samples, so a cell's sample rate is ``300 / T``.
The signals of a cell are those of the scenario's `setting`.

Your own scenario is ``Scenario("mine", function)`` with a noise function as in
`sepprior.benchmark.noise`; from files see `sepprior.benchmark.recorded`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

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
from sepprior.benchmark.settings import ARTICLE, STANDARD, Setting, sinusoid
from sepprior.benchmark.settings import PARAMETERS as PARAMETERS
from sepprior.errors import SeppriorError

NoiseFunction = Callable[[np.random.Generator, int, float], Array]
ComponentsFunction = Callable[[np.random.Generator, int, float], dict[str, Array]]

RECORD_WINDOWS = 1000
"""Windows in the whole noise-only record; a shorter record is its beginning."""
RUN_WINDOWS = 20
"""Windows of one run of the record: the instrument is recorded 50 times."""


@dataclass(frozen=True)
class Scenario:
    """A recipe for noise.

    Attributes:
        name: Key of the scenario; it also seeds its random streams.
        noise: ``(rng, n_samples, sample_rate) -> (n_samples,)``.
        components: The same noise in parts, or None when it has only one.
        known: Names of the components that an oracle is told.
        recorded: The noise-only record, where it was recorded and not drawn from
            `noise`: runs (M_i,).
        setting: The signals and the search band.
    """

    name: str
    noise: NoiseFunction
    components: ComponentsFunction | None = None
    known: tuple[str, ...] = ()
    recorded: tuple[Array, ...] = field(default=(), compare=False)
    setting: Setting = STANDARD

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
        Scenario("article", white, setting=ARTICLE),
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


# --- cells and trials ---------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A scenario at one window duration (s)."""

    scenario: Scenario
    duration: float

    @property
    def sample_rate(self) -> float:
        """Samples per second, ``300 / duration``."""
        return WINDOW / self.duration

    @property
    def label(self) -> str:
        """Name and duration in seconds, as ``pink10``; the name where that is fixed."""
        if self.scenario.setting.duration is not None:
            return self.scenario.name
        return f"{self.scenario.name}{self.duration:g}"


def cell(name: str | Scenario, T: float | None = None) -> Cell:
    """The cell of scenario `name` with windows of `T` seconds.

    `T` is left out, or without effect, where the scenario's setting fixes it.

    Raises:
        SeppriorError: Unknown scenario, or `T` is missing or not a positive number.
    """
    scenario = get_scenario(name)
    duration = scenario.setting.duration or T
    if duration is None or not (np.isfinite(duration) and duration > 0):
        raise SeppriorError(f"window duration {T!r}: expected a positive number (s)")
    return Cell(scenario, float(duration))


def cells_of(
    scenarios: Sequence[str | Scenario], durations: Sequence[float]
) -> list[Cell]:
    """Every scenario at every duration, or at its own where it has one."""
    found = []
    for name in scenarios:
        fixed = get_scenario(name).setting.duration
        found += [cell(name, T) for T in ([fixed] if fixed else durations)]
    return found


@dataclass(frozen=True)
class Trials:
    """Measurements with their true parameters.

    Attributes:
        x: (n, 300) measurements.
        truth: The true values of `PARAMETERS`, each (n,). In trials without a signal
            the amplitude is zero, frequency and phase are NaN.
        noise: (n, 300) noise in `x`.
        components: The parts of the noise, each (n, 300).
        cell: Scenario and duration.
    """

    x: Array
    truth: dict[str, Array]
    noise: Array
    components: dict[str, Array]
    cell: Cell

    @property
    def sample_rate(self) -> float:
        """Samples per second."""
        return self.cell.sample_rate

    @property
    def fmin(self) -> float:
        """Lower end of the search band in Hz."""
        return self.cell.scenario.setting.fmin

    @property
    def fmax(self) -> float:
        """Upper end of the search band in Hz."""
        return self.cell.scenario.setting.fmax

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


def _streams(this: Cell, seed: int) -> list[np.random.SeedSequence]:
    """Independent streams: record, signals, noise, and noise without a signal."""
    key = [seed, zlib.crc32(this.scenario.name.encode()), int(this.duration * 10)]
    return np.random.SeedSequence(key).spawn(4)


def make_trials(
    scenario: str | Scenario, T: float | None, n_trials: int, seed: int = 0
) -> Trials:
    """Draw the measurements of one cell.

    They depend on scenario, `T` and `seed` only, so that every method sees the same
    ones; trial i is the same whatever `n_trials`, and independent of `noise_record`.
    """
    this = cell(scenario, T)
    _, signal_key, noise_key, _ = _streams(this, seed)
    truth = this.scenario.setting.draw(np.random.default_rng(signal_key), n_trials)
    components = _draw_noise(this, noise_key, n_trials)
    noise = total(components)
    time = np.arange(WINDOW) / this.sample_rate
    return Trials(sinusoid(time, truth) + noise, truth, noise, components, this)


def make_noise_trials(
    scenario: str | Scenario, T: float | None, n_trials: int, seed: int = 0
) -> Trials:
    """Measurements without a signal, noise and bias alone, to count false alarms on."""
    this = cell(scenario, T)
    *_, noise_key = _streams(this, seed)
    bias_key, noise_key = noise_key.spawn(2)
    drawn = this.scenario.setting.draw(np.random.default_rng(bias_key), n_trials)
    components = _draw_noise(this, noise_key, n_trials)
    noise = total(components)
    nothing = np.full(n_trials, np.nan)
    truth = {"amplitude": np.zeros(n_trials), "frequency": nothing, "phase": nothing}
    truth["bias"] = drawn["bias"]
    return Trials(drawn["bias"][:, None] + noise, truth, noise, components, this)


def _draw_noise(
    this: Cell, key: np.random.SeedSequence, n_trials: int
) -> dict[str, Array]:
    drawn = [
        this.scenario.parts(np.random.default_rng(child), WINDOW, this.sample_rate)
        for child in key.spawn(n_trials)
    ]
    return {name: np.stack([part[name] for part in drawn]) for name in drawn[0]}


def noise_record(
    scenario: str | Scenario, T: float | None, n_windows: int, seed: int = 0
) -> list[Array]:
    """The noise-only record of a cell: separate runs of 20 windows each.

    Every run is drawn with a key of its own, so that what is random between
    measurements (the phases of the hum, of the pump) is random between runs as well;
    one long run would show a single value of it and let a learned prior take that for a
    law. A shorter record is the beginning of a longer one: 20 windows are its first
    run. Where the scenario was recorded, the record is what was recorded.

    Returns:
        The runs, `n_windows` windows in all (fewer when no more was recorded); those
        that are drawn have 6000 samples each, but for the last one.
    """
    this = cell(scenario, T)
    record_key, *_ = _streams(this, seed)
    if this.scenario.recorded:
        return _beginning(this.scenario.recorded, WINDOW * n_windows)
    return draw_runs(this.scenario.noise, record_key, n_windows, this.sample_rate)


def _beginning(runs: Sequence[Array], n_samples: int) -> list[Array]:
    """The first `n_samples` of the runs; the last piece has more than one window."""
    kept = []
    for run in runs:
        piece = run[:n_samples]
        if kept and piece.size <= WINDOW:
            break
        kept.append(piece)
        n_samples -= piece.size
    return kept


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
