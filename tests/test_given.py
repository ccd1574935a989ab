"""Arrays as people hold them: masks, labels, lists, tensors."""

from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from sepprior import separate, track, train_noise
from sepprior.data import as_recording, given
from sepprior.errors import SeppriorError

RATE, N = 1000.0, 300
X = np.random.default_rng(1).standard_normal(N)
HOLES = np.zeros(N, bool)
HOLES[100:120] = True
GAPPED = np.where(HOLES, np.nan, X)
CODED = np.where(HOLES, -1.5, X)  # no code that could be recognised
MASKED = np.ma.array(CODED, mask=HOLES)
T = np.arange(N) / RATE
CLOCK = pd.date_range("2021-03-28T00:59:59.9", periods=N, freq="1ms", tz="Europe/Paris")


def labelled(values, index, **attrs):
    """What `given` uses of an array of xarray."""
    coordinate = SimpleNamespace(values=index, attrs={"units": "ms"})
    return SimpleNamespace(
        values=values, dims=("time",), coords={"time": coordinate}, attrs=attrs
    )


def structured():
    table = np.zeros(N, dtype=[("t", "f8"), ("v", "f8")])
    table["t"], table["v"] = T, X
    return table


@pytest.mark.parametrize(
    ("item", "expected", "rate"),
    [
        (MASKED, GAPPED, None),
        ([MASKED, X], np.stack([GAPPED, X]), None),
        (np.ma.array(structured(), mask=[(0, h) for h in HOLES]), GAPPED, RATE),
        (list(np.where(HOLES, None, X)), GAPPED, None),
        ([Decimal(1), *map(float, X[1:])], np.array([1, *X[1:]]), None),
        (X.astype(object), X, None),
        (X[:, None], X, None),
        (pd.Series(GAPPED).astype("Float64"), GAPPED, None),
        (pd.Series(GAPPED).dropna(), GAPPED, None),
        (pd.Series(X)[50:], X[50:], None),
        (pd.Series(GAPPED, index=CLOCK).dropna(), GAPPED, RATE),
        (pd.Series(X, index=CLOCK - CLOCK[0]), X, RATE),
        (pd.Series(X, index=pd.Index(T, name="time")), X, RATE),
        (pd.Series(X, index=pd.Index(np.arange(N), name="time_ms")), X, RATE),
        (pd.DataFrame({"v": X}), X, None),
        (pd.DataFrame({"v": X, "time": T}), X, RATE),
        (structured(), X, RATE),
        (labelled(X, 1e3 * T), X, RATE),
        (labelled(X, CLOCK.tz_convert(None).values, sampling_rate="1 kHz"), X, RATE),
        (labelled(1e3 * CODED, 1e3 * T, missing_value=-1500.0, scale_factor=1e-3),
         GAPPED, RATE),
        (torch.tensor(X, requires_grad=True), X, None),
        (torch.tensor(X).to_sparse(), X, None),
        (torch._neg_view(torch.tensor(-X)), X, None),
        (torch.tensor(X).bfloat16(), torch.tensor(X).bfloat16().double().numpy(), None),
    ],
)  # fmt: skip
def test_what_an_array_says_of_itself_is_kept(item, expected, rate):
    found = given(item, what="x")
    np.testing.assert_allclose(found.values, expected, rtol=1e-12)
    assert found.sample_rate == (rate if rate is None else pytest.approx(rate))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (pd.Series(X)[::2], "neither times nor consecutive"),
        (pd.Series(X).sample(frac=1.0, random_state=0), "neither times nor consec"),
        (pd.Series(X, index=[f"r{i}" for i in range(N)]), "neither times nor consec"),
        (pd.Series(X, index=T[::-1]), "does not increase"),
        (pd.DataFrame({"a": X, "b": X}), r"columns a, b.*x\['NAME'\]"),
        (np.column_stack([T, X]), "300 rows of 2 samples"),
        (np.stack([T, X]), "rises in equal steps, as times do"),
        ([X, X[1:]], "rows differ in length"),
        (SimpleNamespace(data_vars={"u": 1, "v": 2}), "dataset of u, v"),
        (torch.empty(N, device="meta"), "device 'meta'"),
        (X.astype(str), "real numbers"),
        (np.array([*X[1:], "1"], dtype=object), "values of type str"),
        (CLOCK.tz_convert(None).to_numpy(), "datetime64"),
        (None, "type NoneType"),
        (np.float64(1.0), "type float64; give"),
        (np.zeros((2, 2, 40)), r"shape \(2, 2, 40\)"),
    ],
)
def test_what_cannot_be_kept_is_refused(item, message):
    with pytest.raises(SeppriorError, match=message) as error:
        given(item, what="x")
    assert len(str(error.value)) < 300


def test_every_door_keeps_masks_and_times():
    prior = train_noise(
        np.resize(X, 3000), sample_rate=RATE, model="gaussian", window=64
    )
    expected = separate(GAPPED, prior).parameters["bias"].value
    for item in (MASKED, pd.Series(GAPPED, index=CLOCK).dropna()):
        assert separate(item, prior).parameters["bias"].value == expected
    tracked = track(MASKED, prior)
    assert np.isnan(tracked.waveform.measurement).sum() == HOLES.sum()
    recording = as_recording([MASKED, X], sample_rate=RATE)
    assert np.isnan(recording.segments[0].values).sum() == HOLES.sum()
    half = pd.Series(X, index=2 * T)
    assert as_recording(half, sample_rate=None).sample_rate == pytest.approx(500)
    with pytest.raises(SeppriorError, match="500 Hz but the prior"):
        separate(half, prior)
    with pytest.raises(SeppriorError, match="its own times give 500 Hz"):
        separate(half, prior, sample_rate=RATE)
