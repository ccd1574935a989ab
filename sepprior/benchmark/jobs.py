"""One method in one cell: the unit of work that is run, stored and taken up again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from sepprior import __version__
from sepprior.benchmark import scores, trained
from sepprior.benchmark.ablations import ABLATIONS
from sepprior.benchmark.baselines import Estimate
from sepprior.benchmark.bounds import trial_bounds
from sepprior.benchmark.methods import CLASSICAL, Fitter, Method, Unavailable
from sepprior.benchmark.noise import Array
from sepprior.benchmark.peers import PEERS
from sepprior.benchmark.scenarios import (
    PARAMETERS,
    Cell,
    Trials,
    make_noise_trials,
    make_trials,
    noise_record,
)
from sepprior.config import NoiseConfig, config_to_dict
from sepprior.outputs import whole_files

if TYPE_CHECKING:
    from sepprior.priors.base import Prior
    from sepprior.result import Parameter

WITHOUT_PRIOR: Mapping[str, Method] = {**CLASSICAL, **PEERS}
"""Every method that needs no prior."""

SLOW = 1.0
"""Seconds per measurement from which a single one is not timed once more."""


@dataclass(frozen=True)
class PriorSource:
    """Where the prior of a method comes from: a file, or a training.

    Attributes:
        file: The file, or None.
        recipe: The training recipe, or None.
        cache: Folder of the trained priors.
        device: "auto", "cpu" or "cuda".
        objectives: Objective of `separate` by the name under which it appears.
    """

    file: Path | None
    recipe: NoiseConfig | None
    cache: Path
    device: str
    objectives: Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """A method, or a prior with its objectives, on the trials of one cell.

    Attributes:
        cell: Scenario and duration.
        name: What the method is called in the tables.
        source: Where its prior comes from; None for one of `WITHOUT_PRIOR`.
        n_trials: Trials with a signal, and as many without.
        seed: Key of the trials and of the record.
    """

    cell: Cell
    name: str
    source: PriorSource | None
    n_trials: int
    seed: int

    @property
    def label(self) -> str:
        """Method and cell, for people."""
        return f"{self.name} in {self.cell.label}"

    def key(self) -> str:
        """Fingerprint of everything that the rows depend on but the program itself."""
        content: dict[str, Any] = {
            "cell": [self.cell.label, self.cell.duration],
            "name": self.name,
            "trials": [self.n_trials, self.seed],
            "version": __version__,
        }
        digest = hashlib.sha256()
        for run in self.cell.scenario.recorded:
            digest.update(run.tobytes())
        if self.source is not None:
            content["objectives"] = dict(self.source.objectives)
            if self.source.file is not None:
                digest.update(self.source.file.read_bytes())
            if self.source.recipe is not None:
                content["recipe"] = config_to_dict(self.source.recipe)
        digest.update(json.dumps(content, sort_keys=True).encode())
        return digest.hexdigest()[:16]


class Outcome(NamedTuple):
    """What came of a job: rows, or the reason why there are none."""

    job: Job
    rows: pd.DataFrame
    reason: str | None


def run_job(job: Job, pieces: Path | None = None) -> Outcome:
    """Run a job, or read what it gave before.

    Args:
        job: What to do.
        pieces: Folder in which the rows are kept and looked for, or None.
    """
    path = None if pieces is None else pieces / f"{job.key()}.csv"
    if path is not None and path.exists():
        rows = _read_rows(path)
        return Outcome(job, rows, None)
    try:
        rows = _measure(job)
    except Unavailable as error:
        return Outcome(job, pd.DataFrame(), str(error))
    if path is not None:
        with whole_files(path) as (temporary,):
            rows.to_csv(temporary, index=False)
    return Outcome(job, rows, None)


def _read_rows(path: Path) -> pd.DataFrame:
    """Rows as they were written, every number to the last bit."""
    text = pd.read_csv(path, dtype=str, keep_default_na=False)
    words = ("scenario", "method", "status")
    rows = {
        name: column if name in words else column.replace("", "nan").astype(float)
        for name, column in text.items()
    }
    return pd.DataFrame(rows).astype({"trial": int})


def _measure(job: Job) -> pd.DataFrame:
    this, n_trials = job.cell, job.n_trials
    if job.source is None:
        n_trials = min(n_trials, WITHOUT_PRIOR[job.name].most_trials or n_trials)
    trials = make_trials(this.scenario, this.duration, n_trials, job.seed)
    # Slow methods are not asked for the distribution of noise alone.
    n_noise = n_trials if n_trials == job.n_trials else 0
    noise = make_noise_trials(this.scenario, this.duration, max(n_noise, 1), job.seed)
    noise = noise.first(n_noise)
    if job.source is None:
        fits = _run_method(job, WITHOUT_PRIOR[job.name], trials, noise)
    else:
        fits = _run_prior(job, job.source, trials, noise)
    bounds = trial_bounds(trials)
    nothing = {name: np.full(n_noise, np.nan) for name in PARAMETERS}
    tables = []
    for with_signal, without in fits:
        tables.append(_rows(with_signal, trials, bounds))
        if n_noise and without is not None:
            tables.append(_rows(without, noise, nothing))
    return pd.concat(tables, ignore_index=True)


class Fit(NamedTuple):
    """Estimates of one method in one cell, and what they cost."""

    method: str
    estimates: Mapping[str, Estimate]
    detection: Array  # (n,), larger where a signal is more likely
    false_alarm: Array  # (n,) stated probability under noise alone, or NaN
    status: Sequence[str]
    seconds: float
    seconds_alone: float
    training_seconds: float
    learned: Mapping[str, Array] | None = None  # (n,) promised by a learned score


Fits = list[tuple[Fit, Fit | None]]
NAN = float("nan")


def _run_method(job: Job, method: Method, trials: Trials, noise: Trials) -> Fits:
    this = job.cell
    runs = noise_record(this.scenario, this.duration, method.windows, job.seed)
    start = time.perf_counter()
    try:
        fit = method.prepare(this, runs)
        trained_at = time.perf_counter()
        estimates = fit(trials)
        seconds = (time.perf_counter() - trained_at) / len(trials.x)
        alone = _alone(fit, trials, seconds)
        quiet = fit(noise) if len(noise.x) else None
    except ImportError as error:
        raise Unavailable(
            f"{method.package or error.name} is not installed; "
            "pip install 'sepprior[peers]'"
        ) from error
    except Exception as error:
        # A package of others may fail in ways of its own: the run goes on without it.
        if method.package is None:
            raise
        text = " ".join(str(error).split())
        raise Unavailable(f"{type(error).__name__}: {text}") from error
    training = trained_at - start if method.trains else NAN
    cost = (seconds, alone, training)
    return [
        (
            _plain_fit(job.name, estimates, cost),
            None if quiet is None else _plain_fit(job.name, quiet, cost),
        )
    ]


def _alone(fit: Fitter, trials: Trials, seconds: float) -> float:
    if seconds > SLOW:
        return seconds
    start = time.perf_counter()
    fit(trials.first(1))
    return time.perf_counter() - start


def _plain_fit(
    name: str, estimates: Mapping[str, Estimate], cost: tuple[float, float, float]
) -> Fit:
    """A fit whose detection statistic is the amplitude over its standard error."""
    amplitude = estimates["amplitude"]
    n = len(amplitude.value)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.nan_to_num(amplitude.value / amplitude.stderr, posinf=0.0)
    return Fit(name, estimates, statistic, np.full(n, NAN), [""] * n, *cost)


def _run_prior(job: Job, source: PriorSource, trials: Trials, noise: Trials) -> Fits:
    if source.file is not None:
        prior, training = trained.load(source.file, source.device), NAN
    else:
        assert source.recipe is not None
        prior, training = trained.cached_prior(
            job.cell, source.recipe, job.seed, source.cache, source.device
        )
    fits: Fits = []
    for number, (name, objective) in enumerate(source.objectives.items()):
        fits += _separations(
            name, prior, objective, training, trials, noise, source.device, number == 0
        )
    return fits


def _separations(
    name: str,
    prior: Prior,
    objective: str,
    training: float,
    trials: Trials,
    noise: Trials,
    device: str,
    baselines: bool,
) -> Fits:
    ablation = ABLATIONS[objective]
    reduced = ablation.of(prior)
    start = time.perf_counter()
    result = trained.separate_trials(trials, reduced, device, ablation)
    middle = time.perf_counter()
    trained.separate_trials(trials.first(1), reduced, device, ablation)
    cost = ((middle - start) / len(trials.x), time.perf_counter() - middle, training)
    learned = trained.learned_bounds(trials, prior)
    results = [result]
    if len(noise.x):
        results.append(trained.separate_trials(noise, reduced, device, ablation))
    fits = []
    for each in results:
        status = [each.status] if isinstance(each.status, str) else each.status
        fits.append(
            Fit(
                name,
                _estimates(each.parameters),
                np.atleast_1d(each.diagnostics["loglik_gain"]),
                np.atleast_1d(each.diagnostics["false_alarm_probability"]),
                status,
                *cost,
                learned if each is result else None,
            )
        )
    pairs: Fits = [(fits[0], fits[1] if len(fits) > 1 else None)]
    for other in result.baselines if baselines else ():
        two = [
            _plain_fit(
                f"{name}:{other}", _estimates(each.baselines[other]), (NAN, NAN, NAN)
            )
            for each in results
        ]
        pairs.append((two[0], two[1] if len(two) > 1 else None))
    return pairs


def _estimates(parameters: Mapping[str, Parameter]) -> dict[str, Estimate]:
    return {
        name: Estimate(
            np.atleast_1d(np.asarray(parameters[name].value, dtype=np.float64)),
            np.atleast_1d(np.asarray(parameters[name].stderr, dtype=np.float64)),
            np.asarray(parameters[name].ci95, dtype=np.float64).reshape(-1, 2),
        )
        for name in PARAMETERS
    }


def _rows(fit: Fit, trials: Trials, bounds: Mapping[str, Array]) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "scenario": trials.cell.scenario.name,
        "duration": trials.cell.duration,
        "method": fit.method,
        "trial": np.arange(len(trials.x)),
        "amplitude_strong": trials.cell.scenario.setting.strong,
    }
    nothing = dict.fromkeys(PARAMETERS, NAN)
    for name in PARAMETERS:
        estimate = fit.estimates[name]
        interval = estimate.interval
        if interval is None:
            interval = scores.gaussian_interval(estimate.value, estimate.stderr)
        columns[name] = estimate.value
        columns[f"{name}_true"] = trials.truth[name]
        columns[f"{name}_stderr"] = estimate.stderr
        columns[f"{name}_low"], columns[f"{name}_high"] = interval.T
        columns[f"{name}_bound"] = bounds[name]
        columns[f"{name}_learned"] = (fit.learned or nothing)[name]
    columns["detection"] = fit.detection
    columns["false_alarm"] = fit.false_alarm
    columns["seconds"] = fit.seconds
    columns["seconds_alone"] = fit.seconds_alone
    columns["training_seconds"] = fit.training_seconds
    columns["status"] = list(fit.status)
    return pd.DataFrame(columns)


def with_seed(recipe: NoiseConfig, seed: int) -> NoiseConfig:
    """The recipe with another seed of the training."""
    return replace(recipe, seed=seed)
