"""The methods that need no prior: what each is given, and how it is called.

A method is prepared once per cell with the noise-only record, and then fits trials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

from sepprior.benchmark.baselines import (
    Estimate,
    curve_fit_plain,
    gls_scipy,
    record_covariance,
)
from sepprior.benchmark.bounds import gls_true, oracle, true_covariance
from sepprior.benchmark.chain import chain_oracle
from sepprior.benchmark.mapped import ar_cauchy, cauchy_scipy, esprit, whittle
from sepprior.benchmark.noise import WINDOW, Array
from sepprior.benchmark.scenarios import RECORD_WINDOWS, Cell, Trials

Runs = Sequence[Array]
Fitter = Callable[[Trials], Mapping[str, Estimate]]

CLASSICAL_WINDOWS = 20
"""Windows of the noise-only record for the classical methods: its first run."""


class Unavailable(Exception):
    """A method cannot do a cell; the message is the reason, for the reader."""


@dataclass(frozen=True)
class Method:
    """A way to estimate the parameters of a sinusoid.

    Attributes:
        name: Key of the method.
        prepare: ``(cell, noise-only runs) -> (trials -> estimates)``; may raise
            `Unavailable`.
        how: What it does, in a phrase, and with which calls.
        windows: Windows of the record it is given.
        most_trials: Trials it is given at most, because it is slow.
        trains: Whether `prepare` is a training whose time is to be told.
        package: The distribution that has to be installed, where it is not needed
            otherwise.
    """

    name: str
    prepare: Callable[[Cell, Runs], Fitter]
    how: str
    windows: int = CLASSICAL_WINDOWS
    most_trials: int | None = None
    trains: bool = False
    package: str | None = None


class Band(TypedDict):
    """The arguments that every fit takes."""

    sample_rate: float
    fmin: float
    fmax: float


def band(trials: Trials) -> Band:
    """Sample rate and search band of a cell."""
    return Band(sample_rate=trials.sample_rate, fmin=trials.fmin, fmax=trials.fmax)


class _RunsFit(Protocol):
    def __call__(
        self,
        x: Array,
        runs: Runs,
        *,
        sample_rate: float,
        fmin: float,
        fmax: float,
    ) -> dict[str, Estimate]: ...


def _with_runs(fit: _RunsFit) -> Callable[[Cell, Runs], Fitter]:
    def prepare(cell: Cell, runs: Runs) -> Fitter:
        del cell
        return lambda trials: fit(trials.x, runs, **band(trials))

    return prepare


def _without_record(fit: Fitter) -> Callable[[Cell, Runs], Fitter]:
    def prepare(cell: Cell, runs: Runs) -> Fitter:
        del cell, runs
        return fit

    return prepare


def _curve_fit(trials: Trials) -> dict[str, Estimate]:
    return curve_fit_plain(trials.x, **band(trials))


def _esprit(trials: Trials) -> dict[str, Estimate]:
    return esprit(trials.x, **band(trials))


def _gls(
    x: Array, runs: Runs, *, sample_rate: float, fmin: float, fmax: float
) -> dict[str, Estimate]:
    covariance = record_covariance(runs, WINDOW)
    return gls_scipy(x, covariance, sample_rate=sample_rate, fmin=fmin, fmax=fmax)


def _chain(cell: Cell, runs: Runs) -> Fitter:
    del runs
    if cell.scenario.name != "telegraph":
        raise Unavailable("it knows the noise of telegraph only")
    covariance = true_covariance(cell)
    return lambda trials: chain_oracle(trials.x, covariance, **band(trials))


CLASSICAL: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "curve_fit",
            _without_record(_curve_fit),
            "scipy.optimize.curve_fit from the highest peak of a periodogram",
        ),
        Method("esprit", _without_record(_esprit), "ESPRIT, then least squares"),
        Method(
            "gls_scipy",
            _with_runs(_gls),
            "curve_fit(sigma=C, absolute_sigma=True), C from the autocovariance of 20 "
            "windows",
        ),
        Method("whittle", _with_runs(whittle), "Whittle's likelihood, 20 windows"),
        Method(
            "cauchy_scipy",
            _with_runs(cauchy_scipy),
            "Cauchy loss on the GLS-whitened residual, 20 windows",
        ),
        Method(
            "cauchy_1000",
            _with_runs(cauchy_scipy),
            "the same with the autocovariance of 1000 windows",
            windows=RECORD_WINDOWS,
        ),
        Method(
            "ar_cauchy",
            _with_runs(ar_cauchy),
            "Cauchy loss on the residual filtered by an AR(20) model, 1000 windows",
            windows=RECORD_WINDOWS,
        ),
        Method(
            "gls_true",
            _without_record(gls_true),
            "GLS with the true covariance",
        ),
        Method(
            "oracle",
            _without_record(oracle),
            "GLS that is told the bursts, the levels or the pulse",
        ),
        Method(
            "oracle_chain",
            _chain,
            "exact likelihood of a two-level chain whose switching times are unknown",
            most_trials=200,
        ),
    )
}
"""Methods without a prior that need nothing but scipy."""
