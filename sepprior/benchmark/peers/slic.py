"""Score-based likelihood (SLIC) with the networks of score_models."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence

import numpy as np
from scipy.linalg import solve_triangular

from sepprior.benchmark.baselines import (
    Estimate,
    estimates_of,
    gls_scipy,
    jacobian,
    model,
    record_covariance,
)
from sepprior.benchmark.methods import Fitter, Runs, band
from sepprior.benchmark.noise import WINDOW, Array
from sepprior.benchmark.peers.posteriors import BUDGET
from sepprior.benchmark.recorded import Crops
from sepprior.benchmark.scenarios import Cell, Trials
from sepprior.benchmark.settings import PARAMETERS, sinusoid

CROPS = 20_000
TUNING = 100
"""Known signals in crops of the record, on which the last noise level is chosen."""
LEVELS = tuple(float(t) for t in np.geomspace(0.9, 0.02, 60))
"""Times of the diffusion, one step of the ascent at each; its noise is 10^(3t - 2)."""


def slic(cell: Cell, runs: Runs) -> Fitter:
    """``ScoreModel(NCSNpp, sde="ve")`` of the noise, climbed from GLS.

    The score of the likelihood is ``-J^T score(x - s(theta))`` (Legin et al., 2023).
    Steps are preconditioned by the covariance of GLS, each at most one of its standard
    deviations; error bars are those of GLS. Trained for as long as a prior is, and
    followed down to the noise level that does best on known signals in the record.
    """
    import torch
    from score_models import NCSNpp, ScoreModel  # pyright: ignore[reportMissingImports]

    rng = np.random.default_rng(0)
    crop = Crops(tuple(runs))
    noise = np.stack([crop(rng, WINDOW, cell.sample_rate) for _ in range(CROPS)])
    mean, sd = noise.mean(), noise.std()
    windows = torch.as_tensor((noise - mean) / sd, dtype=torch.float32)[:, None]
    with (
        torch.random.fork_rng(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        torch.manual_seed(0)
        network = NCSNpp(
            channels=1, dimensions=1, nf=16, ch_mult=(1, 2, 2), num_res_blocks=1
        )
        prior = ScoreModel(
            network, sde="ve", sigma_min=0.01, sigma_max=10.0, device="cpu"
        )
        prior.fit(
            torch.utils.data.TensorDataset(windows),
            preprocessing_fn=lambda batch: (
                batch[0] if isinstance(batch, list) else batch
            ),
            epochs=1_000_000,
            n_iterations_in_epoch=10,  # the clock is looked at between epochs
            batch_size=16,
            shuffle=True,
            learning_rate=1e-3,
            ema_decay=0.99,
            max_time=BUDGET / 3600,
            seed=0,
        )
    covariance = record_covariance(runs, WINDOW)

    def score(residual: Array, t: float) -> Array:
        x = torch.as_tensor((residual - mean) / sd, dtype=torch.float32)[:, None]
        with torch.no_grad():
            found = prior.score(torch.full((len(x),), t), x)
        return found[:, 0].numpy().astype(np.float64) / sd

    truth = cell.scenario.setting.draw(rng, TUNING)
    times = np.arange(WINDOW) / cell.sample_rate
    tuning = Trials(sinusoid(times, truth) + noise[:TUNING], truth, noise, {}, cell)
    path, errors = climb(tuning, score, covariance, LEVELS)
    # The phase has a seam, and the bias is easy.
    known = np.stack([truth[name] for name in PARAMETERS[:2]], axis=1)
    misses = [np.median(np.abs(theta[:, :2] - known) / errors[:, :2]) for theta in path]
    levels = LEVELS[: 1 + int(np.argmin(misses))]

    def fit(trials: Trials) -> dict[str, Estimate]:
        path, errors = climb(trials, score, covariance, levels)
        return estimates_of(path[-1], errors)

    return fit


def climb(
    trials: Trials,
    score: Callable[[Array, float], Array],
    covariance: Array,
    levels: Sequence[float],
) -> tuple[list[Array], Array]:
    """Ascend the likelihood from GLS by the score of the noise.

    Args:
        trials: n measurements.
        score: gradient of the log-density of noise (n, 300) at a time.
        covariance: (300, 300), for GLS and the steps.
        levels: times, a step at each.

    Returns:
        Parameters (n, 4) after each level, and the standard errors of GLS, (n, 4).
    """
    lower = np.linalg.cholesky(covariance)
    gls = gls_scipy(trials.x, covariance, **band(trials))
    theta = np.stack([gls[name].value for name in PARAMETERS], axis=1)
    errors = np.stack([gls[name].stderr for name in PARAMETERS], axis=1)
    path = []
    for t in levels:
        signals = np.stack([model(trials.time, *row) for row in theta])
        pull = score(trials.x - signals, t)
        theta = theta.copy()
        for i, row in enumerate(theta):
            slopes = jacobian(trials.time, *row)
            white = solve_triangular(lower, slopes, lower=True)
            information = white.T @ white
            step = -np.linalg.solve(information, slopes.T @ pull[i])
            length = np.sqrt(step @ information @ step)
            theta[i] = row + step / max(1.0, length)
        theta[:, 1] = np.clip(theta[:, 1], trials.fmin, trials.fmax)
        path.append(theta)
    return path, errors
