"""Verdicts on generated noise: each measure with its floor, its limit and its meaning.

A limit is the tolerance below, plus what chance may add: standard errors of the error,
of distances the floor as well. The tolerances say how much of a difference a separation
would not notice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sepprior import measures, two_sample
from sepprior.comparison import Comparison, Measure
from sepprior.measures import jackknife_stderr

PSD_TOLERANCE_DB = 0.5  # 6 % in amplitude: error bars change by as much
AUTOCORRELATION_TOLERANCE = 0.03  # of the variance
MEAN_TOLERANCE = 0.05  # standard deviations: the bias is a parameter of the fit
SD_TOLERANCE = 0.05  # relative: 5 % too small, and 95 % intervals hold 94 %
SKEWNESS_TOLERANCE = 0.1  # over 1 + |skewness| of real noise
KURTOSIS_TOLERANCE = 0.1  # relative: how often outliers come
WASSERSTEIN_TOLERANCE = 0.03  # standard deviations: that of a scale 4 % off
KS_TOLERANCE = 0.02  # probability: that of a Gaussian shifted by 0.05 deviations
SPECKLE_GAP_TOLERANCE = 0.06  # nats: a tenth of the 0.577 of Gaussian noise
SPECKLE_SPREAD_TOLERANCE_DB = 0.3  # a twentieth of the 5.57 dB of Gaussian noise
HOP_TOLERANCE = 1.1  # ratio of variances: 5 % in amplitude
ACCURACY_TOLERANCE = 0.1  # over chance: 6 windows of 10 recognised
DENSITY_TOLERANCE = 0.25  # of 1
COVERAGE_TOLERANCE = 0.1  # of 1: a tenth of real noise has nothing generated near it
NLL_TOLERANCE = 0.01  # nats per sample over Gaussian noise

_SIGMAS = 3  # a measure may exceed its tolerance by so many standard errors
_FLOORS = 2  # or by so many floors, where there is no standard error


def psd(pair: Comparison) -> Measure:
    """Rms over frequency of the ratio of the mean periodograms."""
    return _distance(
        pair,
        measures.psd_error_db,
        pair.real_spectra,
        pair.generated_spectra,
        title="PSD error (dB)",
        tolerance=PSD_TOLERANCE_DB,
        meaning="the spectrum is off: the noise has changed since training, or it "
        "takes more steps, or more weight of the spectral loss",
    )


def autocorrelation(pair: Comparison) -> Measure:
    """Rms over lags of the difference of the autocorrelations."""
    return _distance(
        pair,
        measures.autocorrelation_error,
        pair.real_covariances,
        pair.generated_covariances,
        title="autocorrelation error",
        tolerance=AUTOCORRELATION_TOLERANCE,
        meaning="the noise remembers its past for another time than it should",
    )


def moments(pair: Comparison) -> dict[str, Measure]:
    """Mean, standard deviation, skewness and kurtosis of the sample values."""
    raw = [
        measures.raw_moments(x, centre=pair.level, scale=pair.scale)
        for x in (pair.real, pair.generated)
    ]
    skewness, kurtosis = measures.moments(raw[0])[2:]
    return _statistics(
        pair,
        measures.moments,
        raw[0],
        raw[1],
        {
            "mean": ("mean / real sd", MEAN_TOLERANCE, "the level is off"),
            "sd": ("sd / real sd", SD_TOLERANCE, "too loud or too quiet"),
            "skewness": (
                "skewness",
                SKEWNESS_TOLERANCE * (1 + abs(skewness)),
                "the noise leans to the wrong side",
            ),
            "kurtosis": (
                "kurtosis",
                KURTOSIS_TOLERANCE * kurtosis,
                "bursts and outliers are too rare or too frequent",
            ),
        },
    )


def wasserstein(pair: Comparison) -> Measure:
    """Wasserstein-1 distance of the sample values."""
    return _distance(
        pair,
        measures.amplitude_distance,
        pair.real / pair.scale,
        pair.generated / pair.scale,
        title="amplitude Wasserstein / real sd",
        tolerance=WASSERSTEIN_TOLERANCE,
        meaning="the amplitudes are distributed differently",
    )


def kolmogorov_smirnov(pair: Comparison) -> Measure:
    """Largest difference of the distribution functions of the sample values."""
    return _distance(
        pair,
        measures.kolmogorov_smirnov,
        pair.real,
        pair.generated,
        title="amplitude KS distance",
        tolerance=KS_TOLERANCE,
        meaning="the amplitudes are distributed differently",
    )


def speckle(pair: Comparison) -> dict[str, Measure]:
    """Randomness of the spectrum: the alarms for a collapsed generator."""
    meaning = "the spectrum is not as random as that of real noise: collapse if lower, "
    meaning += "an unsteady level if higher"
    return _statistics(
        pair,
        measures.speckle,
        pair.real_spectra,
        pair.generated_spectra,
        {
            "speckle_gap": ("speckle gap (nat)", SPECKLE_GAP_TOLERANCE, meaning),
            "speckle_spread": (
                "speckle spread (dB)",
                SPECKLE_SPREAD_TOLERANCE_DB,
                meaning,
            ),
        },
    )


def hop_variance(pair: Comparison, *, hops: Sequence[int]) -> Measure:
    """Modulation of the variance with the position modulo a hop, at the worst hop.

    The error is the ratio of the generated to the real modulation, of all windows; the
    floor the median ratio (1 or more) of two real halves at the same hop.

    Args:
        pair: real and generated windows, (n, N) each.
        hops: samples between two frames, those that are searched.
    """
    real, generated = pair.real - pair.level, pair.generated - pair.level
    found = []
    for hop in hops:
        own, own_stderr = measures.hop_variance_ratio(generated, hop)
        reference, stderr = measures.hop_variance_ratio(real, hop)
        error = own / reference
        relative = math.hypot(own_stderr / own, stderr / reference)
        limit = HOP_TOLERANCE * (1 + _SIGMAS * relative)
        found.append((error / limit, error, limit, own, reference, relative, hop))
    worst = max(found)[0]
    # Multiples of a hop see it too: name the shortest of those that are as bad.
    _, error, limit, own, reference, relative, hop = next(
        f for f in found if f[0] >= 0.9 * worst and (f[0] > 1) == (worst > 1)
    )
    floors = [
        abs(math.log(_hop_ratio(real[a], hop) / _hop_ratio(real[b], hop)))
        for a, b in pair.splits
    ]
    where = "along the window" if hop == real.shape[1] else f"every {hop} samples"
    return Measure(
        title=f"variance ratio {where}",
        generated=own,
        real=reference,
        error=error,
        floor=math.exp(float(np.median(floors))),
        limit=limit,
        stderr=error * relative,
        ideal=1.0,
        meaning="the variance depends on the position in the window: artefacts of "
        "overlapping frames, of strided layers, or of reconstructed phases",
    )


def classifier(pair: Comparison) -> Measure:
    """Held-out accuracy of a classifier that learns to tell the two apart.

    The floor is that of one pair of real halves. It has learned from half as many
    windows, and may see less, but would come to 0.5 with any number unless the noise
    drifts; where it lies above that by three standard errors, the limit starts from it.
    """
    real, generated = pair.features
    test = two_sample.classifier_two_sample(real, generated)
    first, second = pair.splits[0]
    floor = two_sample.classifier_two_sample(real[first], real[second])
    drifts = floor.accuracy > 0.5 + _SIGMAS * floor.stderr
    chance = floor.accuracy if drifts else 0.5
    return Measure(
        title="two-sample accuracy",
        error=test.accuracy,
        floor=floor.accuracy,
        limit=chance + max(ACCURACY_TOLERANCE, _SIGMAS * test.stderr),
        stderr=test.stderr,
        ideal=0.5,
        meaning="a classifier tells generated windows from real ones",
    )


def density_coverage(pair: Comparison) -> dict[str, Measure]:
    """Whether generated windows are plausible, and whether they are of every kind.

    Generated and real values are both of halves, averaged over the two ways to take
    them and of these the median over the splits. The floor is the median difference of
    the two ways with real halves: the scatter of a single value, about twice that of
    the error.
    """
    real, generated = two_sample.principal_components(*pair.features)
    own, reference, scatter = [], [], []
    for a, b in pair.splits:
        ways = [
            two_sample.density_coverage(real[i], real[j]) for i, j in ((a, b), (b, a))
        ]
        reference.append(np.mean(ways, axis=0))
        scatter.append(np.abs(np.subtract(ways[0], ways[1])))
        ways = [
            two_sample.density_coverage(real[i], generated[j])
            for i, j in ((a, b), (b, a))
        ]
        own.append(np.mean(ways, axis=0))
    own, reference = np.median(own, axis=0), np.median(reference, axis=0)
    floor = np.median(scatter, axis=0)
    missed = np.clip(1 - reference[1], 1 / len(real), 1)
    binomial = math.sqrt(missed * (1 - missed) / len(real))
    return {
        "density": Measure(
            title="density",
            generated=float(own[0]),
            real=float(reference[0]),
            error=float(abs(own[0] - reference[0])),
            floor=float(floor[0]),
            limit=float(DENSITY_TOLERANCE + _FLOORS * floor[0]),
            meaning="generated windows are implausible (lower) or all of the most "
            "common kind (higher)",
        ),
        "coverage": Measure(
            title="coverage",
            generated=float(own[1]),
            real=float(reference[1]),
            error=float(reference[1] - own[1]),
            floor=float(floor[1]),
            limit=float(COVERAGE_TOLERANCE + _SIGMAS * binomial),
            meaning="kinds of real noise are missing among the generated ones",
        ),
    }


def heldout_nll(nll: np.ndarray, gaussian: np.ndarray) -> Measure:
    """Likelihood of real noise under the prior against Gaussian noise.

    Args:
        nll: (n,) negative log-likelihood under the prior, nats per sample.
        gaussian: (n,) the same for Gaussian noise with the prior's autocovariance.
    """
    excess = nll - gaussian
    stderr = float(excess.std(ddof=1)) / math.sqrt(len(excess))
    return Measure(
        title="NLL over Gaussian (nat/sample)",
        error=float(excess.mean()),
        floor=0.0,
        limit=NLL_TOLERANCE + _SIGMAS * stderr,
        stderr=stderr,
        meaning="real noise is less likely than under Gaussian noise of the same "
        "autocovariance: the noise has changed since training, or it takes more steps; "
        "or use the gaussian prior",
    )


def _hop_ratio(windows: np.ndarray, hop: int) -> float:
    return measures.hop_variance_ratio(windows, hop)[0]


def _distance(
    pair: Comparison,
    of: Callable[[np.ndarray, np.ndarray], float],
    real: np.ndarray,
    generated: np.ndarray,
    *,
    title: str,
    tolerance: float,
    meaning: str,
) -> Measure:
    error, floor, stderr = pair.distance(of, real, generated)
    return Measure(
        title=title,
        error=error,
        floor=floor,
        limit=floor + tolerance + _SIGMAS * stderr,
        stderr=stderr,
        meaning=meaning,
    )


def _statistics(
    pair: Comparison,
    of: Callable[[np.ndarray], np.ndarray],
    real: np.ndarray,
    generated: np.ndarray,
    words: dict[str, tuple[str, float, str]],
) -> dict[str, Measure]:
    """Measures of several statistics that one function returns.

    The error is the difference between all real and all generated items, the standard
    error that of this difference. The floor is the median over the splits of the
    difference between two real halves, and as these are half as large it scatters more;
    no limit depends on it.

    Args:
        pair: for its splits.
        of: the function of items (n', ...), returning (k,).
        real: (n, ...) items.
        generated: (n, ...) items.
        words: k times name to title, tolerance and meaning.
    """
    in_real, in_generated = of(real), of(generated)
    floors = [np.abs(of(real[a]) - of(real[b])) for a, b in pair.splits]
    stderr = np.hypot(jackknife_stderr(of, real), jackknife_stderr(of, generated))
    found = {}
    for i, (name, (title, tolerance, meaning)) in enumerate(words.items()):
        found[name] = Measure(
            title=title,
            generated=float(in_generated[i]),
            real=float(in_real[i]),
            error=float(abs(in_generated[i] - in_real[i])),
            floor=float(np.median(floors, axis=0)[i]),
            limit=float(tolerance + _SIGMAS * stderr[i]),
            stderr=float(stderr[i]),
            meaning=meaning,
        )
    return found
