"""Records, the periodogram and the fits against dense algebra and scipy.

Random experiments have fixed seeds; where a band is stated, the probability that a
correct program falls outside it is given beside it.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import block_diag
from scipy.optimize import curve_fit

import sepprior
from sepprior import separation, signals, transforms
from sepprior.errors import SeppriorError
from sepprior.inference import least_squares
from sepprior.inference import periodogram as periodogram_module
from sepprior.inference import record as record_module
from sepprior.inference.least_squares import (
    gauss_newton,
    gls_features,
    inverse_information,
    linear_fit,
    solve_normal,
)
from sepprior.inference.periodogram import Periodogram, periodogram
from sepprior.inference.record import MaskedWhitener, lay_out, unlay
from sepprior.inference.robust import robust_fit, without_outliers
from sepprior.inference.starts import gls_starts
from sepprior.priors import GaussianPrior
from sepprior.signals import Geometry, Sinusoids
from sepprior.signals.form import clamp
from sepprior.signals.oscillations import DampedSinusoid
from sepprior.transforms import Whitener, toeplitz

RATE = 100.0
AMPLITUDE, FREQUENCY, PHASE, BIAS = 1.0, 12.3, 0.7, 0.4
TRUTH = (AMPLITUDE, FREQUENCY, PHASE, BIAS)


def pink_autocovariance(n, *, sd=0.5):
    """Spectrum 1 / f above a third of the resolution of 300 samples, flat below."""
    frequency = np.arange(4096) / 8192
    power = 1 / np.maximum(frequency, 1 / 900)
    r = np.cos(2 * np.pi * np.outer(np.arange(n), frequency)) @ power
    return torch.from_numpy(sd**2 * r / r[0])


def draw(r, n_draws, *, seed):
    """Gaussian noise (n_draws, len(r)) by numpy's own Cholesky factor."""
    lag = np.arange(len(r))
    factor = np.linalg.cholesky(r.numpy()[abs(lag[:, None] - lag)])
    return np.random.default_rng(seed).standard_normal((n_draws, len(r))) @ factor.T


def measurements(n, n_draws=1, *, truth=TRUTH, seed=0, sd=0.5):
    """A sinusoid in pink noise, (n_draws, n)."""
    t = np.arange(n) / RATE
    noise = draw(pink_autocovariance(n, sd=sd), n_draws, seed=seed)
    return torch.from_numpy(signals.sinusoid(t, *truth) + noise)


def prepare(x, *, window, sd=0.5, level=0.0):
    r = pink_autocovariance(window, sd=sd)
    record = lay_out(x, window=window, level=level, sample_rate=RATE)
    return record, MaskedWhitener(Whitener(r), record.present), r


def dense_precision(record, r, b=0):
    """Indices of present samples and the inverse of their covariance.

    Windows are independent of each other.
    """
    blocks, places = [], []
    n = record.x.shape[-1]
    c = toeplitz(r).numpy()
    for w, present in enumerate(record.present[b].numpy()):
        index = np.flatnonzero(present)
        blocks.append(c[np.ix_(index, index)])
        places.append(index + w * n)
    return np.concatenate(places), np.linalg.inv(block_diag(*blocks))


def with_gaps(x):
    x = x.clone()
    x[:, 40:55] = math.nan
    x[:, 90] = math.nan
    x[:, :3] = math.nan
    return x


# --- records --------------------------------------------------------------------------


def test_measurements_are_cut_into_windows_and_back():
    x = torch.arange(14, dtype=torch.float64).view(2, 7) + 5
    x[1, 2] = math.nan
    record = lay_out(x, window=3, level=5.0, sample_rate=10.0)
    assert record.x.shape == (2, 3, 3)
    assert record.present[0].tolist() == [[True] * 3, [True] * 3, [True, False, False]]
    assert not record.present[1, 0, 2]
    assert float(record.x[1, 0, 2]) == 0.0
    assert record.x[0, 2].tolist() == [6.0, 0.0, 0.0]
    assert (record.length, record.duration, record.middle) == (7, 0.7, 0.3)
    # Time counts from the middle and runs on through the padding.
    np.testing.assert_allclose(record.t.flatten(), (np.arange(9) - 3) / 10, atol=1e-15)
    restored = unlay(record.x, 7) + 5
    assert torch.equal(restored[0], x[0])
    assert record.select(slice(1, 2)).x.shape == (1, 3, 3)
    assert torch.equal(record.select(torch.tensor([1])).present, record.present[1:])


