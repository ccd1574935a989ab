"""`separate` as a user calls it: shapes, options, messages, and when it steps back."""

import copy
import re

import numpy as np
import pytest
import torch

import sepprior
from sepprior.errors import SeppriorError
from sepprior.inference import joint
from sepprior.signals import sinusoid
from tests.conftest import LEVEL, SAMPLE_RATE, WINDOW, coloured_noise

TRUTH = {"amplitude": 4.0, "frequency": 12.3, "phase": 0.7, "bias": 2.0}


def measurement(n=WINDOW, *, seed=5, truth=TRUTH):
    t = np.arange(n) / SAMPLE_RATE
    return sinusoid(t, **truth) + coloured_noise(n, seed=seed)


def values(result):
    return np.array([p.value for p in result.parameters.values()])


def test_one_measurement_is_taken_apart(gaussian_prior):
    x = measurement(seed=11)
    result = sepprior.separate(x, gaussian_prior)
    assert np.allclose(result.signal + result.noise, x)
    assert np.allclose(result.noise - LEVEL, result.residual, atol=0.2)
    for name, true in TRUTH.items():
        p = result.parameters[name]
        assert abs(p.value - true) < 4 * p.stderr, name
        assert p.ci95[0] < p.value < p.ci95[1]
    again = sinusoid(result.time, *(values(result)))
    assert np.allclose(again, result.signal, atol=1e-8)
    assert result.status == "ok"
    assert abs(np.nanmean(result.whitened**2) - 1) < 0.5


@pytest.mark.parametrize("kind", ["gaussian_prior", "specgan_prior"])
def test_batches_lists_and_tensors_agree_with_single_calls(kind, request):
    prior = request.getfixturevalue(kind)
    x = np.stack([measurement(seed=s) for s in range(3)])
    batch = sepprior.separate(x, prior)
    assert batch.signal.shape == x.shape
    assert np.allclose(values(sepprior.separate(torch.tensor(x), prior)), values(batch))
    assert np.allclose(values(sepprior.separate(x.tolist(), prior)), values(batch))
    single = sepprior.separate(x[0], prior)
    assert single.signal.shape == (WINDOW,)
    assert np.allclose(values(single), values(batch.select(0)), rtol=1e-2, atol=1e-2)


def test_what_can_change_is_copied_and_what_cannot_is_not(gaussian_prior):
    x = measurement()
    result = sepprior.separate(x, gaussian_prior)
    assert not np.shares_memory(result.measurement, x)
    x.flags.writeable = False
    again = sepprior.separate(x, gaussian_prior)
    assert np.shares_memory(again.measurement, x)
    assert np.array_equal(values(again), values(result))
    backwards = sepprior.separate(x[::-1], gaussian_prior)
    assert np.array_equal(backwards.measurement, x[::-1])


def test_chunks_do_not_change_the_answer(gaussian_prior, monkeypatch):
    x = np.stack([measurement(seed=s) for s in range(5)])
    whole = values(sepprior.separate(x, gaussian_prior))
    monkeypatch.setattr("sepprior.separation.BATCH_WINDOWS", 2)
    assert np.allclose(values(sepprior.separate(x, gaussian_prior)), whole, rtol=1e-9)


def test_the_gaussian_prior_is_generalised_least_squares(gaussian_prior):
    from scipy.linalg import toeplitz
    from scipy.optimize import curve_fit

    x = measurement()
    result = sepprior.separate(x, gaussian_prior)
    covariance = toeplitz(gaussian_prior.autocovariance.numpy())
    best, cov = curve_fit(
        lambda t, a, f, p, b: sinusoid(t, a, f, p, b),
        result.time,
        x - gaussian_prior.level,
        p0=list(TRUTH.values()),
        sigma=covariance,
        absolute_sigma=True,
    )
    assert np.allclose(values(result), best, rtol=1e-5)
    gls = result.baselines["gls"]
    assert [p.value for p in gls.values()] == list(values(result))
    assert np.allclose(
        np.sqrt(np.diag(cov)), [p.stderr for p in gls.values()], rtol=0.3
    )


