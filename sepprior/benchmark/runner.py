"""Run methods on the cells of the benchmark.

All methods of a cell see the same trials. The classical ones get one noise-only run of
20 windows, a learned prior 50 such runs; the first is among them. The result is a long
table with one row per trial and method:

`scenario`, `duration` (s), `method`, `trial`, `amplitude_strong` (the amplitude from
which a trial counts as strong); for every parameter the estimate (`frequency`),
`frequency_true`, `frequency_stderr`, the ends of the 95 % interval (`frequency_low`,
`frequency_high`), the Cramer-Rao bound (`frequency_bound`) and the standard deviation
that a learned score promises (`frequency_learned`); `detection` (a
statistic that is larger where a signal is more likely) and `false_alarm` (the
probability of as much under noise alone, where a method states it); `seconds` and
`seconds_alone` (time per measurement in the batch, and of a measurement fitted on its
own), `training_seconds` and the `status` of the fit. Rows with `amplitude_true` of zero
are of noise alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import pandas as pd

from sepprior.benchmark import trained
from sepprior.benchmark.ablations import ABLATIONS
from sepprior.benchmark.jobs import (
    WITHOUT_PRIOR,
    Job,
    Outcome,
    PriorSource,
    run_job,
    with_seed,
)
from sepprior.benchmark.methods import CLASSICAL
from sepprior.benchmark.noise import WINDOW
from sepprior.benchmark.scenarios import SCENARIOS, Cell, Scenario, cells_of
from sepprior.config import CONFIGS, NoiseConfig, config_from_dict
from sepprior.errors import SeppriorError

RECIPES: Mapping[str, NoiseConfig] = {
    model: config_from_dict({"model": model, "window": WINDOW}) for model in CONFIGS
}
"""Methods that train a prior, one of each model, and its recipe."""

METHODS = (*CLASSICAL, *RECIPES)
"""The methods that are run when none is named: all but the peers."""


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
    """The rows of all methods in all cells; arguments as `plan_benchmark`."""
    jobs = plan_benchmark(
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
    return pd.concat([each.rows for each in run_jobs(jobs)], ignore_index=True)


def plan_benchmark(
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
) -> list[Job]:
    """Lay out the work: one job per method and cell, cell by cell.

    A method with a prior also gives the classical fits that its results carry, as the
    methods ``"<method>:gls"`` and ``"<method>:robust"``.

    Args:
        scenarios: Names or scenarios of your own; all of `SCENARIOS` by default.
        methods: Names of `METHODS`, of `peers.PEERS`, of `recipes` or of `prior_files`;
            all of `METHODS` by default. A prior's name followed by ``/plain`` is the
            textbook latent optimisation with it; see `ABLATIONS` for others.
        durations: Window durations in seconds.
        trials: Measurements per cell, and as many of noise alone.
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
        SeppriorError: Unknown scenario or method, a method without a prior in some
            cell, or no trials asked for.
    """
    files = {name: Path(path) for name, path in (prior_files or {}).items()}
    recipes = {**RECIPES, **(recipes or {})}
    if trials < 1:
        raise SeppriorError(f"{trials} trials: expected at least 1")
    cells = cells_of(list(SCENARIOS) if scenarios is None else scenarios, durations)
    labels = [this.label for this in cells]
    if len(set(labels)) < len(labels):
        raise SeppriorError(
            f"scenarios {', '.join(labels)}: two have the same name, rename one"
        )
    objectives = _objectives(METHODS if methods is None else methods)
    known = {*WITHOUT_PRIOR, *recipes, *(name.split(":")[0] for name in files)}
    for name, wanted in objectives.items():
        if name not in known:
            raise SeppriorError(
                f"unknown method {name!r}: expected one of {', '.join(sorted(known))}"
            )
        if name in WITHOUT_PRIOR and name not in files and wanted != ["joint"]:
            raise SeppriorError(f"method '{name}/plain': {name} has no prior")
    folder = trained.cache_folder() if cache_dir is None else Path(cache_dir)
    jobs = []
    for this in cells:
        for name, wanted in objectives.items():
            file = files.get(f"{name}:{this.label}", files.get(name))
            if file is None and name in WITHOUT_PRIOR:
                jobs.append(Job(this, name, None, trials, seed))
                continue
            for label, recipe in _trainings(this, name, file, recipes, train_seeds):
                shown = {
                    label if each == "joint" else f"{label}/{each}": each
                    for each in wanted
                }
                source = PriorSource(file, recipe, folder, device, shown)
                jobs.append(Job(this, label, source, trials, seed))
    return jobs


def _objectives(methods: Sequence[str]) -> dict[str, list[str]]:
    """The objectives that are asked for, by name of the method or prior."""
    found: dict[str, list[str]] = {}
    for text in methods:
        name, slash, objective = text.partition("/")
        if slash and objective not in ABLATIONS:
            raise SeppriorError(
                f"unknown method {text!r}: after the slash, expected one of "
                f"{', '.join(ABLATIONS)}"
            )
        wanted = found.setdefault(name, [])
        if (objective or "joint") not in wanted:
            wanted.append(objective or "joint")
    return found


def _trainings(
    this: Cell,
    name: str,
    file: Path | None,
    recipes: Mapping[str, NoiseConfig],
    train_seeds: Sequence[int],
) -> list[tuple[str, NoiseConfig | None]]:
    """Names and recipes of the priors of one method; a file needs no recipe."""
    if file is not None:
        return [(name, None)]
    if name not in recipes:
        raise SeppriorError(
            f"no prior for method {name!r} in cell {this.label}: add "
            f"{name + ':' + this.label!r} to the prior files"
        )
    several = len(train_seeds) > 1
    return [
        (f"{name}@{seed}" if several else name, with_seed(recipes[name], seed))
        for seed in train_seeds
    ]


def run_jobs(
    jobs: Sequence[Job], *, processes: int = 1, pieces: Path | None = None
) -> Iterator[Outcome]:
    """Run jobs and yield what came of each: in order, or as they end.

    Args:
        jobs: From `plan_benchmark`.
        processes: How many jobs run at a time, each in a process of its own with one
            thread. Their times are then those of a machine shared with the others.
        pieces: Folder in which the rows of every job are kept; what is already there
            is read instead of run again.
    """
    if processes == 1:
        for job in jobs:
            yield run_job(job, pieces)
        return
    # A fresh interpreter per process: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with (
        _one_thread_each(),
        ProcessPoolExecutor(processes, mp_context=context) as pool,
    ):
        futures = [pool.submit(run_job, job, pieces) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started in this context compute with one thread."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
