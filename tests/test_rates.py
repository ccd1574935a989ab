import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import resample_poly

from sepprior.errors import SeppriorError
from sepprior.rates import check_sample_rate, resampling_factors


@pytest.mark.parametrize("given", [30.0, 30.0299, 29.9701])
def test_rates_that_agree(given):
    check_sample_rate(given, 30.0, subject="x")


@pytest.mark.parametrize(
    ("given", "expected", "advice"),
    [
        (4096.0, 1024.0, "resample_poly(x, 1, 4)"),
        (48000.0, 44100.0, "resample_poly(x, 147, 160)"),
        (20.0, 30.0, "resample_poly(x, 3, 2)"),
        (20.0000001, 30.0, "resample_poly(x, 3, 2)"),
        (1.0, 4096.0, "resample_poly(x, 4096, 1)"),
        (4096.0, 1.0, "resample_poly(x, 1, 4096)"),
        (30.04, 30.0, "resample_poly(x, 750, 751)"),
    ],
)
def test_rates_that_differ(given, expected, advice):
    with pytest.raises(SeppriorError) as caught:
        check_sample_rate(given, expected, subject="'run.csv'")
    text = str(caught.value)
    assert text.startswith("'run.csv' has a sample rate of ") and "\n" not in text
    assert advice in text


@given(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_factors_reach_the_rate(rate, wanted):
    up, down = resampling_factors(rate, wanted)
    assert up > 0 and down > 0
    assert rate * up / down == pytest.approx(wanted, rel=1.0001e-5)


def test_the_advice_works():
    rate, wanted, frequency = 40.0, 30.0, 1.7
    up, down = resampling_factors(rate, wanted)
    wave = np.sin(2 * np.pi * frequency * np.arange(400) / rate)
    resampled = resample_poly(wave, up, down)
    expected = np.sin(2 * np.pi * frequency * np.arange(300) / wanted)
    # Away from the ends, where the filter has no samples to work with.
    np.testing.assert_allclose(resampled[30:-30], expected[30:-30], atol=0.01)