@pytest.mark.parametrize(
    ("n", "window", "gapped"),
    [(120, 120, False), (100, 120, False), (120, 120, True), (300, 120, True)],
)
def test_masked_whitening_is_that_of_the_covariance_of_what_is_present(
    n, window, gapped
):
    x = measurements(n, 2)
    if gapped:
        x = with_gaps(x)
    record, whitener, r = prepare(x, window=window)
    assert whitener.complete == (not gapped and n == window)
    everyone = torch.arange(2)
    white = whitener.forward(record.x.unsqueeze(1), everyone)[:, 0]
    assert (white[~record.present] == 0).all()
    for b in range(2):
        index, precision = dense_precision(record, r, b)
        y = record.x[b].flatten().numpy()[index]
        exact = y @ precision @ y
        assert float(white[b].square().sum()) == pytest.approx(exact, rel=1e-9)
        if gapped:
            # Zeros in the gaps, with the whole covariance, are something else.
            whole = whitener.whitener.forward(record.x[b]).square().sum()
            assert abs(float(whole) / exact - 1) > 1e-3


def test_masked_whitening_is_its_matrix_and_the_adjoint_its_transpose():
    x = torch.cat([measurements(250, 1), with_gaps(measurements(250, 1, seed=1))])
    record, whitener, _ = prepare(x, window=100)
    columns = torch.randn(2, 5, 3, 100, generator=torch.Generator().manual_seed(0))
    columns = columns.double()
    # In another order than stored: `which` names the measurement of each problem.
    which = torch.tensor([1, 0])
    forward = whitener.forward(columns, which)
    adjoint = whitener.adjoint(forward, which)
    for q, b in enumerate(which.tolist()):
        for w in range(3):
            matrix = whitener.matrix(b, w)
            present = record.present[b, w]
            assert (matrix[~present] == 0).all()
            assert (matrix[:, ~present] == 0).all()
            torch.testing.assert_close(
                forward[q, :, w], columns[q, :, w] @ matrix.mT, rtol=0, atol=1e-10
            )
            torch.testing.assert_close(
                adjoint[q, :, w], forward[q, :, w] @ matrix, rtol=0, atol=1e-9
            )
    swapped = whitener.forward(columns, torch.tensor([0, 1]))
    assert float((swapped - forward).abs().max()) > 0.1


def test_gaps_are_whitened_where_the_covariance_is_singular():
    line = torch.cos(0.3 * torch.arange(60, dtype=torch.float64))
    x = torch.cos(0.3 * torch.arange(60, dtype=torch.float64) + 1)[None]
    x[0, 20:25] = math.nan
    record = lay_out(x, window=60, level=0.0, sample_rate=RATE)
    whitener = MaskedWhitener(Whitener(line), record.present)
    white = whitener.forward(record.x.unsqueeze(1), torch.tensor([0]))
    assert torch.isfinite(white).all()


def test_the_log_determinant_is_that_of_the_samples_present():
    r = pink_autocovariance(100)
    covariance = toeplitz(r).numpy()
    x = measurements(200, 3)
    x[1, 150:] = math.nan
    x[2, [20, 21, 60]] = math.nan
    _, whitener, _ = prepare(x, window=100)
    found = whitener.half_log_det()

    def exact(index):
        return 0.5 * np.linalg.slogdet(covariance[np.ix_(index, index)])[1]

    whole, half = np.arange(100), np.arange(50)
    gapped = np.setdiff1d(whole, [20, 21, 60])
    for b, second in ((0, [whole, whole]), (1, [whole, half]), (2, [gapped, whole])):
        assert float(found[b]) == pytest.approx(sum(map(exact, second)), rel=1e-9)


def test_gaps_in_filtered_windows_are_refused(monkeypatch):
    for module in (transforms, record_module):
        monkeypatch.setattr(module, "MAX_DENSE_WINDOW", 64)
    monkeypatch.setattr(transforms, "MAX_FILTER_ORDER", 16)
    with pytest.raises(SeppriorError, match="a window of at most 64 samples"):
        prepare(with_gaps(measurements(100)), window=100)
    # A short end is no gap.
    prepare(measurements(90), window=100)


# --- periodogram ----------------------------------------------------------------------


def brute_force_gain(record, r, frequency, b=0):
    """Half the drop in weighted squares, constant against constant and sinusoid."""
    index, precision = dense_precision(record, r, b)
    t = record.t.flatten().numpy()[index]
    y = record.x[b].flatten().numpy()[index]
    factor = np.linalg.cholesky(precision)

    def squares(columns):
        a = factor.T @ np.stack(columns, 1)
        return np.linalg.lstsq(a, factor.T @ y, rcond=None)[1][0]

    one = np.ones_like(t)
    angle = 2 * np.pi * frequency * t
    return 0.5 * (squares([one]) - squares([one, np.cos(angle), np.sin(angle)]))


