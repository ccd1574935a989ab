"""Posteriors by nested sampling (bilby) and by an amortised network (sbi)."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings

import numpy as np
from scipy.linalg import solve_triangular

from sepprior.benchmark.baselines import (
    Estimate,
    model,
    record_covariance,
    wrap,
)
from sepprior.benchmark.methods import Fitter, Runs
from sepprior.benchmark.noise import WINDOW, Array
from sepprior.benchmark.recorded import Crops
from sepprior.benchmark.scenarios import Cell, Trials
from sepprior.benchmark.settings import PARAMETERS, sinusoid

LIVE_POINTS = 250
SIMULATIONS = 40_000
BUDGET = 300.0
"""Seconds of training: what the small recipe of the default prior takes."""
POSTERIOR_SAMPLES = 1000


def from_samples(samples: Array) -> dict[str, Estimate]:
    """Medians, spreads and central 95 % intervals of posterior samples, (n, S, 4).

    Phases are turned about their circular mean first.
    """
    samples = samples.copy()
    center = np.angle(np.mean(np.exp(1j * samples[..., 2]), axis=1))
    samples[..., 2] = wrap(samples[..., 2] - center[:, None])
    low, low68, middle, high68, high = np.percentile(
        samples, [2.5, 15.87, 50, 84.13, 97.5], axis=1
    )
    for ends in (low, middle, high):
        ends[:, 2] += center
    found = {}
    for k, name in enumerate(PARAMETERS):
        value = middle[:, k]
        shift = wrap(value) - value if name == "phase" else 0.0
        interval = np.stack([low[:, k] + shift, high[:, k] + shift], axis=1)
        spread = (high68[:, k] - low68[:, k]) / 2
        found[name] = Estimate(value + shift, spread, interval)
    return found


def bilby_dynesty(cell: Cell, runs: Runs) -> Fitter:
    """``run_sampler(sampler="dynesty")`` with the Gaussian likelihood of GLS.

    The covariance is that of the record; priors are those of the signals, uniform in
    the band for the frequency.
    """
    import bilby  # pyright: ignore[reportMissingImports]

    logging.getLogger("bilby").setLevel(logging.ERROR)
    lower = np.linalg.cholesky(record_covariance(runs, WINDOW))
    times = np.arange(WINDOW) / cell.sample_rate
    setting = cell.scenario.setting

    class Likelihood(bilby.Likelihood):
        def __init__(self, x: Array) -> None:
            super().__init__()
            self.target = solve_triangular(lower, x, lower=True)

        def log_likelihood(self, parameters: dict[str, float]) -> float:
            signal = model(times, *(parameters[name] for name in PARAMETERS))
            white = solve_triangular(lower, signal, lower=True) - self.target
            return float(-0.5 * white @ white)

    def one(x: Array) -> Array:
        unit = setting.strong
        priors = bilby.core.prior.PriorDict(
            {
                "amplitude": bilby.core.prior.LogUniform(0.02 * unit, 20 * unit),
                "frequency": bilby.core.prior.Uniform(setting.fmin, setting.fmax),
                "phase": bilby.core.prior.Uniform(-np.pi, np.pi, boundary="periodic"),
                "bias": bilby.core.prior.Uniform(
                    float(x.mean() - 5 * unit), float(x.mean() + 5 * unit)
                ),
            }
        )
        with tempfile.TemporaryDirectory() as folder:
            result = bilby.run_sampler(
                likelihood=Likelihood(x),
                priors=priors,
                sampler="dynesty",
                nlive=LIVE_POINTS,
                sample="acceptance-walk",
                naccept=20,
                outdir=folder,
                label="fit",
                save=False,
                plot=False,
                verbose=False,
                print_progress=False,
                check_point=False,
                resume=False,
                seed=0,
            )
        posterior = result.posterior[list(PARAMETERS)].to_numpy()
        rng = np.random.default_rng(0)
        return posterior[rng.integers(len(posterior), size=POSTERIOR_SAMPLES)]

    def fit(trials: Trials) -> dict[str, Estimate]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return from_samples(np.stack([one(x) for x in trials.x]))

    return fit


def sbi_npe(cell: Cell, runs: Runs) -> Fitter:
    """``NPE`` with a neural spline flow behind a convolutional embedding.

    Trained on 40 000 simulations: signals from their own distribution in crops of the
    noise-only record, for as long as a prior is trained. The phase enters as the two
    quadratures, which have no seam.
    """
    import torch
    from sbi.inference import NPE  # pyright: ignore[reportMissingImports]
    from sbi.neural_nets import posterior_nn  # pyright: ignore[reportMissingImports]
    from sbi.neural_nets.embedding_nets import CNNEmbedding  # pyright: ignore[reportMissingImports]

    rng = np.random.default_rng(0)
    crop = Crops(tuple(runs))
    rate = cell.sample_rate
    truth = cell.scenario.setting.draw(rng, SIMULATIONS)
    times = np.arange(WINDOW) / rate
    noise = np.stack([crop(rng, WINDOW, rate) for _ in range(SIMULATIONS)])
    x = torch.as_tensor(sinusoid(times, truth) + noise, dtype=torch.float32)
    a, f, phi, b = (truth[name] for name in PARAMETERS)
    theta = torch.as_tensor(
        np.stack([a * np.cos(phi), a * np.sin(phi), f, b], axis=1), dtype=torch.float32
    )
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = posterior_nn("nsf", embedding_net=CNNEmbedding((WINDOW,)))
        trainer = NPE(density_estimator=network, show_progress_bars=False)
        trainer.append_simulations(theta, x)
        start = time.perf_counter()
        estimator = trainer.train(max_num_epochs=1)
        while time.perf_counter() - start < BUDGET:
            before = trainer.epoch + 1
            estimator = trainer.train(max_num_epochs=before, resume_training=True)
            if trainer.epoch <= before:  # stopped early: the validation loss rises
                break

    def fit(trials: Trials) -> dict[str, Estimate]:
        given = torch.as_tensor(trials.x, dtype=torch.float32)
        samples = []
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            for each in given:
                drawn = estimator.sample((POSTERIOR_SAMPLES,), condition=each[None])
                samples.append(drawn.reshape(-1, 4).numpy().astype(np.float64))
        cosine, sine, f, b = np.moveaxis(np.stack(samples), -1, 0)
        phi = np.arctan2(sine, cosine)
        return from_samples(np.stack([np.hypot(cosine, sine), f, phi, b], axis=-1))

    return fit
