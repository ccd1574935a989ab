"""Long measurements, worked on in sections, against closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import sepprior
from sepprior.inference import pipeline, sections
from sepprior.inference.detection import no_signal_energy
from sepprior.inference.pipeline import analyse
from sepprior.inference.record import MaskedWhitener, lay_out
from sepprior.inference.sections import fit_sections
from sepprior.inference.starts import gls_starts
from sepprior.transforms import Whitener
from tests.test_joint import (
    RATE,
    N,
    TimedRecord,
    exact_gls,
    form_for,
    linear_prior,
)

BUNDLED = Path(sepprior.__file__).parent / "data_files" / "example_prior.safetensors"
W = 7
AMPLITUDE, FREQUENCY = 0.6, 2.3


def long_measurement(covariance, *, gaps, amplitude=AMPLITUDE, seed=0):
    """W windows of noise of a covariance each, and a sinusoid through all of them."""
    rng = np.random.default_rng(seed)
    white = torch.from_numpy(rng.normal(size=(W, N)))
    noise = (white @ torch.linalg.cholesky(covariance).mT).flatten()
    t = torch.arange(W * N, dtype=torch.float64) / RATE
    x = noise + 0.7 + amplitude * torch.sin(2 * math.pi * FREQUENCY * t + 0.4)
    if gaps:
        x[50:75] = math.nan
        x[3 * N : 3 * N + 10] = math.nan
    return lay_out(x[None], window=N, level=0.0, sample_rate=RATE)


def as_one_window(record, covariance):
    """The samples that are present, as one window, and their exact covariance."""
    kept = record.present.flatten()
    whole = torch.block_diag(*[covariance] * W)[kept][:, kept]
    present = torch.ones((1, 1, len(whole)), dtype=torch.bool)
    x, t = record.x.flatten(1)[:, kept], record.t.flatten()[kept]
    timed = TimedRecord(x[:, None], present, record.length, RATE, times=t[None])
    return timed, whole


def gls_of(prior, record):
    whitener = MaskedWhitener(Whitener(prior.autocovariance), record.present)
    return gls_starts(form_for(record), record, whitener, n_starts=1)[0]


@pytest.mark.parametrize("gaps", [False, True])
def test_sections_end_at_the_exact_answer(gaps, monkeypatch):
    """A linear generator: GLS with the exact covariance of all windows together."""
    monkeypatch.setattr(sections, "SECTION", 3)
    prior, _, covariance = linear_prior()
    record = long_measurement(covariance, gaps=gaps)
    start = gls_of(prior, record)
    rng = torch.Generator().manual_seed(0)
    form = form_for(record)
    found = fit_sections(prior, record, start.theta, form=form, generator=rng)
    one, whole = as_one_window(record, covariance)
    exact = exact_gls(one, whole)(start.theta[:, 3:])
    sd = exact.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((found.fit.theta - exact.theta) / sd).abs().max() < 0.02
    assert ((start.theta - exact.theta) / sd).abs().max() > 0.2  # a control
    ours = found.marginal.diagonal(dim1=-2, dim2=-1).sqrt()
    torch.testing.assert_close(ours, sd, rtol=0.02, atol=0.0)
    missing = ~record.present
    assert (found.fit.missing[~missing] == 0).all()
    assert (found.fit.missing[missing] != 0).all()


@pytest.mark.parametrize("amplitude", [AMPLITUDE, 0.1])
def test_long_measurements_get_the_same_outcome_either_way(amplitude, monkeypatch):
    prior, _, covariance = linear_prior()
    record = long_measurement(covariance, gaps=True, amplitude=amplitude)

    def outcome():
        form, rng = form_for(record), torch.Generator().manual_seed(0)
        return analyse(prior, record, form=form, generator=rng, detect=True)

    whole = outcome()
    monkeypatch.setattr(sections, "SECTION", 3)
    monkeypatch.setattr(pipeline, "LONG", 4)
    apart = outcome()
    sd = whole.joint.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert ((whole.joint.theta - apart.joint.theta) / sd).abs().max() < 0.1
    for name in ("evidence", "latent_energy"):
        ours, theirs = getattr(apart, name), getattr(whole, name)
        torch.testing.assert_close(ours, theirs, atol=0.2, rtol=0.0)
    torch.testing.assert_close(apart.absorption, whole.absorption, atol=0.02, rtol=0)
    torch.testing.assert_close(apart.coherent, whole.coherent, atol=0.05, rtol=0.0)
    assert (apart.standardised[~record.present] == 0).all()
    if amplitude < AMPLITUDE:
        gain, expected = float(apart.signal_gain), float(whole.signal_gain)
        assert gain == pytest.approx(expected, abs=0.3)
        gls = no_signal_energy(form_for(record), record, whole.whitener)
        assert abs(float(gls - whole.gls.energy) - expected) > 0.3  # a control
    else:
        assert float(apart.signal_gain) > 50.0


def test_a_long_measurement_ignores_the_rest_of_the_batch(monkeypatch):
    monkeypatch.setattr(pipeline, "LONG", 4)
    prior, _, covariance = linear_prior()
    records = [
        long_measurement(covariance, gaps=False, amplitude=a, seed=s)
        for a, s in ((0.1, 0), (AMPLITUDE, 1))
    ]
    x = torch.cat([record.x.flatten(1) for record in records])
    band = {"fmin": 1.0, "fmax": 5.0}
    both = sepprior.separate(x.numpy(), prior, **band)
    alone = sepprior.separate(x[1].numpy(), prior, **band)
    frequency = both.parameters["frequency"]
    assert frequency.value[1] == pytest.approx(alone.parameters["frequency"].value)
    gain = both.diagnostics["loglik_gain"][1]
    assert gain == pytest.approx(alone.diagnostics["loglik_gain"])


def test_a_long_measurement_converges_under_the_bundled_prior():
    """70 windows: the solver for all windows at once ends before it has converged."""
    prior = sepprior.load_prior(BUNDLED)
    rng = torch.Generator().manual_seed(0)
    noise = prior.sample(70, generator=rng).flatten().numpy()
    t = np.arange(noise.size) / prior.sample_rate
    sd = noise.std()
    result = sepprior.separate(
        noise + 0.1 * sd * np.sin(2 * np.pi * 3.3 * t), prior, fmin=3.0, fmax=3.6
    )
    assert result.diagnostics["converged"] and result.diagnostics["detected"]
    f = result.parameters["frequency"]
    assert abs(f.value - 3.3) < 5 * f.stderr
    gls = result.baselines["gls"]["frequency"]
    assert f.stderr < 0.8 * gls.stderr
