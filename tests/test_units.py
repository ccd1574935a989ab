"""Answers do not depend on the unit of the data, nor on a constant added to them."""

import numpy as np
import pytest

from sepprior import separate, train_noise
from sepprior.config import GaussianConfig
from sepprior.inference import calibration
from tests.conftest import LEVEL, SAMPLE_RATE, TINY, WINDOW, coloured_noise

NOISE = coloured_noise(100 * WINDOW, seed=1) - LEVEL
T = np.arange(2 * WINDOW) / SAMPLE_RATE
SINE = 2 * np.sin(2 * np.pi * 0.13 * SAMPLE_RATE * T + 0.5)
X = coloured_noise(2 * WINDOW, seed=5) - LEVEL + SINE


def answer(prior, unit, constant, **options):
    """Values and standard errors in the unit, the constant taken off."""
    found = separate(unit * X + constant, prior, **options)
    values = {k: p.value for k, p in found.parameters.items()}
    values["bias"] += prior.level - constant
    errors = {k: p.stderr for k, p in found.parameters.items()}
    np.testing.assert_allclose(
        found.signal.mean(), SINE.mean() * unit + constant - prior.level, atol=unit
    )
    for each in (values, errors):
        each["amplitude"] /= unit
        each["bias"] /= unit
    return np.array(list(values.values())), np.array(list(errors.values()))


@pytest.fixture(scope="module")
def trained():
    priors = {}

    def train(model, unit, constant):
        key = model, unit, constant
        if key not in priors:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(calibration, "trials_per_band", lambda w, *, joint: 20)
                config = GaussianConfig(window=WINDOW) if model == "gaussian" else TINY
                priors[key] = train_noise(
                    unit * NOISE + constant, sample_rate=SAMPLE_RATE, config=config
                )
        return priors[key]

    return train


@pytest.mark.parametrize(
    ("unit", "constant"),
    [(1e18, 0.0), (1e-18, 0.0), (1.0, 1e6), (1.0, 3e8), (1e-18, -1e-10), (1e18, 1e26)],
)
def test_a_gaussian_prior_is_free_of_units(trained, unit, constant):
    expected = answer(trained("gaussian", 1.0, 0.0), 1.0, 0.0)
    found = answer(trained("gaussian", unit, constant), unit, constant)
    for value, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("unit", "constant"), [(1e-18, 0.0), (1.0, 1e6)])
def test_a_learned_prior_is_free_of_units(trained, unit, constant):
    reference, prior = trained("specgan", 1.0, 0.0), trained("specgan", unit, constant)
    gain = reference.metadata["heldout"]["gain"]
    assert prior.metadata["heldout"]["gain"] == pytest.approx(gain, abs=1e-3)
    for options in ({}, {"objective": "plain", "starts": 1}):
        expected = answer(reference, 1.0, 0.0, **options)
        found = answer(prior, unit, constant, **options)
        for value, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(value, other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("options", [{}, {"objective": "plain", "starts": 1}])
def test_a_constant_in_the_measurement_moves_the_bias_alone(specgan_prior, options):
    expected = answer(specgan_prior, 1.0, LEVEL, **options)
    for constant in (1e6, -3e8):
        found = answer(specgan_prior, 1.0, constant, **options)
        for value, reference in zip(found, expected, strict=True):
            # the plain objective stops in single precision, from another bias
            close = 1e-2 if options else 1e-4
            np.testing.assert_allclose(value, reference, rtol=close, atol=close)