@pytest.mark.parametrize(
    ("n", "window", "gapped"),
    [
        (120, 120, False),
        (240, 120, False),
        (100, 120, False),
        (290, 120, False),
        (120, 120, True),
        (290, 120, True),
    ],
)
def test_gains_are_those_of_whitened_linear_fits(n, window, gapped, monkeypatch):
    x = measurements(n, 2)
    if gapped:
        x[1:] = with_gaps(x[1:])
    record, whitener, r = prepare(x, window=window)
    spectrum = periodogram(record, whitener, fmin=1.0, fmax=49.0)
    assert spectrum.gain.shape == (2, len(spectrum.frequency))
    step = float(spectrum.frequency[1] - spectrum.frequency[0])
    assert step <= RATE / (8 * n)
    near = int((spectrum.frequency - FREQUENCY).abs().argmin())
    for i in (0, 1, 7, near, near + 3, len(spectrum.frequency) - 1):
        for b in range(2):
            exact = brute_force_gain(record, r, float(spectrum.frequency[i]), b)
            assert float(spectrum.gain[b, i]) == pytest.approx(
                exact, rel=1e-6, abs=1e-8
            )
    monkeypatch.setattr("sepprior.inference.periodogram.GAINS_AT_ONCE", 101)
    pieces = periodogram(record, whitener, fmin=1.0, fmax=49.0)
    assert torch.equal(pieces.gain, spectrum.gain)
    # A wide band in parts that are not even.
    monkeypatch.setattr("sepprior.inference.periodogram.BINS_AT_ONCE", 97)
    pieces = periodogram(record, whitener, fmin=1.0, fmax=49.0)
    torch.testing.assert_close(pieces.gain, spectrum.gain, rtol=1e-12, atol=1e-12)
    # Neighbouring frequencies tell apart what is compared.
    other = brute_force_gain(record, r, float(spectrum.frequency[near + 3]))
    assert abs(other / float(spectrum.gain[0, near]) - 1) > 1e-3


def test_fourier_sums_of_long_records_are_put_together_exactly(monkeypatch):
    values = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 5000)))
    size, bins = 16 * 640, slice(3, 5100)
    whole = periodogram_module.sums(values, size, bins)
    monkeypatch.setattr(periodogram_module, "SHORT", 1000)
    monkeypatch.setattr(periodogram_module, "GAINS_AT_ONCE", 777)
    parts = periodogram_module.sums(values, size, bins)
    np.testing.assert_allclose(parts, whole, atol=1e-10)


def test_unweighted_gains_are_not_the_same():
    record, whitener, r = prepare(measurements(120), window=120)
    spectrum = periodogram(record, whitener, fmin=1.0, fmax=49.0)
    white = torch.zeros_like(r)
    white[0] = r[0]
    near = int((spectrum.frequency - FREQUENCY).abs().argmin())
    wrong = brute_force_gain(record, white, float(spectrum.frequency[near]))
    assert abs(wrong / float(spectrum.gain[0, near]) - 1) > 0.1


def test_the_grid_stays_in_the_band():
    record, whitener, _ = prepare(measurements(120), window=120)
    f = periodogram(record, whitener, fmin=5.02, fmax=7.77).frequency
    assert float(f[0]) >= 5.02
    assert float(f[-1]) <= 7.77
    step = float(f[1] - f[0])
    assert float(f[0]) - 5.02 < step and 7.77 - float(f[-1]) < step
    # A band between two grid points is one frequency, near it.
    f = periodogram(record, whitener, fmin=5.02, fmax=5.021).frequency
    assert len(f) == 1
    assert abs(float(f[0]) - 5.02) < step


def test_zero_frequency_and_nyquist_gain_nothing_they_cannot():
    record, whitener, _ = prepare(measurements(120), window=120)
    spectrum = periodogram(record, whitener, fmin=0.0, fmax=RATE / 2)
    assert torch.isfinite(spectrum.gain).all()
    assert float(spectrum.gain[0, 0]) == 0.0
    assert float(spectrum.gain.min()) > -1e-9


def test_long_windows_are_searched_by_the_filter(monkeypatch):
    x = measurements(400, 2)
    record, whitener, _ = prepare(x, window=400)
    exact = periodogram(record, whitener, fmin=2.0, fmax=45.0)
    for module in (transforms, record_module):
        monkeypatch.setattr(module, "MAX_DENSE_WINDOW", 128)
    monkeypatch.setattr(transforms, "MAX_FILTER_ORDER", 64)
    record, whitener, _ = prepare(x, window=400)
    assert whitener.whitener.filtered
    found = periodogram(record, whitener, fmin=2.0, fmax=45.0)
    top = exact.gain.amax()
    assert float((found.gain - exact.gain).abs().max()) < 0.05 * float(top)
    assert float((found.gain - exact.gain).abs().max()) > 1e-6 * float(top)
    best = found.peaks(1, separation=0.1)[:, 0]
    np.testing.assert_allclose(best, FREQUENCY, atol=0.1)