@pytest.mark.parametrize("length", [40, 100, 3 * WINDOW])
@pytest.mark.parametrize("kind", ["gaussian_prior", "specgan_prior"])
def test_any_length(kind, length, request):
    prior = request.getfixturevalue(kind)
    result = sepprior.separate(measurement(length), prior)
    for name, true in TRUTH.items():
        p = result.parameters[name]
        assert abs(p.value - true) < 5 * p.stderr, name
    assert result.signal.shape == result.whitened.shape == (length,)


@pytest.mark.parametrize("kind", ["gaussian_prior", "specgan_prior"])
def test_gaps_are_masked(kind, request):
    prior = request.getfixturevalue(kind)
    x = measurement()
    x[[3, 20, 21, 22, 50]] = np.nan
    result = sepprior.separate(x, prior)
    assert np.isfinite(result.signal).all()
    assert np.isnan(result.whitened[[3, 20, 21, 22, 50]]).all()
    for name, true in TRUTH.items():
        assert abs(result.parameters[name].value - true) < 5 * (
            result.parameters[name].stderr
        )


def test_a_batch_may_have_different_gaps(gaussian_prior):
    x = np.stack([measurement(seed=s) for s in range(3)])
    x[0, 5], x[1, 30:40] = np.nan, np.nan
    batch = sepprior.separate(x, gaussian_prior)
    for i in range(3):
        single = sepprior.separate(x[i], gaussian_prior)
        assert np.allclose(values(single), values(batch.select(i)), rtol=1e-8)


def test_two_sinusoids_and_their_number(gaussian_prior):
    t = np.arange(2 * WINDOW) / SAMPLE_RATE
    x = measurement(2 * WINDOW) + sinusoid(t, 3.0, 25.0, -1.0)
    result = sepprior.separate(x, gaussian_prior, components=2)
    found = sorted(result.parameters[f"frequency_{k}"].value for k in (1, 2))
    assert np.allclose(found, [12.3, 25.0], atol=0.3)
    auto = sepprior.separate(x, gaussian_prior, components="auto")
    assert list(auto.parameters) == list(result.parameters)
    one = sepprior.separate(measurement(), gaussian_prior, components="auto")
    assert "frequency" in one.parameters


def test_the_same_seed_gives_the_same_answer(specgan_prior):
    prior = specgan_prior
    a = sepprior.separate(measurement(), prior, seed=1)
    b = sepprior.separate(measurement(), prior, seed=1)
    assert np.array_equal(values(a), values(b))


def test_global_random_state_is_left_alone(specgan_prior):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    sepprior.separate(measurement(), specgan_prior)
    assert torch.equal(before, torch.get_rng_state())


def test_a_prior_that_gains_is_used(specgan_prior, monkeypatch):
    """Also by a count of the searches, which a prior without a gain does not make."""
    solves = []
    run = joint.JointProblem.search

    def counted(self, *args, **kwargs):
        solves.append(1)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(joint.JointProblem, "search", counted)
    result = sepprior.separate(measurement(), specgan_prior)
    assert result.diagnostics["method"] == "specgan" and solves
    assert result.diagnostics["log_evidence_over_gls"] > 0.0
    gls = [p.value for p in result.baselines["gls"].values()]
    assert not np.array_equal(values(result), gls)


def test_a_prior_that_adds_nothing_steps_back_and_says_so(specgan_prior):
    prior = copy.copy(specgan_prior)
    held = {"gain": -0.1, "gain_stderr": 0.01}
    prior.metadata = prior.metadata | {"heldout": held}
    result = sepprior.separate(measurement(), prior)
    assert "adds nothing" in result.status
    assert result.diagnostics["method"] == "gls"
    gls = [p.value for p in result.baselines["gls"].values()]
    assert list(values(result)) == gls


def test_a_less_probable_joint_optimum_steps_back(specgan_prior):
    """A generator of loud nonsense: its evidence must lose to GLS every time."""
    prior = copy.deepcopy(specgan_prior)
    last = prior.generator.layers[-1]
    last.weight.data.normal_(0.0, 2.0, generator=torch.Generator().manual_seed(0))
    last.bias.data.fill_(3.0)
    x = np.stack([measurement(seed=s) for s in range(8)])
    result = sepprior.separate(x, prior)
    assert (result.diagnostics["log_evidence_over_gls"] < 0).all()
    assert set(result.diagnostics["method"]) == {"gls"}
    assert all("more probable" in s for s in result.status)


