"""Signals against direct evaluation, finite differences and sampled covariances."""

import math

import numpy as np
import pytest
import torch

import sepprior
from sepprior import signals
from sepprior.priors import GaussianPrior
from sepprior.signals import Geometry, build_form

RATE, N = 100.0, 64
MIDDLE = 0.5 * (N - 1) / RATE


def times():
    """Seconds from the middle of the record."""
    return torch.arange(N, dtype=torch.float64) / RATE - MIDDLE


THETA = {
    1: torch.tensor([[0.3, 0.8, -0.5, 12.0], [-1.0, -0.2, -0.9, 3.3]]),
    2: torch.tensor([[0.3, 0.8, -0.5, 0.1, 0.4, 12.0, 21.5]]),
}


@pytest.fixture(params=[1, 2])
def theta(request):
    return THETA[request.param].double()


def direct(t, row):
    """The sum of the docstring, term by term."""
    row = row.tolist()
    n = (len(row) - 1) // 3
    s = np.full(len(t), row[0])
    for p in range(n):
        a, b, f = row[1 + 2 * p], row[2 + 2 * p], row[1 + 2 * n + p]
        s = s + a * np.cos(2 * np.pi * f * t) + b * np.sin(2 * np.pi * f * t)
    return s


def test_evaluation_is_the_sum_of_its_terms(theta):
    t = times()
    found = signals.evaluate(t, theta)
    for k, row in enumerate(theta):
        np.testing.assert_allclose(found[k], direct(t.numpy(), row), atol=1e-13)


def test_times_may_be_laid_out_in_windows(theta):
    t = times()
    shaped = t.view(4, 16)
    flat = signals.evaluate(t, theta)
    torch.testing.assert_close(signals.evaluate(shaped, theta).flatten(1), flat)
    jacobian = signals.jacobian_columns(shaped, theta)
    assert jacobian.shape == (*theta.shape, 4, 16)
    torch.testing.assert_close(jacobian.flatten(2), signals.jacobian_columns(t, theta))


def test_the_jacobian_is_that_of_finite_differences(theta):
    t = times()
    jacobian = signals.jacobian_columns(t, theta)
    step = 1e-6
    for j in range(theta.shape[1]):
        up, down = theta.clone(), theta.clone()
        up[:, j] += step
        down[:, j] -= step
        slope = (signals.evaluate(t, up) - signals.evaluate(t, down)) / (2 * step)
        torch.testing.assert_close(jacobian[:, j], slope, rtol=0, atol=1e-7)
    # The sign of the sine's derivative matters: with a plus the columns differ.
    n = (theta.shape[1] - 1) // 3
    wrong = jacobian[:, 1 + 2 * n :].abs()
    assert float((wrong - jacobian[:, 1 + 2 * n :]).abs().max()) > 1e-2


def test_the_linear_columns_are_the_derivatives_by_the_linear_parameters(theta):
    n = (theta.shape[1] - 1) // 3
    linear = signals.linear_columns(times(), theta[:, 1 + 2 * n :])
    jacobian = signals.jacobian_columns(times(), theta)
    assert torch.equal(linear, jacobian[:, : 1 + 2 * n])


def test_polar_parameters_give_the_same_signal(theta):
    values, _ = signals.to_polar(
        theta, torch.eye(theta.shape[1]).double().expand(len(theta), -1, -1),
        middle=MIDDLE,
    )  # fmt: skip
    n = (theta.shape[1] - 1) // 3
    from_first = np.arange(N) / RATE
    reference = signals.evaluate(times(), theta)
    for k in range(len(theta)):
        total = np.zeros(N)
        for p in range(n):
            amplitude, frequency, phase = values[k, 3 * p : 3 * p + 3].tolist()
            assert amplitude > 0
            assert -math.pi < phase <= math.pi
            total += signals.sinusoid(from_first, amplitude, frequency, phase)
        total += float(values[k, -1])
        np.testing.assert_allclose(total, reference[k], atol=1e-12)
        # Counted from the middle, the same numbers are another signal.
        wrong = signals.sinusoid(times(), *values[k, :3].tolist())
        assert np.abs(wrong + float(values[k, -1]) - total).max() > 0.05


def to_polar_values(theta):
    covariance = torch.eye(theta.shape[1], dtype=theta.dtype).expand(len(theta), -1, -1)
    return signals.to_polar(theta, covariance, middle=MIDDLE)[0]


def test_the_covariance_is_carried_by_the_jacobian_of_finite_differences(theta):
    p = theta.shape[1]
    root = torch.randn(p, p, generator=torch.Generator().manual_seed(0)).double()
    covariance = (root @ root.mT).expand(len(theta), -1, -1)
    _, found = signals.to_polar(theta, covariance, middle=MIDDLE)
    step = 1e-6
    columns = []
    for j in range(p):
        up, down = theta.clone(), theta.clone()
        up[:, j] += step
        down[:, j] -= step
        columns.append((to_polar_values(up) - to_polar_values(down)) / (2 * step))
    jacobian = torch.stack(columns, -1)
    torch.testing.assert_close(
        found, jacobian @ covariance @ jacobian.mT, rtol=1e-6, atol=1e-6
    )