def test_peaks_are_distinct_local_maxima_best_first():
    gain = torch.tensor(
        [[0, 1, 5, 4, 0, 3, 0, 0, 4.5, 0], [9, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
    )
    spectrum = Periodogram(torch.arange(10.0) + 10, gain - 1)
    assert spectrum.peaks(3, separation=1.0)[0].tolist() == [12, 18, 15]
    # With a separation of 3 the smaller neighbour is no peak of its own.
    assert spectrum.peaks(2, separation=3.0)[0].tolist() == [12, 18]
    assert spectrum.peaks(1, separation=1.0)[1].tolist() == [10]


def test_missing_peaks_repeat_the_best():
    rising = Periodogram(torch.arange(4.0), torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    assert rising.peaks(3, separation=1.0).tolist() == [[3, 3, 3]]
    single = Periodogram(torch.tensor([7.0]), torch.tensor([[1.0]]))
    assert single.peaks(2, separation=1.0).tolist() == [[7, 7]]


# --- normal equations -----------------------------------------------------------------


def test_normal_equations_are_solved_whatever_the_units():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 5, 5, generator=generator).double()
    units = torch.tensor([1e-6, 1.0, 1e5, 3.0, 1e-3]).double()
    gram = (root @ root.mT + torch.eye(5)) * units[:, None] * units
    right = torch.randn(3, 5, generator=generator).double()
    found = solve_normal(gram, right)
    for k in range(3):
        reference = np.linalg.solve(gram[k].numpy(), right[k].numpy())
        np.testing.assert_allclose(found[k], reference, rtol=1e-8)
        inverse = np.linalg.inv(gram[k].numpy())
        np.testing.assert_allclose(inverse_information(gram)[k], inverse, rtol=1e-8)
    # A direction without information moves nowhere.
    gram[:, 2] = gram[:, :, 2] = 0
    right[:, 2] = 0
    assert (solve_normal(gram, right)[:, 2] == 0).all()


def form_for(record, *, count=1, low=2.0, high=45.0):
    geometry = Geometry(record.length, record.sample_rate)
    return Sinusoids(count, geometry, low=low, high=high)


def test_the_linear_fit_is_weighted_least_squares():
    record, whitener, r = prepare(with_gaps(measurements(120)), window=120)
    everyone = torch.arange(1)
    features = gls_features(whitener)
    target = features(record.x.unsqueeze(1), everyone)[:, 0]
    frequency = torch.tensor([[FREQUENCY]], dtype=torch.float64)
    found = linear_fit(form_for(record), record, features, everyone, frequency, target)
    index, precision = dense_precision(record, r)
    a = signals.linear_columns(record.t, frequency)[0].flatten(1).numpy()[:, index]
    y = record.x.flatten().numpy()[index]
    exact = np.linalg.solve(a @ precision @ a.T, a @ precision @ y)
    np.testing.assert_allclose(found[0, :3], exact, rtol=1e-8)
    assert float(found[0, 3]) == FREQUENCY
    plain = np.linalg.lstsq(a.T, y, rcond=None)[0]
    assert np.abs(plain / exact - 1).max() > 1e-3


def test_frequencies_are_clamped_to_one_band_or_one_each():
    f = torch.tensor([[1.0, 5.0], [9.0, 20.0]]).double()
    geometry = Geometry(100, RATE)
    one = Sinusoids(2, geometry, low=2.0, high=8.0)
    assert clamp(one, f).tolist() == [[2, 5], [8, 8]]
    low, high = torch.tensor([[0.0], [10.0]]), torch.tensor([[4.0], [30.0]])
    each = Sinusoids(2, geometry, low=low, high=high)
    assert clamp(each, f).tolist() == [[1, 4], [10, 20]]
    assert clamp(each, f[:1], torch.tensor([1])).tolist() == [[10, 10]]


# --- generalised least squares --------------------------------------------------------


def model(t, *p):
    """Any number of sinusoids in the order of `signals.parameter_names`."""
    total = np.full(len(t), p[-1])
    for k in range(0, len(p) - 1, 3):
        total = total + signals.sinusoid(t, *p[k : k + 3])
    return total


def model_jacobian(t, *p):
    columns = []
    for k in range(0, len(p) - 1, 3):
        amplitude, frequency, phase = p[k : k + 3]
        angle = 2 * np.pi * frequency * t + phase
        columns += [
            np.sin(angle),
            amplitude * 2 * np.pi * t * np.cos(angle),
            amplitude * np.cos(angle),
        ]
    return np.stack([*columns, np.ones_like(t)], 1)


def by_curve_fit(record, r, start, b=0):
    """The one-liner to agree with, on the samples present."""
    index, precision = dense_precision(record, r, b)
    t = record.t.flatten().numpy()[index] + record.middle
    y = record.x[b].flatten().numpy()[index]
    value, covariance = curve_fit(
        model,
        t,
        y,
        p0=start,
        sigma=np.linalg.inv(precision),
        absolute_sigma=True,
        jac=model_jacobian,
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    return value, covariance


def fit_gls(record, whitener, *, count=1, n_starts=2, fmin=2.0, fmax=45.0, guess=None):
    form = form_for(record, count=count, low=fmin, high=fmax)
    fits = gls_starts(form, record, whitener, n_starts=n_starts, guess=guess)
    values, covariance = form.natural(fits[0].theta, fits[0].covariance)
    return fits, values.numpy(), covariance.numpy()


@pytest.mark.parametrize(
    ("n", "window", "gapped"),
    [(300, 300, False), (250, 300, False), (120, 120, True), (290, 120, True)],
)
def test_gls_is_curve_fit_with_the_covariance(n, window, gapped):
    x = measurements(n, 3)
    if gapped:
        x = with_gaps(x)
    record, whitener, r = prepare(x, window=window)
    _, values, covariance = fit_gls(record, whitener)
    for b in range(3):
        theirs, their_covariance = by_curve_fit(record, r, TRUTH, b)
        np.testing.assert_allclose(values[b], theirs, rtol=1e-6)
        np.testing.assert_allclose(
            np.sqrt(covariance[b].diagonal()),
            np.sqrt(their_covariance.diagonal()),
            rtol=1e-6,
        )
        sd = np.sqrt(their_covariance.diagonal())
        difference = (covariance[b] - their_covariance) / sd[:, None] / sd
        assert np.abs(difference).max() < 1e-6
        # With white noise of the same variance it would be another fit.
        white = torch.zeros_like(r)
        white[0] = r[0]
        plain, plain_covariance = by_curve_fit(record, white, TRUTH, b)
        assert np.abs(values[b] - plain).max() > 1e-3
        assert plain_covariance[0, 0] > 1.5 * covariance[b, 0, 0]


def test_the_energy_is_half_the_weighted_squares_of_the_residual():
    record, whitener, r = prepare(with_gaps(measurements(120)), window=120)
    (fit, *_), _, _ = fit_gls(record, whitener)
    index, precision = dense_precision(record, r)
    left = (record.x - signals.evaluate(record.t, fit.theta)).flatten().numpy()[index]
    exact = 0.5 * left @ precision @ left
    assert float(fit.energy[0]) == pytest.approx(exact, rel=1e-9)
    assert float(fit.residual.square().sum()) == pytest.approx(2 * exact, rel=1e-9)
    # The projection leaves a residual orthogonal to the linear columns, not to others.
    columns = signals.linear_columns(record.t, fit.theta[:, 3:])[0].flatten(1)
    columns = columns.numpy()[:, index]
    assert np.abs(columns @ precision @ left).max() < 1e-6
    assert np.abs(columns @ left).max() > 1e-2


def test_every_batch_entry_is_fitted_as_if_alone():
    x = measurements(120, 3)
    x[1] = with_gaps(x[1:2])[0]
    record, whitener, _ = prepare(x, window=120)
    _, together, _ = fit_gls(record, whitener)
    for b in range(3):
        alone, single, _ = prepare(x[b : b + 1], window=120)
        _, values, _ = fit_gls(alone, single)
        np.testing.assert_allclose(values[0], together[b], rtol=1e-8)


def test_fits_come_best_first_and_from_different_peaks():
    record, whitener, _ = prepare(measurements(300, 4), window=300)
    fits, _, _ = fit_gls(record, whitener, n_starts=4)
    spectrum = periodogram(record, whitener, fmin=2.0, fmax=45.0)
    energies = torch.stack([fit.energy for fit in fits])
    assert len(fits) == 4
    assert (energies.diff(dim=0) >= 0).all()
    frequencies = torch.stack([fit.theta[:, -1] for fit in fits])
    assert float((frequencies[0] - FREQUENCY).abs().max()) < 0.1
    assert float((frequencies[1:] - FREQUENCY).abs().min()) > 0.1
    # The gain of the periodogram is the drop of energy, up to its grid.
    features = gls_features(whitener)
    everyone = torch.arange(4)
    ones = features(torch.ones_like(record.x.unsqueeze(1)), everyone)[:, 0]
    target = features(record.x.unsqueeze(1), everyone)[:, 0]
    level = (ones * target).sum(-1, keepdim=True) / ones.square().sum(-1, keepdim=True)
    constant = 0.5 * (target - level * ones).square().sum(-1)
    gain = constant - energies[0]
    torch.testing.assert_close(gain, spectrum.gain.amax(-1), rtol=0.02, atol=0.0)
    assert (gain >= spectrum.gain.amax(-1) - 1e-9).all()


def test_frequencies_stay_in_the_band():
    record, whitener, _ = prepare(measurements(300, 2), window=300)
    # The signal is just outside: the fit leans on the edge and does not cross it.
    _, values, _ = fit_gls(record, whitener, fmin=2.0, fmax=12.15)
    assert (values[:, 1] <= 12.15).all()
    np.testing.assert_allclose(values[:, 1], 12.15, atol=1e-12)
    # The same data in a band that contains it.
    _, values, _ = fit_gls(record, whitener, fmin=2.0, fmax=13.0)
    np.testing.assert_allclose(values[:, 1], FREQUENCY, atol=0.05)


def test_a_guess_replaces_the_search():
    record, whitener, _ = prepare(measurements(300, 2), window=300)
    _, searched, _ = fit_gls(record, whitener)
    guess = torch.full((2, 1), FREQUENCY + 0.1, dtype=torch.float64)
    low, high = guess - 1, guess + 1
    fits, values, _ = fit_gls(record, whitener, guess=guess, fmin=low, fmax=high)
    assert len(fits) == 1
    np.testing.assert_allclose(values, searched, rtol=1e-8)
    # Bounds per measurement hold, and a search over several bands is refused.
    high[1] = FREQUENCY - 0.15
    _, values, _ = fit_gls(record, whitener, guess=guess - 0.3, fmin=low, fmax=high)
    assert values[1, 1] == pytest.approx(FREQUENCY - 0.15, abs=1e-12)
    assert values[0, 1] == pytest.approx(searched[0, 1], rel=1e-8)
    with pytest.raises(TypeError, match="same bounds"):
        fit_gls(record, whitener, fmin=low, fmax=high)


TWO = (1.0, 12.3, 0.7, 0.3, 14.1, -2.0, 0.4)


def two_sinusoids(n=300):
    noise = draw(pink_autocovariance(n), 2, seed=3)
    return torch.from_numpy(model(np.arange(n) / RATE, *TWO) + noise)


def test_two_sinusoids_are_found_and_fitted_as_by_curve_fit():
    record, whitener, r = prepare(two_sinusoids(), window=300)
    fits, values, covariance = fit_gls(record, whitener, count=2, n_starts=3)
    assert values.shape == (2, 7)
    assert len(fits) == 3
    for b in range(2):
        theirs, their_covariance = by_curve_fit(record, r, TWO, b)
        np.testing.assert_allclose(values[b], theirs, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(
            np.sqrt(covariance[b].diagonal()),
            np.sqrt(their_covariance.diagonal()),
            rtol=1e-6,
        )
        pulls = (values[b] - TWO) / np.sqrt(covariance[b].diagonal())
        assert np.abs(pulls).max() < 4
    # One sinusoid leaves the other in the residual: tens of nats.
    (single, *_), _, _ = fit_gls(record, whitener)
    assert float((single.energy - fits[0].energy).min()) > 10


def test_gauss_newton_limits_its_steps_in_frequency():
    record, whitener, _ = prepare(measurements(300), window=300)
    everyone = torch.arange(1)
    features = gls_features(whitener)
    target = features(record.x.unsqueeze(1), everyone)[:, 0]
    start = torch.tensor([[FREQUENCY + 0.15]], dtype=torch.float64)
    theta = linear_fit(form_for(record), record, features, everyone, start, target)
    limit = 0.25 / record.duration
    path = [
        float(
            gauss_newton(
                form_for(record), record, features, everyone, theta, target,
                steps=steps,
            ).theta[0, 3]
        )
        for steps in range(8)
    ]  # fmt: skip
    assert path[0] == float(start)
    assert np.abs(np.diff(path)).max() <= limit * (1 + 1e-9)
    assert path[-1] == pytest.approx(FREQUENCY, abs=0.05)
    assert path[-1] == pytest.approx(path[-2], abs=1e-6)


# --- robust fits ----------------------------------------------------------------------


def fit_robust(record, whitener, start):
    fit = robust_fit(form_for(record), record, whitener, start)
    values, covariance = signals.to_polar(
        fit.theta, fit.covariance, middle=record.middle
    )
    return fit, values.numpy(), covariance.numpy()


@pytest.mark.parametrize("gapped", [False, True])
def test_outliers_move_gls_but_not_the_robust_fit(gapped):
    clean = measurements(300, 20, seed=5)
    rng = np.random.default_rng(6)
    spikes = np.where(rng.random(clean.shape) < 0.05, rng.normal(0, 15, clean.shape), 0)
    x = clean + torch.from_numpy(spikes)
    if gapped:
        x = with_gaps(x)
    record, whitener, _ = prepare(x, window=300)
    guess = torch.full((20, 1), FREQUENCY, dtype=torch.float64)
    (gls,), gls_values, _ = fit_gls(record, whitener, guess=guess)
    _, robust_values, _ = fit_robust(record, whitener, gls)
    gls_error = np.sqrt(np.mean((gls_values - TRUTH) ** 2, axis=0))
    robust_error = np.sqrt(np.mean((robust_values - TRUTH) ** 2, axis=0))
    # Amplitude, frequency and phase; the bias is lost in the pink noise either way.
    assert (robust_error[:3] < 0.3 * gls_error[:3]).all()


def spoilt(x, size, count):
    """The same with outliers of `size` standard deviations of the noise."""
    x = x.clone()
    for k in range(count):
        x[:, 70 + 83 * k] = (-1) ** k * size * 0.5
    return x


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", [5, 50, 500, 1e6])
def test_the_robust_fit_finds_the_frequency_under_outliers_of_any_size(size, count):
    x = spoilt(measurements(300, 40, seed=15), size, count)
    record, whitener, _ = prepare(x, window=300)
    (gls, *_), _, _ = fit_gls(record, whitener)
    _, values, covariance = fit_robust(record, whitener, gls)
    pulls = (values - TRUTH)[:, :3] / np.sqrt(covariance[:, range(3), range(3)])
    assert np.abs(values[:, 1] - FREQUENCY).max() < 0.2
    # Of 40 rows an interval of 95 % misses 6 or more with probability 1.4 %.
    assert (np.abs(pulls) > 1.96).sum(0).max() <= 6
    if size > 50:
        # Negative control: from least squares alone it stays at the outlier's.
        fit = robust_fit(form_for(record), record, whitener, gls, own_start=False)
        lost = np.abs(fit.theta[:, -1].numpy() - FREQUENCY) > 0.2
        assert lost.mean() > 0.5


@pytest.mark.parametrize("signal", ["damped", "harmonics", "chirp"])
def test_other_forms_survive_an_outlier_too(signal):
    x = measurements(300, 1, seed=16)
    prior = GaussianPrior(pink_autocovariance(150), sample_rate=RATE, level=0.0)
    clean, broken = (
        sepprior.separate(v.numpy(), prior, signal=signal, fmax=20).baselines["robust"]
        for v in (x, spoilt(x, 500, 1))
    )
    for name in ("frequency", "amplitude_1" if signal == "harmonics" else "amplitude"):
        shift = broken[name].value[0] - clean[name].value[0]
        assert abs(shift) < clean[name].stderr[0], name


def test_without_outliers_nothing_is_replaced():
    x = measurements(300, 100, seed=17)
    record, whitener, _ = prepare(with_gaps(x), window=150)
    _, count = without_outliers(record, whitener)
    assert not count.any()


def test_what_looks_like_an_outlier_but_is_signal_stays():
    t = np.arange(300) / RATE
    decaying = 100 * np.exp(-12 * t) * np.sin(2 * np.pi * 30 * t)
    x = torch.from_numpy(decaying) + measurements(300, 1, truth=(0, 9, 0, 0), seed=18)
    record, whitener, _ = prepare(x, window=300)
    assert without_outliers(record, whitener)[1].all()
    form = DampedSinusoid(Geometry(300, RATE), low=1.0, high=45.0)
    gls = gls_starts(form, record, whitener, n_starts=1)[0]
    fits = [
        robust_fit(form, record, whitener, gls, own_start=own) for own in (True, False)
    ]
    assert torch.equal(fits[0].theta, fits[1].theta)


def test_in_gaussian_noise_the_robust_fit_costs_a_few_percent():
    record, whitener, _ = prepare(measurements(300, 200, seed=7), window=300)
    guess = torch.full((200, 1), FREQUENCY, dtype=torch.float64)
    (gls,), gls_values, gls_covariance = fit_gls(record, whitener, guess=guess)
    _, values, covariance = fit_robust(record, whitener, gls)
    sd = np.sqrt(np.diagonal(gls_covariance, axis1=1, axis2=2))
    assert np.abs((values - gls_values) / sd).max() < 1.5
    assert np.abs(values - gls_values).max() > 1e-4
    # 95 % efficient: the variance is larger by 1 / 0.95 on average. Without the degrees
    # of freedom it would be smaller by 4 / 300.
    ratio = covariance[:, 0, 0] / gls_covariance[:, 0, 0]
    assert ratio.mean() == pytest.approx(1 / 0.95, abs=0.02)


def test_the_robust_fit_is_a_stationary_point_of_the_cauchy_loss():
    x = with_gaps(measurements(120, 1, seed=8))
    x[0, 70] += 6.0
    record, whitener, _ = prepare(x, window=120)
    (gls, *_), _, _ = fit_gls(record, whitener)
    fit, _, _ = fit_robust(record, whitener, gls)
    present = record.present.flatten().numpy()

    def terms(theta):
        features = gls_features(whitener)
        everyone = torch.arange(1)
        columns = features(signals.jacobian_columns(record.t, theta), everyone)
        target = features(record.x.unsqueeze(1), everyone)[:, 0]
        signal = features(signals.evaluate(record.t, theta).unsqueeze(1), everyone)
        residual = (target - signal[:, 0]).flatten().numpy()
        used = np.abs(residual[present])
        # The lower median, as torch takes it.
        scale = 2.385 * 1.4826 * np.sort(used)[(used.size - 1) // 2]
        u = (residual / scale) ** 2
        return columns[0].numpy(), residual / (1 + u), (1 - u) / (1 + u) ** 2

    def gradient(theta):
        j, psi, _ = terms(theta)
        return j @ psi / np.sqrt((j**2).sum(1))

    assert np.abs(gradient(fit.theta)).max() < 1e-3
    assert np.abs(gradient(gls.theta)).max() > 0.05
    # Huber 1981, section 7.6, over the samples present and four parameters.
    j, psi, slope = terms(fit.theta)
    inflation = (psi[present] ** 2).sum() / (present.sum() - 4)
    inflation /= slope[present].mean() ** 2
    np.testing.assert_allclose(
        fit.covariance[0], inflation * np.linalg.inv(j @ j.T), rtol=1e-6
    )
    assert abs(slope.mean() / slope[present].mean() - 1) > 0.01


# --- error bars -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pulls():
    """(estimate - truth) / standard error of 300 trials in pink noise, (300, 4)."""
    record, whitener, _ = prepare(measurements(300, 300, seed=11), window=300)
    guess = torch.full((300, 1), FREQUENCY + 0.03, dtype=torch.float64)
    _, values, covariance = fit_gls(record, whitener, guess=guess)
    difference = values - np.array(TRUTH)
    difference[:, 2] = np.angle(np.exp(1j * difference[:, 2]))
    return difference / np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))


def inside(pulls, half_width=1.0):
    return (np.abs(pulls) < half_width).sum(0)


def band(trials, *, error=0.001):
    """Counts that a 68.3 % interval gives except with probability `error`."""
    return stats.binom(trials, math.erf(math.sqrt(0.5))).interval(1 - error)


@pytest.mark.statistical
@pytest.mark.parametrize("parameter", range(4))
def test_68_percent_intervals_cover_68_percent(pulls, parameter):
    """Each of the four tests fails a correct program in one seed of a thousand."""
    low, high = band(len(pulls))
    assert low <= inside(pulls)[parameter] <= high


@pytest.mark.statistical
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_wrong_intervals_are_caught(pulls, factor):
    low, high = band(len(pulls))
    counts = inside(pulls, factor)
    assert ((counts < low) | (counts > high)).all()


@pytest.mark.statistical
def test_the_pulls_are_standard_normal(pulls):
    """Kolmogorov and Smirnov; fails a correct program in four seeds of ten thousand."""
    for k in range(4):
        assert stats.kstest(pulls[:, k], "norm").pvalue > 1e-4
        assert stats.kstest(2.0 * pulls[:, k], "norm").pvalue < 1e-4


def test_some_of_the_measurements_are_worked_on_in_parts_too(monkeypatch):
    """Rows 2 and 0 of three with gaps of their own, three windows at a time."""
    x = with_gaps(measurements(900, 3))
    x[1, 50:80] = np.nan
    x[2, 610:640] = np.nan
    record, whitener, _ = prepare(x, window=120)
    rows = torch.tensor([2, 0])
    features = gls_features(whitener).select(rows)
    columns = torch.randn(2, 3, *record.x.shape[1:], dtype=torch.float64)
    both = torch.arange(2)
    whole = features(columns, both)
    torch.testing.assert_close(whole, gls_features(whitener)(columns, rows))
    monkeypatch.setattr(least_squares, "SAMPLES_AT_ONCE", 2 * 3 * 120)
    parts = least_squares.parts_of(record, features, 2)
    assert len(parts) == 3
    begin = 0
    for part in parts:
        end = begin + part.record.x.shape[1]
        own = part.features(columns[:, :, begin:end], both)
        torch.testing.assert_close(own, whole[..., part.at])
        begin = end
    # Of other rows it would be something else.
    assert not torch.allclose(features(columns, both.flip(0)), whole)


@pytest.mark.parametrize("signal", ["sinusoid", "chirp"])
def test_many_windows_at_a_time_or_few_give_the_same_fit(signal, monkeypatch):
    """Two measurements with different gaps, all 15 windows together or 3 at a time."""
    lag = torch.arange(300, dtype=torch.float64)
    prior = GaussianPrior(0.09 * 0.8**lag, level=0.1, sample_rate=30.0)
    rng = np.random.default_rng(0)
    t = np.arange(4500) / 30.0
    x = np.sin(2 * np.pi * 1.3 * t + 0.3) + 0.3 * rng.standard_normal((2, 4500))
    x[:, 500:700] = np.nan
    x[1, 4000:4100] = np.nan

    def fitted():
        return sepprior.separate(x, prior, signal=signal, fmin=1.0, fmax=2.0)

    whole = fitted()
    calls = []
    windows = MaskedWhitener.windows

    def counted(self, begin, end):
        calls.append((begin, end))
        return windows(self, begin, end)

    monkeypatch.setattr(MaskedWhitener, "windows", counted)
    monkeypatch.setattr(least_squares, "SAMPLES_AT_ONCE", 2000)
    monkeypatch.setattr(separation, "SAMPLES_AT_ONCE", 2000)
    parts = fitted()
    assert (12, 15) in calls
    for name in ("covariance", "signal", "signal_band", "whitened"):
        ours, theirs = getattr(parts, name), getattr(whole, name)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    for name, robust in whole.baselines["robust"].items():
        ours = parts.baselines["robust"][name]
        np.testing.assert_allclose(ours.value, robust.value, rtol=1e-6, atol=1e-8)
