"""Measurements per second against batch size, beside scipy on the same windows.

Separates N = 300 windows of a scenario's noise in batches of growing size and, in
between so that all see the same machine, fits the same windows by scipy's generalised
least squares: in a loop, and in a pool of as many processes as torch has threads. Means
over different windows where a batch is small, medians of the repetitions; peak memory
is that of the process, over what importing torch took.

    python examples/throughput.py
    python examples/throughput.py --prior prior.safetensors --scenario bursts \
        --duration 10 --batch 1 --batch 1000
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

import sepprior
from sepprior.benchmark import cell, make_trials
from sepprior.benchmark.baselines import autocovariance, gls_scipy, record_covariance
from sepprior.benchmark.scenarios import SCENARIOS, noise_record
from sepprior.priors import GaussianPrior, Prior

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
AT_ONCE = 1000
"""Largest part of a batch that scipy fits; its cost per fit does not change."""
DIFFERENT = 20
"""Windows at least that are separated, one batch after the other."""


def peak_memory() -> float:
    """Largest memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def each_alone(work: Callable[[np.ndarray], object], batches: list[np.ndarray]) -> None:
    """One call for each batch."""
    for x in batches:
        work(x)


def fit_by_scipy(
    x: np.ndarray, covariance: np.ndarray, rate: float, fmin: float, fmax: float
) -> None:
    """Fit windows by scipy; a function of the module, for the pool."""
    gls_scipy(x, covariance, sample_rate=rate, fmin=fmin, fmax=fmax)


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.option("--prior", type=Path, help="A trained prior.  [default: gaussian]")
@click.option(
    "--scenario",
    type=click.Choice(list(SCENARIOS)),
    default="pump",
    show_default=True,
    help="Its noise.",
)
@click.option("--duration", default=1.0, show_default=True, help="Seconds.")
@click.option("--batch", type=int, multiple=True, default=[1, 10, 100, 1000, 10000])
@click.option("--repeat", type=int, default=3, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(
    prior: Path | None,
    scenario: str,
    duration: float,
    batch: tuple[int, ...],
    repeat: int,
    device: str,
) -> None:
    """Time every batch size and print a table."""
    before = peak_memory()
    this = cell(scenario, duration)
    n_trials = min(max(*batch, DIFFERENT), AT_ONCE)
    trials = make_trials(this.scenario, this.duration, n_trials, 0)
    runs = noise_record(this.scenario, this.duration, 20, 0)
    n = trials.x.shape[1]
    noise: Prior = GaussianPrior(
        torch.from_numpy(autocovariance(runs, n)),
        level=float(runs[0].mean()),
        sample_rate=trials.sample_rate,
    )
    if prior is not None:
        noise = sepprior.load_prior(prior, device=device)
    noise = noise.to(device)
    band = (trials.fmin, trials.fmax)
    separate = partial(
        sepprior.separate,
        prior=noise,
        sample_rate=trials.sample_rate,
        fmin=band[0],
        fmax=band[1],
    )
    covariance = record_covariance(runs, n)
    processes = torch.get_num_threads()
    print(f"prior {noise.name} on {device}, {processes} threads")
    print("  batch  per second  ms each  over scipy  over its pool  GB over import")
    separate(trials.x[:2])
    spawn = multiprocessing.get_context("spawn")
    # Processes of one thread each: with more they stand in each other's way.
    os.environ |= dict.fromkeys(ONE_THREAD, "1")
    with spawn.Pool(1) as one, spawn.Pool(processes) as pool:
        warm = False
        for size in (processes, *batch):
            x = np.resize(trials.x, (max(size, DIFFERENT), n))
            batches = [x[i : i + size] for i in range(0, len(x) - size + 1, size)]
            part = x[:AT_ONCE]
            tasks = [
                (p, covariance, trials.sample_rate, *band)
                for p in np.array_split(part, processes)
            ]
            whole = (part, covariance, trials.sample_rate, *band)
            ours, loop, pooled = [], [], []
            for _ in range(repeat):
                took = seconds(partial(each_alone, separate, batches))
                ours.append(took / (size * len(batches)))
                work = partial(one.starmap, fit_by_scipy, [whole])
                loop.append(seconds(work) / len(part))
                work = partial(pool.starmap, fit_by_scipy, tasks)
                pooled.append(seconds(work) / len(part))
            each = float(np.median(ours))
            if not warm:  # the first round starts the processes
                warm = True
                continue
            print(
                f"{size:7d}  {1 / each:10.0f}  {1e3 * each:7.3f}"
                f"  {np.median(loop) / each:10.2f}  {np.median(pooled) / each:13.2f}"
                f"  {peak_memory() - before:14.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