def test_the_plain_objective_is_squared_error(specgan_prior):
    result = sepprior.separate(measurement(), specgan_prior, objective="plain")
    assert result.diagnostics["method"] == "plain"
    assert abs(result.parameters["frequency"].value - 12.3) < 1.0


def test_changed_noise_is_flagged(gaussian_prior):
    rng = np.random.default_rng(0)
    t = np.arange(WINDOW) / SAMPLE_RATE
    white = sinusoid(t, **TRUTH) + 3.0 * rng.normal(size=(10, WINDOW)) + LEVEL
    changed = sepprior.separate(white, gaussian_prior)
    flagged = changed.diagnostics["out_of_distribution"]
    # What is not flagged for its spectrum is followed in its level.
    assert flagged.sum() >= 6
    assert (flagged | changed.diagnostics["noise_level_followed"]).all()
    said = ["changed since training" in s for s in changed.status]
    np.testing.assert_array_equal(said, flagged)
    x = np.stack([measurement(seed=s) for s in range(60)])
    same = sepprior.separate(x, gaussian_prior)
    # One in a hundred is flagged by design: 5 of 60 has probability 2e-4.
    assert same.diagnostics["out_of_distribution"].sum() < 5


def test_a_prior_is_not_used_on_noise_that_is_plainly_foreign(specgan_prior):
    prior = copy.copy(specgan_prior)
    # A level of its own would take in what is foreign in so short a window.
    facts = prior.metadata["calibration"]
    table = {k: v for k, v in facts["joint"].items() if k != "level"}
    prior.metadata = prior.metadata | {"calibration": facts | {"joint": table}}
    x = np.stack([measurement(seed=s) for s in range(4)])
    t = np.arange(WINDOW) / SAMPLE_RATE
    foreign = x + 8.0 * np.sin(2 * np.pi * 45.0 * t) * np.cos(40 * t)
    result = sepprior.separate(foreign, prior)
    assert set(result.diagnostics["method"]) == {"gls"}
    assert all("does not describe this noise" in s for s in result.status)
    followed = sepprior.separate(foreign, specgan_prior)
    told = ("does not describe this noise", "times as loud as in training")
    assert all(any(words in s for words in told) for s in followed.status)


@pytest.mark.statistical
def test_noise_alone_is_rarely_called_a_signal(gaussian_prior):
    """300 records at a 1 % false-alarm rate: 12 or more has probability 1e-4."""
    x = np.stack([coloured_noise(WINDOW, seed=1000 + s) for s in range(300)])
    noise = sepprior.separate(x, gaussian_prior)
    assert noise.diagnostics["detected"].sum() < 12
    assert "no signal" in next(
        s
        for s, d in zip(noise.status, noise.diagnostics["detected"], strict=True)
        if not d
    )
    loud = sepprior.separate(measurement(), gaussian_prior)
    assert loud.diagnostics["detected"]


def test_a_frequency_at_the_edge_is_reported(gaussian_prior):
    result = sepprior.separate(measurement(), gaussian_prior, fmin=12.6, fmax=30.0)
    assert result.diagnostics["at_bound"]
    assert "edge of the band" in result.status


