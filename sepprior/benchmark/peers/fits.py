"""Least squares by lmfit, astropy, statsmodels and celerite2."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.signal import periodogram

from sepprior.benchmark.baselines import Estimate, estimates_of, jacobian, model, starts
from sepprior.benchmark.methods import Fitter, Runs
from sepprior.benchmark.noise import Array
from sepprior.benchmark.scenarios import Cell, Trials

ZOOM = 201
"""Frequencies between two of the first grid in `astropy_lombscargle`."""
FREQUENCY_STEPS = 4
"""Linearisations of the frequency in `statsmodels_glsar`."""
AR_ORDER = 4
"""Autoregressive coefficients in `statsmodels_glsar`."""


def each_trial(
    trials: Trials, fit: Callable[[Array], tuple[Array, Array]]
) -> dict[str, Estimate]:
    """Values and standard errors, (4,) each, of one measurement after the other.

    A fit that its package gives up counts as failed: NaN, without an error bar.
    """
    values = np.full((len(trials.x), 4), np.nan)
    errors = np.full((len(trials.x), 4), np.inf)
    for i, x in enumerate(trials.x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the packages say about hard trials
            try:
                values[i], errors[i] = fit(x)
            except (ValueError, RuntimeError, np.linalg.LinAlgError):
                continue
    return estimates_of(values, errors)


def _first(trials: Trials, x: Array) -> Array:
    """Highest peak of an ordinary periodogram, (4,)."""
    return starts(x[None], None, trials.sample_rate, trials.fmin, trials.fmax)[0]


def _from_quadratures(offset: float, cosine: float, sine: float, f: float) -> Array:
    return np.array([np.hypot(cosine, sine), f, np.arctan2(cosine, sine), offset])


def _white_errors(time: Array, x: Array, value: Array) -> Array:
    residual = x - model(time, *value)
    slopes = jacobian(time, *value)
    variance = residual @ residual / (x.size - 4)
    return np.sqrt(variance * np.diag(np.linalg.pinv(slopes.T @ slopes)))


def lmfit_sine(cell: Cell, runs: Runs) -> Fitter:
    """``SineModel() + ConstantModel()`` with the start of ``SineModel.guess``.

    The frequency is bounded by the band.
    """
    del cell, runs
    from lmfit.models import ConstantModel, SineModel  # pyright: ignore[reportMissingImports]

    sine, constant = SineModel(), ConstantModel()
    both = sine + constant

    def fit(trials: Trials) -> dict[str, Estimate]:
        def one(x: Array) -> tuple[Array, Array]:
            start = sine.guess(x, x=trials.time) + constant.guess(x)
            low, high = 2 * np.pi * trials.fmin, 2 * np.pi * trials.fmax
            guess = np.clip(start["frequency"].value, 1.001 * low, 0.999 * high)
            start["frequency"].set(value=guess, min=low, max=high)
            result = both.fit(x, start, x=trials.time)
            names = ("amplitude", "frequency", "shift", "c")
            value = np.array([result.params[name].value for name in names])
            stderr = np.array(
                [result.params[name].stderr or np.inf for name in names], dtype=float
            )
            scale = np.array([1, 1 / (2 * np.pi), 1, 1])
            return value * scale, stderr * scale

        return each_trial(trials, one)

    return fit


def astropy_lombscargle(cell: Cell, runs: Runs) -> Fitter:
    """``LombScargle(t, x)`` with a floating mean, the peak refined by its own power.

    The quadratures are those of ``model_parameters``; error bars, which it does not
    give, are those of least squares in white noise.
    """
    del cell, runs
    from astropy.timeseries import LombScargle  # pyright: ignore[reportMissingImports]

    def fit(trials: Trials) -> dict[str, Estimate]:
        time, span = trials.time, trials.time[-1]
        grid = np.arange(trials.fmin, trials.fmax, 0.05 / span)

        def one(x: Array) -> tuple[Array, Array]:
            spectrum = LombScargle(time, x, fit_mean=True, center_data=True)
            power = spectrum.power(grid, method="cython", assume_regular_frequency=True)
            peak = grid[int(np.argmax(power))]
            fine = np.linspace(peak - 0.05 / span, peak + 0.05 / span, ZOOM)
            fine = fine[(fine >= trials.fmin) & (fine <= trials.fmax)]
            power = spectrum.power(fine, method="cython", assume_regular_frequency=True)
            f = float(fine[int(np.argmax(power))])
            offset, sine, cosine = spectrum.model_parameters(f)
            value = _from_quadratures(
                float(spectrum.offset()) + offset, cosine, sine, f
            )
            return value, _white_errors(time, x, value)

        return each_trial(trials, one)

    return fit


def statsmodels_glsar(cell: Cell, runs: Runs) -> Fitter:
    """``GLSAR(x, X, rho=4).iterative_fit()``: regression with autoregressive errors.

    The frequency, which is not linear, is moved by linearisation: the derivative by f
    is a further column of X, and its coefficient the next step.
    """
    del cell, runs
    from statsmodels.regression.linear_model import GLSAR  # pyright: ignore[reportMissingImports]

    def fit(trials: Trials) -> dict[str, Estimate]:
        time = trials.time

        def one(x: Array) -> tuple[Array, Array]:
            a, f, phi, offset = _first(trials, x)
            cosine, sine = a * np.sin(phi), a * np.cos(phi)
            spread = np.full((4, 4), np.inf)
            for _ in range(FREQUENCY_STEPS):
                angle = 2 * np.pi * f * time
                slope = (
                    2 * np.pi * time * (sine * np.cos(angle) - cosine * np.sin(angle))
                )
                columns = [np.ones_like(time), np.cos(angle), np.sin(angle), slope]
                result = GLSAR(x, np.stack(columns, axis=1), rho=AR_ORDER)
                result = result.iterative_fit(maxiter=3)
                offset, cosine, sine, step = result.params
                spread = result.cov_params()
                reach = 0.1 / time[-1]
                moved = f + np.clip(step, -reach, reach)
                f = float(np.clip(moved, trials.fmin, trials.fmax))
            value = _from_quadratures(offset, cosine, sine, f)
            a = value[0]
            turn = np.array(
                [
                    [0, cosine / a, sine / a, 0],
                    [0, 0, 0, 1],
                    [0, sine / a**2, -cosine / a**2, 0],
                    [1, 0, 0, 0],
                ]
            )
            spread = turn @ spread @ turn.T
            return value, np.sqrt(np.diag(spread))

        return each_trial(trials, one)

    return fit


def celerite2_joint(cell: Cell, runs: Runs) -> Fitter:
    """A Gaussian process and the sinusoid at once, by maximum likelihood.

    The kernel is a damped oscillator (``SHOTerm``) with a jitter; it is found from the
    measurement itself, as the likeliest from a slow start and from one at the highest
    peak of the residual's periodogram, which keeps it from taking the sinusoid for
    noise. Error bars are those of GLS with the kernel that was found.
    """
    del cell, runs
    import celerite2  # pyright: ignore[reportMissingImports]
    from celerite2 import terms  # pyright: ignore[reportMissingImports]
    from celerite2.driver import LinAlgError  # pyright: ignore[reportMissingImports]

    def fit(trials: Trials) -> dict[str, Estimate]:
        time = trials.time

        def process(hyper: Array) -> celerite2.GaussianProcess:
            sigma, rho, q, jitter = np.exp(np.clip(hyper, -12, 12))
            gp = celerite2.GaussianProcess(terms.SHOTerm(sigma=sigma, rho=rho, Q=q))
            gp.compute(time, diag=np.full(time.size, jitter**2))
            return gp

        def one(x: Array) -> tuple[Array, Array]:
            first = _first(trials, x)
            rest = x - model(time, *first)
            scale = float(np.std(rest))
            step = np.array([scale, 0.05 / time[-1], 0.2, scale])
            frequency, power = periodogram(rest, trials.sample_rate, window="hann")
            peak = frequency[1 + int(np.argmax(power[1:]))]
            kernels = [
                [scale, 0.3 * time[-1], 0.7, scale],
                [scale, 1 / peak, 3.0, 0.3 * scale],
            ]
            lowest, best = np.inf, np.append(np.zeros(4), np.log(kernels[0]))

            def cost(p: Array) -> float:
                nonlocal lowest, best
                residual = x - model(time, *(first + step * p[:4]))
                try:
                    value = -process(p[4:]).log_likelihood(residual)
                except LinAlgError:  # a kernel that cannot be factorised
                    return 1e12
                if not np.isfinite(value):
                    return 1e12
                if value < lowest:
                    lowest, best = value, p.copy()
                return value

            for kernel in kernels:
                start = np.append(np.zeros(4), np.log(kernel))
                minimize(cost, start, method="L-BFGS-B")
            value = first + step * best[:4]
            value[1] = np.clip(value[1], trials.fmin, trials.fmax)
            slopes = jacobian(time, *value)
            information = slopes.T @ process(best[4:]).apply_inverse(slopes)
            return value, np.sqrt(np.diag(np.linalg.pinv(information)))

        return each_trial(trials, one)

    return fit
