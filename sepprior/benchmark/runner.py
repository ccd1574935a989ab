"""Run methods on the cells of the benchmark and tabulate the scores.

All methods of a cell see the same trials. The classical ones get one noise-only run of
20 windows, a learned prior 50 such runs; the first is among them. The result is a long
table with one row per trial and method:

`scenario`, `duration` (s), `method`, `trial`; for every parameter the estimate
(`frequency`), `frequency_true`, `frequency_stderr`, the ends of the 95 % interval
(`frequency_low`, `frequency_high`) and the Cramer-Rao bound (`frequency_bound`);
`seconds` and `seconds_alone` (time per measurement in the batch, and of a measurement
fitted on its own), `training_seconds` and the `status` of the fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from sepprior.benchmark import scores, trained
from sepprior.benchmark.baselines import (
    Estimate,
    cauchy_scipy,
    curve_fit_plain,
    gls_scipy,
    record_covariance,
)
from sepprior.benchmark.bounds import gls_true, oracle, trial_bounds
from sepprior.benchmark.noise import WINDOW, Array
from sepprior.benchmark.scenarios import (
    PARAMETERS,
    SCENARIOS,
    Cell,
    Scenario,
    Trials,
    cell,
    make_trials,
    noise_record,
)
from sepprior.config import (
    GaussianConfig,
    NoiseConfig,
    SpecGANConfig,
)
from sepprior.errors import SeppriorError

if TYPE_CHECKING:
    from sepprior.priors.base import Prior
    from sepprior.result import Parameter

Runs = Sequence[Array]

CLASSICAL_WINDOWS = 20
"""Windows of the noise-only record for the classical methods: its first run."""

RECIPES: Mapping[str, NoiseConfig] = {
    "gaussian": GaussianConfig(window=WINDOW),
    "specgan": SpecGANConfig(window=WINDOW),
}
"""Methods that train a prior, and its recipe."""


# --- the classical methods ----------------------------------------------------------


def _curve_fit(trials: Trials, runs: Runs) -> dict[str, Estimate]:
    del runs
    return curve_fit_plain(
        trials.x, sample_rate=trials.sample_rate, fmin=trials.fmin, fmax=trials.fmax
    )


def _gls(trials: Trials, runs: Runs) -> dict[str, Estimate]:
    return gls_scipy(
        trials.x,
        record_covariance(runs, trials.x.shape[1]),
        sample_rate=trials.sample_rate,
        fmin=trials.fmin,
        fmax=trials.fmax,
    )


def _cauchy(trials: Trials, runs: Runs) -> dict[str, Estimate]:
    return cauchy_scipy(
        trials.x,
        runs,
        sample_rate=trials.sample_rate,
        fmin=trials.fmin,
        fmax=trials.fmax,
    )


def _gls_true(trials: Trials, runs: Runs) -> dict[str, Estimate]:
    del runs
    return gls_true(trials)


def _oracle(trials: Trials, runs: Runs) -> dict[str, Estimate]:
    del runs
    return oracle(trials)


CLASSICAL: Mapping[str, Callable[[Trials, Runs], dict[str, Estimate]]] = {
    "curve_fit": _curve_fit,
    "gls_scipy": _gls,
    "cauchy_scipy": _cauchy,
    "gls_true": _gls_true,
    "oracle": _oracle,
}
"""Methods that need no prior: ``(trials, runs of 20 windows) -> estimates``."""

METHODS = (*CLASSICAL, *RECIPES)
"""Every method, in the order of the tables."""


# --- the run ------------------------------------------------------------------------


def run_benchmark(
    scenarios: Sequence[str | Scenario] | None = None,
    methods: Sequence[str] | None = None,
    durations: Sequence[float] = (10.0, 1.0),
    trials: int = 400,
    seed: int = 0,
    *,
    prior_files: Mapping[str, str | Path] | None = None,
    recipes: Mapping[str, NoiseConfig] | None = None,
    train_seeds: Sequence[int] = (0,),
    cache_dir: str | Path | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """All rows of `iterate_benchmark`, which has the arguments, in one table."""
    pieces = iterate_benchmark(
        scenarios,
        methods,
        durations,
        trials,
        seed,
        prior_files=prior_files,
        recipes=recipes,
        train_seeds=train_seeds,
        cache_dir=cache_dir,
        device=device,
    )
    return pd.concat(list(pieces), ignore_index=True)


def iterate_benchmark(
    scenarios: Sequence[str | Scenario] | None = None,
    methods: Sequence[str] | None = None,
    durations: Sequence[float] = (10.0, 1.0),
    trials: int = 400,
    seed: int = 0,
    *,
    prior_files: Mapping[str, str | Path] | None = None,
    recipes: Mapping[str, NoiseConfig] | None = None,
    train_seeds: Sequence[int] = (0,),
    cache_dir: str | Path | None = None,
    device: str = "auto",
) -> Iterator[pd.DataFrame]:
    """Run every method on every cell; yields the rows of one method in one cell.

    A method with a prior also yields the classical fits that its results carry, as the
    methods ``"<method>:gls"`` and ``"<method>:robust"``.

    Args:
        scenarios: Names or scenarios of your own; all of `SCENARIOS` by default.
        methods: Names of `METHODS`, of `recipes` or of `prior_files`; all of `METHODS`
            by default.
        durations: Window durations in seconds.
        trials: Measurements per cell.
        seed: Key of the trials and of the records.
        prior_files: Priors to use instead of training one: by method
            (``"specgan"``), or by method and cell (``"specgan:pink10"``).
        recipes: Further training recipes by method name, or other ones for the names in
            `RECIPES`.
        train_seeds: Seeds of the training, each with a prior of its own on the same
            record; when there are several, method ``m`` appears as ``m@seed``.
        cache_dir: Where trained priors are kept; by default the user's cache folder.
        device: "auto", "cpu" or "cuda".

    Raises:
        SeppriorError: Unknown scenario or method, or no trials asked for. Raised
            before anything is computed.
    """
    prior_files = dict(prior_files or {})
    recipes = {**RECIPES, **(recipes or {})}
    methods = tuple(METHODS if methods is None else methods)
    known = {*CLASSICAL, *recipes, *(name.split(":")[0] for name in prior_files)}
    for method in methods:
        if method not in known:
            raise SeppriorError(
                f"unknown method {method!r}: expected one of {', '.join(sorted(known))}"
            )
    if trials < 1:
        raise SeppriorError(f"{trials} trials: expected at least 1")
    names = SCENARIOS if scenarios is None else scenarios
    cells = [cell(name, duration) for name in names for duration in durations]
    folder = trained.cache_folder() if cache_dir is None else Path(cache_dir)
    seeds = tuple(train_seeds)
    return _run_cells(
        cells, methods, trials, seed, prior_files, recipes, seeds, folder, device
    )


def _run_cells(
    cells: Sequence[Cell],
    methods: Sequence[str],
    n_trials: int,
    seed: int,
    prior_files: Mapping[str, str | Path],
    recipes: Mapping[str, NoiseConfig],
    train_seeds: tuple[int, ...],
    folder: Path,
    device: str,
) -> Iterator[pd.DataFrame]:
    for this in cells:
        trials = make_trials(this.scenario, this.duration, n_trials, seed)
        bounds = trial_bounds(trials)
        for method in methods:
            path = prior_files.get(f"{method}:{this.label}", prior_files.get(method))
            if path is not None:
                prior = trained.load(Path(path), device)
                fits = _run_prior(method, prior, float("nan"), trials, device)
            elif method in CLASSICAL:
                fits = _run_classical(method, trials, seed)
            elif method in recipes:
                fits = []
                for train_seed in train_seeds:
                    recipe = replace(recipes[method], seed=train_seed)
                    prior, seconds = trained.cached_prior(
                        this, recipe, seed, folder, device
                    )
                    label = f"{method}@{train_seed}" if train_seeds[1:] else method
                    fits += _run_prior(label, prior, seconds, trials, device)
            else:
                raise SeppriorError(
                    f"no prior for method {method!r} in cell {this.label}: add "
                    f"{method + ':' + this.label!r} to the prior files"
                )
            for fit in fits:
                yield _rows(fit, trials, bounds)


class _Fit(NamedTuple):
    """Estimates of one method in one cell, and what they cost."""

    method: str
    estimates: dict[str, Estimate]
    intervals: dict[str, Array]  # (n, 2) ends of the 95 % intervals
    status: Sequence[str]
    seconds: float
    seconds_alone: float
    training_seconds: float


def _run_classical(method: str, trials: Trials, seed: int) -> list[_Fit]:
    this = trials.cell
    runs = noise_record(this.scenario, this.duration, CLASSICAL_WINDOWS, seed)
    fit = CLASSICAL[method]
    start = time.perf_counter()
    estimates = fit(trials, runs)
    middle = time.perf_counter()
    fit(trials.first(1), runs)
    end = time.perf_counter()
    return [
        _Fit(
            method,
            estimates,
            {name: scores.gaussian_interval(*estimates[name]) for name in PARAMETERS},
            [""] * len(trials.x),
            (middle - start) / len(trials.x),
            end - middle,
            float("nan"),
        )
    ]


def _run_prior(
    method: str, prior: Prior, training_seconds: float, trials: Trials, device: str
) -> list[_Fit]:
    start = time.perf_counter()
    result = trained.separate_trials(trials, prior, device)
    middle = time.perf_counter()
    trained.separate_trials(trials.first(1), prior, device)
    end = time.perf_counter()
    status = [result.status] if isinstance(result.status, str) else result.status
    seconds = (middle - start) / len(trials.x)
    fits = [
        _Fit(
            method,
            _estimates(result.parameters),
            _intervals(result.parameters),
            status,
            seconds,
            end - middle,
            training_seconds,
        )
    ]
    nan = float("nan")
    for name, parameters in result.baselines.items():
        fits.append(
            _Fit(
                f"{method}:{name}",
                _estimates(parameters),
                _intervals(parameters),
                [""] * len(trials.x),
                nan,
                nan,
                nan,
            )
        )
    return fits


def _estimates(parameters: Mapping[str, Parameter]) -> dict[str, Estimate]:
    return {
        name: Estimate(
            np.atleast_1d(np.asarray(parameters[name].value, dtype=np.float64)),
            np.atleast_1d(np.asarray(parameters[name].stderr, dtype=np.float64)),
        )
        for name in PARAMETERS
    }


def _intervals(parameters: Mapping[str, Parameter]) -> dict[str, Array]:
    return {
        name: np.asarray(parameters[name].ci95, dtype=np.float64).reshape(-1, 2)
        for name in PARAMETERS
    }


def _rows(fit: _Fit, trials: Trials, bounds: Mapping[str, Array]) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "scenario": trials.cell.scenario.name,
        "duration": trials.cell.duration,
        "method": fit.method,
        "trial": np.arange(len(trials.x)),
    }
    for name in PARAMETERS:
        columns[name] = fit.estimates[name].value
        columns[f"{name}_true"] = trials.truth[name]
        columns[f"{name}_stderr"] = fit.estimates[name].stderr
        columns[f"{name}_low"], columns[f"{name}_high"] = fit.intervals[name].T
        columns[f"{name}_bound"] = bounds[name]
    columns["seconds"] = fit.seconds
    columns["seconds_alone"] = fit.seconds_alone
    columns["training_seconds"] = fit.training_seconds
    columns["status"] = list(fit.status)
    return pd.DataFrame(columns)