@pytest.mark.parametrize(
    ("x", "options", "part"),
    [
        (np.zeros((2, 2, WINDOW)), {}, "shape (2, 2, 64)"),
        (np.array(["a"] * WINDOW), {}, "real numbers"),
        (np.ones(WINDOW) * 1j, {}, "real numbers"),
        (np.zeros((0, WINDOW)), {}, "no measurement"),
        (np.full(WINDOW, np.nan), {}, "at least 16"),
        (np.arange(10.0), {}, "10 samples"),
        (np.full(WINDOW, 2.5), {}, "constant (2.5)"),
        (np.where(np.arange(WINDOW) == 7, np.inf, 1.0), {}, "first at sample 7"),
        (measurement(), {"fmin": 10.0, "fmax": 60.0}, "fmax < 50"),
        (measurement(), {"fmin": 20.0, "fmax": 10.0}, "20 to 10 Hz"),
        (measurement(), {"fmin": -1.0}, "0 < fmin"),
        (measurement(), {"fmax": float("nan")}, "give a finite number"),
        (measurement(), {"sample_rate": 50.0}, "resample_poly(x, 2, 1)"),
        (measurement(), {"components": 0}, "whole number from 1"),
        (measurement(), {"objective": "best"}, "'joint' or 'plain'"),
        (measurement(), {"starts": 0}, "whole number from 1"),
        (measurement(), {"device": "toaster"}, "'toaster' cannot be used"),
        (np.stack([measurement()] * 2), {"components": "auto"}, "one measurement"),
    ],
)
def test_bad_input_gets_one_clear_line(gaussian_prior, x, options, part):
    with pytest.raises(SeppriorError, match=re.escape(part)) as caught:
        sepprior.separate(x, gaussian_prior, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["gaussian_prior", "specgan_prior"])
@pytest.mark.parametrize(("lead", "tail"), [(0, 1), (0, WINDOW), (5, 0), (70, 3)])
def test_missing_ends_change_nothing(kind, lead, tail, request, monkeypatch):
    prior = request.getfixturevalue(kind)
    solved = []
    minimise = joint.JointProblem.minimise
    monkeypatch.setattr(
        joint.JointProblem,
        "minimise",
        lambda self, *args, **options: solved.append(1) or minimise(self, *args),
    )
    x = np.stack([measurement(seed=s) for s in (11, 12)])
    plain = sepprior.separate(x, prior)
    padded = np.pad(x, ((0, 0), (lead, tail)), constant_values=np.nan)
    result = sepprior.separate(padded, prior)
    assert bool(solved) == (kind == "specgan_prior")
    inside = slice(lead, lead + WINDOW)
    for name in ("signal", "coherent", "whitened", "signal_band", "measurement"):
        whole = getattr(result, name)
        assert whole.shape == padded.shape
        np.testing.assert_allclose(whole[:, inside], getattr(plain, name), atol=1e-9)
    assert np.isnan(np.delete(result.whitened, range(lead, lead + WINDOW), 1)).all()
    for name in ("amplitude", "frequency", "bias"):
        for part in ("value", "stderr", "ci95"):
            ours = getattr(result.parameters[name], part)
            theirs = getattr(plain.parameters[name], part)
            np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert result.status == plain.status
    # Phases are at the first sample given: the waves run on through the ends, and the
    # error there is that of the shifted phase, but for the factors of calibration.
    found = {name: p.value[:, None] for name, p in result.parameters.items()}
    assert np.allclose(sinusoid(result.time, **found), result.signal, atol=1e-8)
    turn = 2 * np.pi * lead / SAMPLE_RATE
    c = plain.covariance
    expected = c[:, 2, 2] - 2 * turn * c[:, 1, 2] + turn**2 * c[:, 1, 1]
    np.testing.assert_allclose(result.covariance[:, 2, 2], expected, rtol=0.05)


@pytest.mark.parametrize("signal", ["damped", "chirp", "function"])
def test_forms_keep_their_times_where_the_beginning_is_missing(signal, gaussian_prior):
    def line(t, slope):
        return slope * t

    x = measurement(seed=11)
    form = line if signal == "function" else signal
    result = sepprior.separate(np.r_[[np.nan] * 9, x], gaussian_prior, signal=form)
    if signal == "function":
        slope = result.parameters["slope"].value
        assert np.allclose(result.signal, slope * result.time)
    else:
        plain = sepprior.separate(x, gaussian_prior, signal=form)
        assert np.allclose(result.signal[9:], plain.signal, atol=1e-6)


def test_the_last_window_of_a_track_is_what_it_is_alone(specgan_prior):
    x = measurement(3 * WINDOW + 20, seed=11)
    track = sepprior.track(x, specgan_prior, window=2 * WINDOW, hop=2 * WINDOW)
    alone = sepprior.separate(x[2 * WINDOW :], specgan_prior)
    last = track.table.iloc[-1]
    assert last["frequency"] == pytest.approx(alone.parameters["frequency"].value)
    assert last["amplitude"] == pytest.approx(alone.parameters["amplitude"].value)
