"""Priors for the benchmark: trained once per recipe and noise record, then cached.

The only module of the benchmark that calls the library's training, checkpoints and
separation; torch is loaded when the first of them is.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import sepprior
from sepprior.benchmark.ablations import Ablation
from sepprior.benchmark.baselines import jacobian
from sepprior.benchmark.noise import Array
from sepprior.benchmark.scenarios import (
    PARAMETERS,
    RECORD_WINDOWS,
    Cell,
    Trials,
    noise_record,
)
from sepprior.config import NoiseConfig, config_to_dict

if TYPE_CHECKING:
    from sepprior.priors.base import Prior
    from sepprior.result import Separation


def separate_trials(
    trials: Trials, prior: Prior, device: str, ablation: Ablation
) -> Separation:
    """The one place where the benchmark calls the library's own separation."""
    from sepprior.separation import separate

    return separate(
        trials.x,
        prior,
        sample_rate=trials.sample_rate,
        fmin=trials.fmin,
        fmax=trials.fmax,
        objective=ablation.objective,
        starts=ablation.starts,
        device=device,
    )


def learned_bounds(trials: Trials, prior: Prior) -> dict[str, Array]:
    """Standard deviations that the score a prior has learned promises, (n,) each.

    ``sqrt(diag(I^-1 (J^T P J) I^-1))`` with ``I = J^T K J``, K the second moment of the
    score and P that of the score of clean noise (Huber 1967), at the solver's last
    level: what can be reached in noise whose density is known only through the prior.
    In Gaussian noise it is the Cramer-Rao bound. NaN for priors without a score.
    """
    import torch

    from sepprior.priors import ScorePrior

    n = len(trials.x)
    if not isinstance(prior, ScorePrior):
        return {name: np.full(n, np.nan) for name in PARAMETERS}
    rows = zip(*(trials.truth[name] for name in PARAMETERS), strict=True)
    slopes = np.stack([jacobian(trials.time, *row).T for row in rows])
    white = prior.features(torch.from_numpy(slopes).to(prior.device))
    last = len(prior.levels) - 1
    inverse = torch.linalg.inv(white @ prior.information_matrix(last) @ white.mT)
    scatter = white @ prior.scatter_matrix(last) @ white.mT
    covariance = inverse @ scatter @ inverse
    bound = covariance.diagonal(dim1=-2, dim2=-1).sqrt().cpu().numpy()
    return dict(zip(PARAMETERS, bound.T, strict=True))


def train(
    runs: list[Array], sample_rate: float, recipe: NoiseConfig, device: str
) -> Prior:
    """The one place where the benchmark trains a prior."""
    from sepprior.training import train_noise

    return train_noise(runs, sample_rate=sample_rate, config=recipe, device=device)


def load(path: Path, device: str) -> Prior:
    """Read a prior from its file."""
    from sepprior.checkpoint import load_prior

    return load_prior(path, device=device)


def save(prior: Prior, path: Path) -> None:
    """Write a prior to its file."""
    from sepprior.checkpoint import save_prior

    save_prior(prior, path)


def cached_prior(
    this: Cell, recipe: NoiseConfig, seed: int, folder: Path, device: str
) -> tuple[Prior, float]:
    """A prior for the noise of a cell, trained once per recipe and record.

    It is always read back from its file, so that a run measures what a user would load.

    Returns:
        The prior, and how many seconds its training took.
    """
    runs = noise_record(this.scenario, this.duration, RECORD_WINDOWS, seed)
    key = json.dumps(
        {
            "recipe": config_to_dict(recipe),
            "sample_rate": this.sample_rate,
            "version": sepprior.__version__,
        },
        sort_keys=True,
    )
    digest = hashlib.sha256(key.encode() + np.concatenate(runs).tobytes()).hexdigest()[
        :16
    ]
    path = folder / f"{recipe.model}-{this.label}-{digest}.safetensors"
    note = path.with_suffix(".json")
    if not (path.exists() and note.exists()):
        start = time.perf_counter()
        prior = train(runs, this.sample_rate, recipe, device)
        cost = {"training_seconds": time.perf_counter() - start}
        folder.mkdir(parents=True, exist_ok=True)
        save(prior, path)
        note.write_text(json.dumps(cost), encoding="utf-8")
    cost = json.loads(note.read_text(encoding="utf-8"))
    return load(path, device), float(cost["training_seconds"])


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/sepprior/benchmark``, by default below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sepprior" / "benchmark"
