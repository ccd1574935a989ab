"""A small noise recording and priors trained on it, shared by the tests."""

from collections.abc import Generator
from typing import Any, TypeVar

import numpy as np
import pytest
from scipy.signal import lfilter

from sepprior.config import GaussianConfig, SpecGANConfig
from sepprior.data import Recording, as_recording
from sepprior.priors import GaussianPrior, SpecGANPrior, beats_gaussian

Learned = TypeVar("Learned")

WINDOW = 64
SAMPLE_RATE = 100.0
LEVEL = 0.5
TINY = SpecGANConfig(
    window=WINDOW,
    width=4,
    critic_width=4,
    latent=4,
    latent_row="no",
    steps=20,
    warmup_steps=10,
    batch=8,
    tick=5,
)
"""Twenty steps of a network of a few thousand weights: seconds, not a good prior."""


def coloured_noise(n: int, *, seed: int) -> np.ndarray:
    """AR(1) noise, pole 0.6, innovations of unit variance, around `LEVEL`."""
    white = np.random.default_rng(seed).standard_normal(n + 100)
    return lfilter([1.0], [1.0, -0.6], white)[100:] + LEVEL


def finish(
    stream: Generator[dict[str, Any], None, Learned],
) -> tuple[list[dict[str, Any]], Learned]:
    """All records of a training run, and what it learned."""
    records = []
    while True:
        try:
            records.append(next(stream))
        except StopIteration as end:
            return records, end.value


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what the clock says."""
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


@pytest.fixture(scope="session")
def recording() -> Recording:
    return as_recording(coloured_noise(200 * WINDOW, seed=1), sample_rate=SAMPLE_RATE)


@pytest.fixture(scope="session")
def gaussian_prior(recording: Recording) -> GaussianPrior:
    return _train(recording, GaussianConfig(window=WINDOW))


def bursts(n: int, *, seed: int) -> np.ndarray:
    """`coloured_noise` whose loudness wanders by a factor of 2.5 each way."""
    draws = np.random.default_rng(seed).standard_normal(n // 128 + 2)
    loudness = np.interp(np.arange(n) / 128, np.arange(len(draws)), 0.9 * draws)
    return np.exp(loudness) * (coloured_noise(n, seed=seed) - LEVEL) + LEVEL


@pytest.fixture(scope="session")
def bursts_recording() -> Recording:
    return as_recording(bursts(200 * WINDOW, seed=1), sample_rate=SAMPLE_RATE)


@pytest.fixture(scope="session")
def specgan_prior(bursts_recording: Recording) -> SpecGANPrior:
    """A prior that `separate` uses: it gains over the Gaussian, as it should here."""
    prior = _train(bursts_recording, TINY)
    assert beats_gaussian(prior.metadata["heldout"])
    assert "joint" in prior.metadata["calibration"]
    return prior


def _train(recording: Recording, config):
    from sepprior.inference import calibration
    from sepprior.training import train_noise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "trials_per_band", lambda window, *, joint: 40)
        return train_noise(recording, config=config, device="cpu")
