"""Time and memory of one long measurement, separated as a whole.

One sinusoid goes through all of the record; its windows share the parameters, and each
has noise of its own: a first-order autoregressive process under a `gaussian` prior that
knows it, or the bundled prior's instrument. Memory is the largest of the process.

    python examples/long_record.py
    python examples/long_record.py --samples 100000 --bundled
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import click
import numpy as np
import torch
from make_example import RATE as EXAMPLE_RATE
from make_example import recording
from scipy.signal import lfilter

import sepprior
from sepprior.priors import GaussianPrior, Prior

BUNDLED = Path(sepprior.__file__).parent / "data_files" / "example_prior.safetensors"
WINDOW, RATE, POLE = 300, 30.0, 0.8


def peak_memory() -> float:
    """Largest memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def known_noise(n: int) -> tuple[Prior, np.ndarray]:
    """A process of unit variance with a correlation of 0.8, and its prior."""
    covariance = POLE ** torch.arange(WINDOW, dtype=torch.float64)
    prior = GaussianPrior(covariance, level=0.0, sample_rate=RATE)
    steps = np.random.default_rng(0).normal(scale=(1 - POLE**2) ** 0.5, size=n)
    return prior, lfilter([1.0], [1.0, -POLE], steps)


def instrument_noise(n: int) -> tuple[Prior, np.ndarray]:
    """The bundled prior, and its instrument's noise, as it was not trained on."""
    return sepprior.load_prior(BUNDLED), recording(n / EXAMPLE_RATE, seed=1)


@click.command(help=__doc__.split("\n\n", maxsplit=1)[0])
@click.option("--samples", type=int, default=10**7, show_default=True)
@click.option("--bundled", is_flag=True, help="The prior that comes with sepprior.")
def main(samples: int, bundled: bool) -> None:
    """Separate one record, and say what it took."""
    G, x = (instrument_noise if bundled else known_noise)(samples)
    amplitude = 0.3 * float(x.std())
    frequency = 0.0433 * G.sample_rate
    phase = 2 * np.pi * frequency / G.sample_rate
    for begin in range(0, samples, 2**18):  # in place: no second array of that length
        part = x[begin : begin + 2**18]
        part += amplitude * np.sin(phase * (begin + np.arange(len(part))))
    start, processor = time.perf_counter(), time.process_time()
    result = sepprior.separate(x, G, fmin=0.95 * frequency, fmax=1.05 * frequency)
    print(
        f"{samples} samples, prior {G.name}: {time.perf_counter() - start:.0f} s, "
        f"{time.process_time() - processor:.0f} s of processor, "
        f"{peak_memory():.2f} GB in all"
    )
    found = result.parameters["frequency"]
    print(
        f"frequency {frequency:.9g} Hz, found {found.value:.9g} +/- {found.stderr:.1g}"
    )
    print(f"status: {result.status}")


if __name__ == "__main__":
    main()