@pytest.mark.statistical
def test_the_covariance_is_that_of_a_sample():
    """20 000 draws: a variance is known to 1 %, and 6 % is 6 sigma."""
    theta = THETA[1][:1].double()
    root = 0.01 * torch.tensor(
        [[1.0, 0, 0, 0], [0.2, 1.0, 0, 0], [0.1, 0.3, 1.0, 0], [0, 0.9, 0.8, 2.0]]
    )
    root = root.double()
    values, covariance = signals.to_polar(theta, (root @ root.mT)[None], middle=MIDDLE)
    draws = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(1)).double()
    polar = to_polar_values(theta + draws @ root.mT)
    polar[:, 2] = signals.wrap_phase(polar[:, 2] - values[0, 2])
    found = torch.cov(polar.mT)
    sd = covariance[0].diagonal().sqrt()
    difference = (found - covariance[0]) / sd[:, None] / sd
    assert float(difference.abs().max()) < 0.06
    # Uncorrelated with frequency, the phase would have another variance.
    ignored = (root @ root.mT).clone()
    ignored[3, :3] = ignored[:3, 3] = 0
    _, wrong = signals.to_polar(theta, ignored[None], middle=MIDDLE)
    assert abs(float(wrong[0, 2, 2] / covariance[0, 2, 2]) - 1) > 0.2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_phases_are_wrapped_to_the_half_open_interval(dtype):
    pi = math.pi
    edge = np.nextafter(pi, 4)
    phase = torch.tensor(
        [0.0, pi, -pi, 3 * pi, -3 * pi, edge, -edge, 0.5 - 8 * pi, 100.0], dtype=dtype
    )
    found = signals.wrap_phase(phase)
    top = torch.tensor(pi, dtype=dtype)
    assert (found <= top).all()
    assert (found > -top).all()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    for function in (torch.sin, torch.cos):
        torch.testing.assert_close(
            function(found), function(phase), rtol=0, atol=20 * tolerance
        )
    # numpy's remainder gives the other half-open interval.
    other = np.remainder(-pi + pi, 2 * pi) - pi
    assert other == -pi


@pytest.mark.statistical
def test_wrapping_random_phases_agrees_with_complex_angles():
    phase = torch.randn(1000, generator=torch.Generator().manual_seed(2)).double() * 50
    reference = np.angle(np.exp(1j * phase.numpy()))
    np.testing.assert_allclose(signals.wrap_phase(phase), reference, atol=1e-12)


def test_names_follow_the_number_of_sinusoids():
    assert signals.parameter_names(1) == ("amplitude", "frequency", "phase", "bias")
    assert signals.parameter_names(2) == (
        "amplitude_1", "frequency_1", "phase_1",
        "amplitude_2", "frequency_2", "phase_2", "bias",
    )  # fmt: skip


def test_the_sinusoid_is_a_sine_in_hertz():
    t = [0.0, 0.25, 0.5, 0.75]
    np.testing.assert_allclose(
        signals.sinusoid(t, 2.0, 1.0, 0.0, 0.5), [0.5, 2.5, 0.5, -1.5], atol=1e-12
    )
    np.testing.assert_allclose(
        signals.sinusoid(t, 2.0, 1.0, math.pi / 2), [2, 0, -2, 0], atol=1e-12
    )


def test_names_of_a_function_say_nothing():
    """What looks like a phase is not wrapped, like a decay has no unit, ..."""

    def named(t, phase_delay, decay_time, amplitude_x, frequency_y):
        rise = decay_time * t + amplitude_x * t**2
        return phase_delay + rise + frequency_y * torch.cos(40.0 * t)

    truth = {"phase_delay": 10.0, "decay_time": 4.0, "amplitude_x": -3.0}
    t = np.arange(200) / 100.0
    x = 10.0 + 4.0 * t - 3.0 * t**2 + 2.0 * np.cos(40.0 * t)
    x = x + 0.01 * np.random.default_rng(0).standard_normal(200)
    prior = GaussianPrior(
        torch.eye(200, dtype=torch.float64)[0] * 1e-4, level=0.0, sample_rate=100.0
    )
    for fixed in (None, {"frequency_y": 2.0}):
        result = sepprior.separate(x, prior, signal=named, fixed=fixed)
        for name, value in truth.items():
            assert result.parameters[name].value == pytest.approx(value, abs=0.1)
        assert {p.units for p in result.parameters.values()} == {""}
        assert "rad" not in result.report() and "Hz" not in result.report()
    bounded = sepprior.separate(x, prior, signal=named, bounds={"frequency_y": (0, 1)})
    assert "at its bound: frequency_y" in bounded.status


def test_built_in_forms_know_their_kinds():
    geometry = Geometry(300, 100.0)
    for kind in ("sinusoid", "harmonics", "damped", "chirp"):
        form = build_form(kind, geometry, components=1, fmin=1.0, fmax=40.0)
        assert len(form.kinds) == len(form.names)
        for name, kind in zip(form.names, form.kinds, strict=True):
            assert name.split("_")[0] == kind
