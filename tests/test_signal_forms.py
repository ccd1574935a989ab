"""Forms of signals against plain formulas, finite differences and curve_fit."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz
from scipy.optimize import curve_fit

import sepprior
from sepprior import signals
from sepprior.errors import SeppriorError
from sepprior.priors import GaussianPrior
from sepprior.signals import Geometry, build_form
from sepprior.signals.form import clamp

N, RATE = 200, 50.0
GEOMETRY = Geometry(N, RATE)
TAU = np.arange(N) / RATE
T = torch.from_numpy(TAU) - GEOMETRY.middle
LAGS = 0.09 * 0.7 ** np.arange(N)
LEVEL = 0.3


def decaying(t, a, tau, b):
    return a * torch.exp(-t / tau) + b


def decaying_numpy(t, a, tau, b):
    return a * np.exp(-t / tau) + b


def three_harmonics(t, f, a1, p1, a2, p2, a3, p3, bias):
    return signals.harmonics(t, f, (a1, a2, a3), (p1, p2, p3), bias)


# signal, options, natural parameters, the plain function of them
CASES = {
    "two": (
        "sinusoid",
        {"components": 2},
        (1.0, 3.1, 0.4, 0.5, 8.0, -1.0, 0.2),
        lambda t, *p: signals.sinusoid(t, *p[:3], p[6]) + signals.sinusoid(t, *p[3:6]),
    ),
    "harmonics": (
        "harmonics",
        {"components": 3, "fmax": 6.0},
        (2.3, 1.0, 0.4, 0.5, -1.0, 0.3, 2.0, 0.2),
        three_harmonics,
    ),
    "damped": ("damped", {}, (1.5, 3.1, 0.4, 0.6, 0.2), signals.damped_sinusoid),
    "chirp": ("chirp", {}, (1.0, 3.1, 0.4, 1.1, 0.2), signals.chirp),
    "function": (
        decaying,
        {"bounds": {"tau": (0.05, 20.0)}},
        (2.0, 0.7, 0.3),
        decaying_numpy,
    ),
}


def form_of(signal, *, components=1, fmin=0.5, fmax=20.0, **options):
    return build_form(
        signal, GEOMETRY, components=components, fmin=fmin, fmax=fmax, **options
    )


def row(values):
    return torch.tensor([values], dtype=torch.float64)


def slopes(function, theta, step=1e-6):
    columns = []
    for j in range(theta.shape[1]):
        move = torch.zeros_like(theta)
        move[:, j] = step
        columns.append((function(theta + move) - function(theta - move)) / (2 * step))
    return torch.stack(columns, 1)


# -- the contract ----------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_form_is_its_plain_function(case):
    signal, options, truth, plain = CASES[case]
    form = form_of(signal, **options)
    theta = form.from_natural(row(truth))
    expected = plain(TAU, *truth)
    np.testing.assert_allclose(form.evaluate(T, theta)[0], expected, atol=1e-10)
    # Windows of a record see the same times.
    shaped = form.evaluate(T.view(4, 50), theta)
    np.testing.assert_allclose(shaped.flatten(), expected, atol=1e-10)
    nothing = torch.zeros(1, theta.shape[1], theta.shape[1], dtype=torch.float64)
    np.testing.assert_allclose(form.natural(theta, nothing)[0][0], truth, atol=1e-10)
    moved = [*truth[:-1], truth[-1] + 0.1]
    assert np.abs(plain(TAU, *moved) - expected).max() > 0.05


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("constrained", [False, True])
def test_derivatives_are_those_of_finite_differences(case, constrained):
    signal, options, truth, _ = CASES[case]
    form = form_of(signal, **options)
    if constrained:
        held = {form.names[1]: truth[1]}
        bounds = {k: v for k, v in options.get("bounds", {}).items() if k not in held}
        form = form_of(signal, **{**options, "bounds": bounds}, fixed=held)
        assert form.n_linear == 0
    theta = form.from_natural(row(truth))
    jacobian = form.jacobian_columns(T, theta)
    assert jacobian.shape == (*theta.shape, N)
    expected = slopes(lambda p: form.evaluate(T, p), theta)
    torch.testing.assert_close(jacobian, expected, rtol=1e-6, atol=1e-6)
    linear = form.linear_columns(T, theta[:, form.n_linear :])
    torch.testing.assert_close(linear, jacobian[:, : form.n_linear])


@pytest.mark.parametrize("case", ["harmonics", "damped", "chirp"])
def test_covariance_is_carried_by_the_derivatives_of_the_natural_parameters(case):
    signal, options, truth, _ = CASES[case]
    form = form_of(signal, **options)
    theta = form.from_natural(row(truth))
    p = theta.shape[1]
    root = torch.randn(p, p, generator=torch.Generator().manual_seed(0)).double()
    covariance = (root @ root.mT)[None]
    rows = slopes(lambda x: form.natural(x, covariance)[0], theta)[0].mT
    found = form.natural(theta, covariance)[1][0]
    torch.testing.assert_close(
        found, rows @ covariance[0] @ rows.mT, rtol=1e-5, atol=1e-5
    )


def test_linear_parameters_of_a_function_are_found():
    assert form_of(decaying, bounds={"tau": (0.1, 9.0)}).linear == (0, 2)

    def product(t, a, b, c):
        return a * b * torch.sin(t) + c**2 * t

    guess = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert form_of(product, guess=guess).linear == (0,)
    assert form_of(decaying, bounds={"tau": (0.1, 9.0)}).has_constant
    assert not form_of(product, guess=guess).has_constant


def test_starts_of_a_function_lie_within_its_bounds():
    form = form_of(decaying, bounds={"tau": (0.01, 9.0)}, guess={"tau": 0.5})
    draws = form.draws(seed=0)
    assert draws[0, 1] == 0.5
    assert (draws[:, 1] >= 0.01).all() and (draws[:, 1] <= 9.0).all()
    # Evenly in the logarithm: half of them below the geometric mean.
    below = (draws[:, 1] < 0.3).double().mean()
    assert abs(float(below) - 0.5) < 0.05
    assert torch.equal(draws, form.draws(seed=0))


def test_clamping_keeps_parameters_in_their_bounds():
    form = form_of("damped", bounds={"decay": (0.1, 2.0)})
    q = row([30.0, 5.0])
    assert clamp(form, q).tolist() == [[20.0, 2.0]]


@pytest.mark.parametrize(
    ("signal", "options", "part"),
    [
        ("sinus", {}, "'sinus' is not known"),
        ("chirp", {"components": 2}, "one component"),
        ("harmonics", {"components": 60}, "do not fit below"),
        ("damped", {"bounds": {"dekay": (0, 1)}}, "did you mean 'decay'"),
        ("damped", {"bounds": {"decay": (2, 1)}}, "lower end first"),
        ("damped", {"bounds": {"decay": 3.0}}, "two numbers"),
        ("damped", {"bounds": {"frequency": (30, 40)}}, "outside what can be searched"),
        ("damped", {"fixed": {"decay": math.nan}}, "give a finite number"),
        ("damped", {"fixed": {"decay": 1}, "bounds": {"decay": (0, 2)}}, "is fixed"),
        ("damped", {"expected": {"decay": (1, 0)}}, "must be positive"),
        ("damped", {"guess": {"decay": 5}, "bounds": {"decay": (0, 2)}}, "outside its"),
        (decaying, {}, "give it bounds or a guess"),
        (lambda t: t, {}, "at least one named parameter"),
        (lambda t, *a: t, {}, "at least one named parameter"),
        (lambda t, a: np.sin(a.item() * t), {"guess": {"a": 1}}, "torch operations"),
        (lambda t, a: t[:3] * a, {}, "torch operations"),
        (lambda t, a: torch.ones_like(t), {}, "depends on none"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(signal, options, part):
    with pytest.raises(SeppriorError, match=re.escape(part)) as caught:
        form_of(signal, **options)
    assert "\n" not in str(caught.value)


# -- separation ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prior():
    return GaussianPrior(torch.from_numpy(LAGS), level=LEVEL, sample_rate=RATE)


def noise(n, seed):
    white = np.random.default_rng(seed).standard_normal((n, N))
    return white @ np.linalg.cholesky(toeplitz(LAGS)).T + LEVEL


def by_curve_fit(x, plain, truth, covariance):
    return curve_fit(
        plain, TAU, x - LEVEL, p0=truth, sigma=covariance, absolute_sigma=True,
        xtol=1e-12, ftol=1e-12, gtol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_signal_is_fitted_as_by_curve_fit_with_the_covariance(case, prior):
    signal, options, truth, plain = CASES[case]
    x = plain(TAU, *truth) + noise(2, seed=4)
    result = sepprior.separate(x, prior, signal=signal, **options)
    names = list(result.parameters)
    for b in range(2):
        best, covariance = by_curve_fit(x[b], plain, truth, toeplitz(LAGS))
        one = result.select(b)
        found = np.array([one.parameters[n].value for n in names])
        stderr = np.array([one.parameters[n].stderr for n in names])
        sd = np.sqrt(np.diag(covariance))
        assert np.abs((found - best) / sd).max() < 1e-2
        np.testing.assert_allclose(stderr, sd, rtol=2e-2)
        white, _ = by_curve_fit(x[b], plain, truth, np.eye(N))
        assert np.abs((found - white) / sd).max() > 3e-2
        np.testing.assert_allclose(one.signal, plain(TAU, *found), atol=1e-8)
    assert result.diagnostics["detected"].all()
    assert not result.diagnostics["at_bound"].any()


def test_fixed_values_priors_and_bounds_are_kept(prior):
    truth = (1.0, 3.1, 0.4, 0.2)
    x = signals.sinusoid(TAU, *truth) + noise(40, seed=5)
    free = sepprior.separate(x, prior)
    fixed = sepprior.separate(x, prior, fixed={"frequency": 3.1})
    assert (fixed.parameters["frequency"].value == 3.1).all()
    assert (fixed.parameters["frequency"].stderr == 0).all()
    # What is known of the frequency is known of the phase.
    ratio = fixed.parameters["phase"].stderr / free.parameters["phase"].stderr
    assert (ratio < 0.7).all()

    def spread(result, name):
        return np.std(result.parameters[name].value)

    assert spread(fixed, "phase") < 0.8 * spread(free, "phase")
    # A prior as wide as the error bar halves the variance and pulls half the way.
    sd = float(np.median(free.parameters["amplitude"].stderr))
    drawn = sepprior.separate(x, prior, expected={"amplitude": (1.5, sd)})
    value, stderr = (getattr(drawn.parameters["amplitude"], k) for k in VALUES)
    np.testing.assert_allclose(stderr, sd / math.sqrt(2), rtol=0.05)
    halfway = 0.5 * (free.parameters["amplitude"].value + 1.5)
    np.testing.assert_allclose(value, halfway, atol=0.15 * sd)
    bounded = sepprior.separate(x, prior, bounds={"phase": (0.5, 1.0)})
    phase = bounded.parameters["phase"].value
    assert (phase >= 0.5).all() and (phase <= 1.0).all()
    at = bounded.diagnostics["at_bound"]
    assert at.any() and not at.all()
    np.testing.assert_array_equal(at, phase < 0.5 + 1e-5)
    assert "at its bound: phase" in bounded.status[int(np.argmax(at))]


VALUES = ("value", "stderr")


def test_a_guess_picks_the_weaker_of_two_lines(prior):
    x = signals.sinusoid(TAU, 2.0, 3.1, 0.4) + signals.sinusoid(TAU, 0.5, 9.0, 1.0)
    x = x + noise(1, seed=6)[0]
    found = sepprior.separate(x, prior).parameters["frequency"].value
    assert found == pytest.approx(3.1, abs=0.05)
    guided = sepprior.separate(x, prior, guess={"frequency": 9.1})
    assert guided.parameters["frequency"].value == pytest.approx(9.0, abs=0.05)
    # Components keep their own bands, in the order of their names.
    bounds = {"frequency_1": (8.0, 10.0), "frequency_2": (2.0, 4.0)}
    both = sepprior.separate(x, prior, components=2, bounds=bounds)
    assert both.parameters["frequency_1"].value == pytest.approx(9.0, abs=0.05)
    assert both.parameters["frequency_2"].value == pytest.approx(3.1, abs=0.05)


def test_close_sinusoids_are_resolved_or_said_not_to_be(prior):
    duration = N / RATE

    def pair(distance, phase, seed):
        x = signals.sinusoid(TAU, 3.0, 5.0, 0.4)
        x = x + signals.sinusoid(TAU, 3.0, 5.0 + distance / duration, phase)
        return sepprior.separate(x + noise(10, seed=seed), prior, components=2)

    apart = pair(0.6, 2.0, 7)
    assert not apart.diagnostics["unresolved"].any()
    found = np.sort([apart.parameters[f"frequency_{k}"].value for k in (1, 2)], 0)
    assert np.abs(found[1] - found[0] - 0.6 / duration).max() < 0.3 / duration
    # The second beats too slowly to be seen, or is nowhere: one in a hundred is missed.
    for distance, phase in ((0.1, 2.0), (0.03, 0.4)):
        close = pair(distance, phase, 8)
        assert close.diagnostics["unresolved"].mean() >= 0.8
        assert any("not all sinusoids are resolved" in s for s in close.status)


@pytest.mark.parametrize("case", ["damped", "function"])
def test_gaps_are_masked_for_every_signal(case, prior):
    signal, options, truth, plain = CASES[case]
    x = plain(TAU, *truth) + noise(1, seed=9)[0]
    gap = np.random.default_rng(1).choice(N, 40, replace=False)
    x[gap] = np.nan
    result = sepprior.separate(x, prior, signal=signal, **options)
    keep = np.setdiff1d(np.arange(N), gap)
    best, covariance = curve_fit(
        plain, TAU[keep], x[keep] - LEVEL, p0=truth,
        sigma=toeplitz(LAGS)[np.ix_(keep, keep)], absolute_sigma=True,
    )  # fmt: skip
    found = [p.value for p in result.parameters.values()]
    assert np.abs((found - best) / np.sqrt(np.diag(covariance))).max() < 2e-2


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"signal": decaying, "fmin": 1.0}, "mean nothing for a function"),
        ({"signal": decaying, "components": 2}, "means nothing for a function"),
        ({"signal": "chirp", "components": "auto"}, "counts sinusoids"),
        ({"signal": 3}, "give a name or a function"),
    ],
)
def test_options_that_do_not_fit_the_signal(prior, options, part):
    with pytest.raises(SeppriorError, match=re.escape(part)):
        sepprior.separate(noise(1, seed=0)[0], prior, **options)


def test_any_signal_is_fitted_jointly_with_a_learned_prior(specgan_prior):
    from tests.conftest import SAMPLE_RATE, WINDOW, coloured_noise

    t = np.arange(WINDOW) / SAMPLE_RATE
    cases = [
        ("damped", {}, signals.damped_sinusoid, (8.0, 12.3, 0.7, 2.0, 2.0)),
        (decaying, {"bounds": {"tau": (0.02, 2)}}, decaying_numpy, (8.0, 0.2, 2.0)),
        (
            "sinusoid",
            {"fixed": {"phase": 0.7}},
            signals.sinusoid,
            (5.0, 12.3, 0.7, 2.0),
        ),
    ]
    for signal, options, plain, truth in cases:
        x = plain(t, *truth) + coloured_noise(WINDOW, seed=3)
        result = sepprior.separate(x, specgan_prior, signal=signal, **options)
        assert result.diagnostics["method"] == "specgan"
        for true, p in zip(truth, result.parameters.values(), strict=True):
            assert abs(p.value - true) <= 5 * p.stderr
