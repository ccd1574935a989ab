"""Score-based likelihood (SLIC) with the networks of score_models."""

from __future__ import annotations

import contextlib
import io

import numpy as np

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
from sepprior.benchmark.settings import PARAMETERS

CROPS = 20_000
STEPS = 60
"""Steps of the ascent, from noise level `FIRST_TIME` to `LAST_TIME`."""
FIRST_TIME, LAST_TIME = 0.5, 0.02


def slic(cell: Cell, runs: Runs) -> Fitter:
    """``ScoreModel(NCSNpp, sde="ve")`` of the noise, climbed from GLS.

    The score of the likelihood is ``-J^T score(x - s(theta))`` (Legin et al., 2023).
    Steps are preconditioned by the covariance of GLS, each at most one of its standard
    deviations; error bars are those of GLS. Trained for as long as a prior is.
    """
    import torch
    from score_models import NCSNpp, ScoreModel  # pyright: ignore[reportMissingImports]

    rng = np.random.default_rng(0)
    crop = Crops(tuple(runs))
    noise = np.stack([crop(rng, WINDOW, cell.sample_rate) for _ in range(CROPS)])
    mean, sd = noise.mean(), noise.std()
    windows = torch.as_tensor((noise - mean) / sd, dtype=torch.float32)[:, None]
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(0)
        network = NCSNpp(channels=1, dimensions=1, nf=32, ch_mult=(1, 2, 2))
        prior = ScoreModel(
            network, sde="ve", sigma_min=0.01, sigma_max=10.0, device="cpu"
        )
        prior.fit(
            torch.utils.data.TensorDataset(windows),
            preprocessing_fn=lambda batch: (
                batch[0] if isinstance(batch, list) else batch
            ),
            epochs=10_000,
            batch_size=128,
            learning_rate=1e-3,
            ema_decay=0.99,
            max_time=BUDGET / 3600,
            seed=0,
        )
    covariance = record_covariance(runs, WINDOW)
    lower = np.linalg.cholesky(covariance)

    def score(residual: Array, t: float) -> Array:
        x = torch.as_tensor((residual - mean) / sd, dtype=torch.float32)[:, None]
        with torch.no_grad():
            found = prior.score(torch.full((len(x),), t), x)
        return found[:, 0].numpy().astype(np.float64) / sd

    def fit(trials: Trials) -> dict[str, Estimate]:
        gls = gls_scipy(trials.x, covariance, **band(trials))
        theta = np.stack([gls[name].value for name in PARAMETERS], axis=1)
        errors = np.stack([gls[name].stderr for name in PARAMETERS], axis=1)
        for t in np.geomspace(FIRST_TIME, LAST_TIME, STEPS):
            signals = np.stack([model(trials.time, *row) for row in theta])
            pull = score(trials.x - signals, float(t))
            for i, row in enumerate(theta):
                slopes = jacobian(trials.time, *row)
                white = np.linalg.solve(lower, slopes)
                information = white.T @ white
                step = -np.linalg.solve(information, slopes.T @ pull[i])
                length = np.sqrt(step @ information @ step)
                theta[i] = row + step / max(1.0, length)
            theta[:, 1] = np.clip(theta[:, 1], trials.fmin, trials.fmax)
        return estimates_of(theta, errors)

    return fit
