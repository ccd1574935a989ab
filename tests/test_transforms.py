"""The short-time Fourier frame and the whitener against scipy and dense algebra."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import solve_toeplitz
from scipy.signal import stft
from scipy.stats import multivariate_normal

from sepprior import transforms
from sepprior.transforms import (
    TightSTFT,
    Whitener,
    cholesky_covariance,
    frame_length,
    levinson,
    toeplitz,
)

WINDOWS = [64, 65, 101, 128, 300, 333, 512, 777, 1000]
A1, A2 = 1.2, -0.8
"""``x_n = A1 x_{n-1} + A2 x_{n-2} + e_n``, var e = 1: a resonance."""


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def snr_db(truth, found):
    return float(
        10 * torch.log10(truth.square().sum() / (found - truth).square().sum())
    )


def frame_of(window):
    return TightSTFT(window, frame_length(window))


def ar2_autocovariance(n):
    """Yule-Walker: r_1 = A1 r_0 / (1 - A2), and the recursion from there."""
    r = np.empty(n)
    r[0] = (1 - A2) / ((1 + A2) * ((1 - A2) ** 2 - A1**2))
    r[1] = A1 * r[0] / (1 - A2)
    for k in range(2, n):
        r[k] = A1 * r[k - 1] + A2 * r[k - 2]
    return torch.from_numpy(r)


def pink_autocovariance(n):
    """Spectrum 1 / f above the resolution, flat below, plus a white floor."""
    frequency = np.arange(8 * n) / (16 * n)
    power = 1 / np.maximum(frequency, 1 / n)
    lag = np.arange(n)
    r = np.cos(2 * np.pi * np.outer(lag, frequency)) @ power
    r[0] += 0.01 * r[0]
    return torch.from_numpy(r / r[0])


class HannSTFT(TightSTFT):
    """The negative control: a taper whose square does not add up to one."""

    def _taper(self, like):
        return super()._taper(like).square()


# --- the frame ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "length"),
    [(16, 8), (64, 16), (300, 32), (1024, 64), (16384, 256), (65536, 512)],
)
def test_the_frame_length_makes_the_plane_nearly_square(window, length):
    assert frame_length(window) == length


def test_the_published_plane_has_128_rows_without_nyquist():
    stft_16384 = frame_of(16384)
    assert (stft_16384.n_bins - 1, stft_16384.hop) == (128, 128)
    # Every sample in two frames: one frame more than without the leading half.
    assert stft_16384.n_frames == 129


@pytest.mark.parametrize("window", WINDOWS)
def test_analysis_keeps_the_energy_and_synthesis_restores_the_samples(window):
    frame = frame_of(window)
    y = random(3, window)
    coefficients = frame.analyse(y)
    assert coefficients.shape == (3, frame.n_bins, frame.n_frames)
    energy = (frame.multiplicity(y) * coefficients.abs().square()).sum((-1, -2))
    torch.testing.assert_close(energy, y.square().sum(-1), rtol=1e-13, atol=0)
    assert snr_db(y, frame.synthesise(coefficients)) > 250


@pytest.mark.parametrize("window", [64, 65, 300])
def test_a_taper_that_is_not_power_complementary_fails(window):
    wrong = HannSTFT(window, frame_length(window))
    y = random(window)
    coefficients = wrong.analyse(y)
    energy = (wrong.multiplicity(y) * coefficients.abs().square()).sum()
    assert abs(float(energy / y.square().sum()) - 1) > 0.05
    assert snr_db(y, wrong.synthesise(coefficients)) < 30


@pytest.mark.parametrize("window", [64, 101, 300])
def test_synthesis_is_the_adjoint_of_analysis(window):
    frame = frame_of(window)
    y = random(window)
    c = torch.complex(
        random(frame.n_bins, frame.n_frames, seed=1),
        random(frame.n_bins, frame.n_frames, seed=2),
    )
    k = frame.multiplicity(y)
    left = (k * frame.analyse(y) * c.conj()).real.sum()
    right = (y * frame.synthesise(c)).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    # Without the multiplicity of the one-sided bins it is not.
    assert abs(float((frame.analyse(y) * c.conj()).real.sum() - right)) > 0.1


def test_analysis_is_the_stft_of_scipy():
    window, length = 101, 16
    frame = TightSTFT(window, length)
    y = random(window)
    taper = np.sin(np.pi * (np.arange(length) + 0.5) / length)
    tail = (frame.n_frames + 1) * frame.hop - frame.hop - window
    padded = np.pad(y.numpy(), (frame.hop, tail))
    _, _, reference = stft(
        padded, window=taper, nperseg=length, noverlap=frame.hop,
        boundary=None, padded=False,
    )  # fmt: skip
    reference = reference * taper.sum() / math.sqrt(length)
    np.testing.assert_allclose(frame.analyse(y).numpy(), reference, atol=1e-13)
    # scipy's default taper is another transform.
    _, _, hann = stft(
        padded, nperseg=length, noverlap=frame.hop, boundary=None, padded=False
    )
    assert np.abs(frame.analyse(y).numpy() - hann).max() > 0.1


@pytest.mark.parametrize("window", [64, 101, 300])
def test_the_share_of_a_frame_is_its_part_of_white_noise_energy(window):
    frame = frame_of(window)
    eye = torch.eye(window, dtype=torch.float64)
    # E sum_f k |Y_ft|^2 over white noise is the sum over unit impulses.
    energy = (frame.multiplicity(eye) * frame.analyse(eye).abs().square()).sum((0, 1))
    share = frame.frame_share(eye)
    torch.testing.assert_close(share * frame.length / 2, energy, rtol=1e-12, atol=1e-12)
    assert float(share.sum()) == pytest.approx(2 * window / frame.length)
    assert float(share[0]) < 0.9
    assert float(share[1]) == pytest.approx(1.0)


def test_the_frame_works_in_float32_and_passes_gradients():
    frame = frame_of(300)
    y = random(300).float()
    assert frame.analyse(y).dtype == torch.complex64
    assert snr_db(y, frame.synthesise(frame.analyse(y))) > 100
    point = random(64).requires_grad_()
    small = TightSTFT(64, 16)

    def weigh(p):
        coefficients = small.analyse(p)
        return (small.multiplicity(p) * coefficients.abs().square()).sum()

    (gradient,) = torch.autograd.grad(weigh(point), point)
    torch.testing.assert_close(gradient, 2 * point.detach(), rtol=1e-12, atol=1e-12)


# --- linear prediction and Cholesky ---------------------------------------------------


def test_linear_prediction_finds_the_coefficients_of_an_ar2_process():
    taps, variance = levinson(ar2_autocovariance(20), 2)
    np.testing.assert_allclose(taps, [1, -A1, -A2], atol=1e-12)
    assert float(variance) == pytest.approx(1.0, rel=1e-12)
    longer, _ = levinson(ar2_autocovariance(20), 10)
    np.testing.assert_allclose(longer[3:], 0, atol=1e-12)
    # One tap cannot whiten it: the innovation keeps more variance.
    _, short = levinson(ar2_autocovariance(20), 1)
    assert float(short) > 1.5


def test_linear_prediction_solves_the_yule_walker_equations():
    r = pink_autocovariance(65)
    taps, variance = levinson(r, 64)
    a = np.linalg.solve(toeplitz(r[:64]).numpy(), -r[1:].numpy())
    np.testing.assert_allclose(taps[1:], a, atol=1e-8)
    # det C_65 / det C_64 is the variance of the innovation.
    big, small = (np.linalg.slogdet(toeplitz(r[:n]).numpy())[1] for n in (65, 64))
    assert float(variance.log()) == pytest.approx(big - small, abs=1e-8)


def test_the_factor_of_a_positive_definite_covariance_is_untouched():
    covariance = toeplitz(ar2_autocovariance(50))
    factor = cholesky_covariance(covariance)
    np.testing.assert_allclose(
        factor, np.linalg.cholesky(covariance.numpy()), rtol=1e-12, atol=1e-12
    )


def test_the_factor_of_a_singular_covariance_is_mended_within_rounding():
    line = torch.cos(0.3 * torch.arange(50, dtype=torch.float64))
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(toeplitz(line).numpy())
    factor = cholesky_covariance(toeplitz(line))
    assert float((factor @ factor.mT - toeplitz(line)).abs().max()) < 1e-9


def test_what_is_no_autocovariance_at_all_is_refused():
    r = torch.tensor([1.0, 5.0, -5.0, 5.0])
    with pytest.raises(ArithmeticError, match="not that of any stationary process"):
        cholesky_covariance(toeplitz(r))


# --- whitening, dense -----------------------------------------------------------------


@pytest.fixture(params=["ar2", "pink"])
def covariance_300(request):
    make = {"ar2": ar2_autocovariance, "pink": pink_autocovariance}[request.param]
    return make(300)


def matrix_of(whitener):
    eye = torch.eye(whitener.window, dtype=torch.float64)
    return whitener.forward(eye).mT


def test_the_whitener_turns_the_covariance_into_the_identity(covariance_300):
    w = matrix_of(Whitener(covariance_300))
    c = toeplitz(covariance_300)
    error = (w @ c @ w.mT - torch.eye(300, dtype=torch.float64)).abs().max()
    assert float(error) < 1e-10
    # That of another process does not.
    other = toeplitz(0.9 ** torch.arange(300, dtype=torch.float64)) * c[0, 0]
    wrong = (w @ other @ w.mT - torch.eye(300, dtype=torch.float64)).abs().max()
    assert float(wrong) > 0.1


def test_half_log_det_and_the_square_give_the_density_of_scipy(covariance_300):
    whitener = Whitener(covariance_300)
    c = toeplitz(covariance_300).numpy()
    sign, log_det = np.linalg.slogdet(c)
    assert sign == 1
    assert whitener.half_log_det == pytest.approx(0.5 * log_det, abs=1e-8)
    x = random(4, 300)
    nll = 0.5 * whitener.forward(x).square().sum(-1) + whitener.half_log_det
    nll = nll + 150 * math.log(2 * math.pi)
    reference = -multivariate_normal(np.zeros(300), c).logpdf(x.numpy())
    np.testing.assert_allclose(nll, reference, rtol=1e-9)


def test_inverse_and_adjoint_are_what_they_say(covariance_300):
    whitener = Whitener(covariance_300)
    x = random(2, 3, 300)
    y = whitener.forward(x)
    assert y.shape == x.shape
    torch.testing.assert_close(whitener.inverse(y), x, rtol=0, atol=1e-9)
    w = matrix_of(whitener)
    u = random(2, 3, 300, seed=1)
    torch.testing.assert_close(whitener.adjoint(u), u @ w, rtol=1e-10, atol=1e-10)
    # The adjoint is not the inverse.
    assert float((whitener.adjoint(y) - x).abs().max()) > 0.1


def test_whitening_is_causal():
    w = matrix_of(Whitener(pink_autocovariance(64)))
    assert float(w.triu(1).abs().max()) == 0.0


def test_whitening_is_done_in_float64():
    whitener = Whitener(pink_autocovariance(64))
    x = random(64).float()
    assert whitener.forward(x).dtype == torch.float64
    torch.testing.assert_close(whitener.forward(x), whitener.forward(x.double()))
    assert whitener.to("cpu").half_log_det == whitener.half_log_det


# --- whitening, by a filter -----------------------------------------------------------


@pytest.fixture
def short_filter(monkeypatch):
    monkeypatch.setattr(transforms, "MAX_DENSE_WINDOW", 32)
    monkeypatch.setattr(transforms, "MAX_FILTER_ORDER", 8)


def dense_and_filtered(monkeypatch, r):
    dense = Whitener(r)
    monkeypatch.setattr(transforms, "MAX_DENSE_WINDOW", 32)
    monkeypatch.setattr(transforms, "MAX_FILTER_ORDER", 8)
    filtered = Whitener(r)
    assert filtered.filtered and not dense.filtered
    return dense, filtered


def test_the_filter_is_exact_for_a_process_of_lower_order(monkeypatch):
    dense, filtered = dense_and_filtered(monkeypatch, 2.7 * ar2_autocovariance(100))
    assert filtered.half_log_det == pytest.approx(dense.half_log_det, abs=1e-10)
    x = random(2, 3, 100)
    y = dense.forward(x)
    torch.testing.assert_close(filtered.forward(x), y, rtol=0, atol=1e-11)
    torch.testing.assert_close(filtered.inverse(y), x, rtol=0, atol=1e-10)
    torch.testing.assert_close(filtered.inverse(y[0, 0]), x[0, 0], rtol=0, atol=1e-10)


def test_the_filter_is_not_exact_for_a_process_of_higher_order(monkeypatch):
    dense, filtered = dense_and_filtered(monkeypatch, pink_autocovariance(100))
    x = random(100)
    difference = (filtered.forward(x) - dense.forward(x)).abs()
    assert float(difference[:8].max()) < 1e-10  # the exact head
    assert float(difference[8:].max()) > 1e-3
    # Still a bijection: nothing is lost.
    restored = filtered.inverse(filtered.forward(x))
    torch.testing.assert_close(restored, x, rtol=0, atol=1e-10)


def test_the_adjoint_of_the_filter_is_exact_beyond_the_first_samples(monkeypatch):
    dense, filtered = dense_and_filtered(monkeypatch, ar2_autocovariance(100))
    w = matrix_of(dense)
    u = random(3, 100)
    found = filtered.adjoint(u)
    torch.testing.assert_close(found[:, 2:], (u @ w)[:, 2:], rtol=0, atol=1e-11)
    assert float((found[:, :2] - (u @ w)[:, :2]).abs().max()) > 1e-3
    # Where the rows of the edge are not asked for, there is no edge effect.
    u[:, :2] = 0.0
    torch.testing.assert_close(filtered.adjoint(u), u @ w, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("short_filter")
def test_the_filter_colours_white_noise_with_the_right_covariance():
    r = ar2_autocovariance(60)
    # L = W^-1 as a matrix, so C = L L^T without any sampling.
    inverse = Whitener(r).inverse(torch.eye(60, dtype=torch.float64)).mT
    torch.testing.assert_close(inverse @ inverse.mT, toeplitz(r), rtol=0, atol=1e-9)


def test_the_covariance_matrix_is_symmetric_toeplitz():
    r = pink_autocovariance(20)
    x = random(20)
    found = torch.linalg.solve(toeplitz(r), x)
    np.testing.assert_allclose(found, solve_toeplitz(r.numpy(), x.numpy()), rtol=1e-7)
