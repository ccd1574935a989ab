"""What priors learned of the benchmark's noise: one row of figures for each.

For every scenario, model and seed a prior is trained by the default recipe on the noise
record of the benchmark (1000 windows of 300 samples), or read where `--folder` holds it
already as MODEL-SCENARIO-sSEED.safetensors; a training that was interrupted is
continued. It is then judged as `sepprior inspect` does, against 300 windows that it has
not seen.

    python examples/judge_priors.py --scenario white --model gaussian
    python examples/judge_priors.py --model specgan --seed 0 --seed 1 --seed 2

Columns: PSD error and what of it is the floor (dB), kurtosis generated and real,
speckle gap (nat) and spread (dB), hop-locked variance ratio, accuracy of a classifier
(0.5 is chance), coverage, gain over a Gaussian on held-out noise and its error (nat per
sample), and the same over the Gaussian of the scenario's exact covariance, which no
prior knows.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

import sepprior
from sepprior.benchmark import cell, noise_record
from sepprior.benchmark.bounds import true_autocovariance
from sepprior.config import config_from_dict
from sepprior.data import as_recording
from sepprior.fidelity import Fidelity, inspect_prior
from sepprior.measures import gaussian_nll
from sepprior.priors import Prior
from sepprior.training import train

SCENARIOS = ("white", "pink", "ar2", "bursts", "telegraph", "pump")
TRAINING, HELD_OUT = 1000, 300
"""Windows of the two records, which are drawn with keys of their own."""
HEADER = (
    "prior                      PSD (floor)  kurtosis (real)   gap  spread  "
    "hop  two-sample  coverage  gain                over exact"
)


def prior_of(
    folder: Path, scenario: str, model: str, seed: int, duration: float
) -> Prior:
    """A prior for a scenario's noise: read, or trained (to the end) and kept."""
    path = folder / f"{model}-{scenario}-s{seed}.safetensors"
    begun = path.exists() and "unfinished" in sepprior.load_prior(path).metadata
    if begun or not path.exists():
        this = cell(scenario, duration)
        noise = noise_record(this.scenario, this.duration, TRAINING, 0)
        recording = as_recording(noise, sample_rate=this.sample_rate)
        config = config_from_dict({"model": model, "seed": seed})
        for _ in train(recording, config, output=path, resume=begun):
            pass
    return sepprior.load_prior(path)


def row(name: str, found: Fidelity, exact: float) -> str:
    """The figures of one prior; `exact` is the exact Gaussian's, nat per sample."""
    m = found.measures
    kurtosis, gap, spread, hop = (
        m[k] for k in ("kurtosis", "speckle_gap", "speckle_spread", "hop_variance")
    )
    psd, coverage = m["psd"], m["coverage"]
    accuracy = m["two_sample_accuracy"].error
    gain = f"{found.nll_gain:+.4f} +/- {found.nll_gain_stderr:.4f}"
    return (
        f"{name:25s}  {psd.error:4.2f} ({psd.floor:4.2f})  "
        f"{kurtosis.generated:6.2f} ({kurtosis.real:5.2f})  {gap.generated:5.3f}  "
        f"{spread.generated:5.2f}  {hop.error:4.2f}  {accuracy:9.3f}  "
        f"{coverage.generated:9.2f}  {gain}  {exact - found.nll:+.4f}"
    )


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.option("--scenario", multiple=True, default=SCENARIOS)
@click.option("--model", multiple=True, default=("specgan",), show_default=True)
@click.option("--seed", type=int, multiple=True, default=(0,), show_default=True)
@click.option("--duration", type=float, default=10.0, show_default=True)
@click.option("--folder", type=Path, default=Path("priors"), show_default=True)
def main(
    scenario: tuple[str, ...],
    model: tuple[str, ...],
    seed: tuple[int, ...],
    duration: float,
    folder: Path,
) -> None:
    """Judge every combination."""
    folder.mkdir(parents=True, exist_ok=True)
    print(HEADER)
    for name in scenario:
        this = cell(name, duration)
        held = np.concatenate(noise_record(this.scenario, duration, HELD_OUT, 1))
        windows = held.reshape(HELD_OUT, -1)
        exact = gaussian_nll(windows, true_autocovariance(this), 0.0)
        each = float(exact.mean()) / windows.shape[1]
        for kind in model:
            for number in seed:
                prior = prior_of(folder, name, kind, number, duration)
                found = inspect_prior(prior, windows)
                print(row(f"{kind} {name} {number}", found, each), flush=True)


if __name__ == "__main__":
    main()
