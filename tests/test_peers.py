"""Methods of other packages: right where the answer is known, honest where absent.

A package that is not installed is skipped here; `pip install 'sepprior[peers]'`.
"""

import sys

import numpy as np
import pytest

from sepprior.benchmark import (
    make_trials,
    noise_record,
    plan_benchmark,
    run_jobs,
    scores,
)
from sepprior.benchmark.bounds import gls_true, true_covariance
from sepprior.benchmark.peers import PEERS
from sepprior.benchmark.peers.posteriors import from_samples
from sepprior.benchmark.peers.slic import climb
from sepprior.benchmark.scenarios import cell
from sepprior.benchmark.settings import PARAMETERS

MODULES = {
    "lmfit": "lmfit",
    "lombscargle": "astropy",
    "glsar": "statsmodels",
    "celerite2": "celerite2",
    "noisereduce": "noisereduce",
    "pywavelets": "pywt",
}
TOLERANCE = {"noisereduce": 2.0, "pywavelets": 2.0}
"""Denoising biases the measurement by up to this many standard errors of GLS."""


@pytest.mark.parametrize("name", MODULES)
def test_strong_signals_in_white_noise(name):
    """With A > 3 every one of them is at the GLS answer, give or take one error bar."""
    pytest.importorskip(MODULES[name])
    trials = make_trials("white", 10.0, 20, seed=4)
    strong = np.flatnonzero(trials.truth["amplitude"] > 3)[:3]
    keep = np.isin(np.arange(20), strong)
    x, truth = trials.x[keep], {p: v[keep] for p, v in trials.truth.items()}
    few = type(trials)(x, truth, trials.noise[keep], {}, trials.cell)
    method = PEERS[name]
    runs = noise_record("white", 10.0, method.windows, seed=4)
    fit = method.prepare(cell("white", 10.0), runs)(few)
    exact = gls_true(few)
    for p in PARAMETERS:
        off = scores.errors(p, fit[p].value, exact[p].value) / exact[p].stderr
        if name == "lmfit" and p != "bias":
            # Its guess is a line of the FFT, from which it may not get away.
            assert np.median(np.abs(off)) < 20
        else:
            assert np.abs(off).max() < TOLERANCE.get(name, 1.0)


def test_the_ascent_by_a_score_goes_to_the_likeliest_parameters():
    """Gaussian noise about a constant, whose score is known: least squares less it."""
    trials = make_trials("pink", 10.0, 3, seed=4)
    covariance = true_covariance(trials.cell)
    inverse, constant = np.linalg.inv(covariance), 0.1

    def score(residual, t):
        return -(residual - constant) @ inverse

    path, errors = climb(trials, score, covariance, [0.1] * 12)
    exact = gls_true(trials)
    for k, p in enumerate(PARAMETERS):
        expected = exact[p].value - constant * (p == "bias")
        assert np.abs((path[-1][:, k] - expected) / errors[:, k]).max() < 0.05
    # Negative control: the other way it runs off.
    away, _ = climb(trials, lambda r, t: -score(r, t), covariance, [0.1] * 12)
    assert np.abs((away[-1] - path[-1]) / errors).max() > 3


def test_every_peer_says_how_it_is_called():
    for method in PEERS.values():
        assert method.package and method.how


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmfit", None)
    monkeypatch.setitem(sys.modules, "lmfit.models", None)
    (outcome,) = run_jobs(plan_benchmark(["white"], ["lmfit"], (10.0,), trials=2))
    assert outcome.rows.empty
    assert "lmfit is not installed; pip install 'sepprior[peers]'" in outcome.reason


def test_posterior_samples_across_the_seam_of_the_phase():
    rng = np.random.default_rng(0)
    samples = rng.normal([2.0, 1.5, np.pi, 5.0], [0.1, 0.01, 0.2, 0.3], (1, 40_000, 4))
    samples[..., 2] = np.angle(np.exp(1j * samples[..., 2]))
    found = from_samples(samples)
    assert abs(scores.errors("phase", found["phase"].value, [np.pi])[0]) < 0.01
    for name, sd in zip(PARAMETERS, (0.1, 0.01, 0.2, 0.3), strict=True):
        assert found[name].stderr[0] == pytest.approx(sd, rel=0.03)
        low, high = found[name].interval[0]
        assert high - low == pytest.approx(3.92 * sd, rel=0.03)
        assert low < found[name].value[0] < high
