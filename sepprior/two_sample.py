"""Telling two sets of noise windows apart by features: classifier, neighbours.

Dimensions: n and m windows, N samples each, F frequencies, D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import linalg, spatial

from sepprior.measures import periodograms

_MAX_NEIGHBOURS = 2000  # windows used for density and coverage (n^2 distances)
_RIDGE = 10.0  # inverse prior variance of the classifier's weights


def window_features(windows: np.ndarray, spectrum: np.ndarray) -> np.ndarray:
    """What a trained eye would look at in each window, as numbers.

    Logarithm of the power in bands and its scatter within them; of the window as it
    is and whitened: quantiles, skewness, kurtosis, peak, asymmetry under time
    reversal; the power of the whitened window in eighths and its scatter over time.

    Args:
        windows: (n, N), in units such that the reference noise has zero mean and unit
            variance. The set itself must not set the units: that would mark it.
        spectrum: (F,) mean periodogram (sample rate 1) of the reference noise.

    Returns:
        (n, D), not scaled.
    """
    n, n_samples = windows.shape
    spectrum = np.maximum(spectrum, 1e-12 * spectrum.max() + np.finfo(float).tiny)
    relative = np.maximum(periodograms(windows) / spectrum, 1e-9)
    bands = _blocks(relative, 24).T
    speckles = _blocks(np.log(relative), 8).T - np.log(_blocks(relative, 8).T)
    taper = np.hanning(n_samples)
    whitened = np.fft.irfft(
        np.fft.rfft(windows * taper, axis=1) / np.sqrt(spectrum), n_samples, axis=1
    )
    power = np.maximum(_blocks(whitened**2, 8).T, 1e-12)
    fine = np.log(np.maximum(_blocks(whitened**2, min(64, n_samples // 4)), 1e-12))
    quantiles = np.quantile(windows, [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98], 1)
    return np.column_stack(
        [
            np.log(bands),
            speckles,
            quantiles.T,
            np.log(power),
            fine.std(0),
            *_shape_features(windows),
            *_shape_features(whitened),
        ]
    ).reshape(n, -1)


@dataclass(frozen=True)
class TwoSampleTest:
    """Held-out accuracy of a classifier and its binomial standard error."""

    accuracy: float
    stderr: float


def classifier_two_sample(
    first: np.ndarray, second: np.ndarray, *, folds: int = 5
) -> TwoSampleTest:
    """Classifier two-sample test (Lopez-Paz and Oquab 2017).

    A logistic regression on the features and their squares learns to tell the sets
    apart; its accuracy on windows it has not seen is 0.5 if they have one
    distribution. Cross-validated by contiguous blocks; both classes count equally.

    Args:
        first: (n, D) features.
        second: (m, D) features.
        folds: number of blocks.
    """
    labels = np.repeat([0.0, 1.0], [len(first), len(second)])
    fold = np.concatenate(
        [np.arange(len(x)) * folds // len(x) for x in (first, second)]
    )
    features = np.concatenate([first, second])
    correct = np.zeros(len(labels))
    for k in range(folds):
        train, test = fold != k, fold == k
        inputs = _standardised(features, features[train])
        inputs = np.column_stack([inputs, _standardised(inputs**2, inputs[train] ** 2)])
        weights = _logistic_regression(inputs[train], labels[train])
        decision = weights[0] + inputs[test] @ weights[1:]
        correct[test] = (decision > 0) == (labels[test] > 0.5)
    accuracy = 0.5 * sum(float(correct[labels == c].mean()) for c in (0, 1))
    return TwoSampleTest(accuracy, 0.5 / math.sqrt(len(labels)))


def density_coverage(
    real: np.ndarray, generated: np.ndarray, *, k: int = 5
) -> tuple[float, float]:
    """Density and coverage of generated windows (Naeem et al. 2020, eq. 4 and 5).

    Balls around the real points reach to their k-th neighbour. Density is the number
    of balls a generated point lies in, over k (about 1); coverage the fraction of
    balls that hold a generated point (about `1 - 2^-k`, 0.97, for equal numbers). Low
    density: implausible windows; low coverage: kinds of noise that are missing.

    Args:
        real: (n, D) features.
        generated: (m, D) features.
        k: neighbours.
    """
    real, generated = real[:_MAX_NEIGHBOURS], generated[:_MAX_NEIGHBOURS]
    among = spatial.distance.cdist(real, real)
    radius = np.sort(among, axis=1)[:, min(k, len(real) - 1)]  # 0 is the point itself
    inside = spatial.distance.cdist(real, generated) <= radius[:, None]
    return float(inside.sum() / (k * len(generated))), float(inside.any(1).mean())


def principal_components(
    first: np.ndarray, second: np.ndarray, *, dimensions: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Features on the leading principal components of both sets, unit variance.

    The components are those of both together: those of one alone would fit it better
    than the other, and mark it.

    Args:
        first: (n, D).
        second: (m, D).
        dimensions: components kept.
    """
    both = np.concatenate([first, second])
    left, singular, _ = np.linalg.svd(_standardised(both, both), full_matrices=False)
    keep = min(dimensions, max(int((singular > 1e-8 * singular[0]).sum()), 1))
    scores = left[:, :keep] * math.sqrt(len(both))
    return scores[: len(first)], scores[len(first) :]


def _blocks(values: np.ndarray, count: int) -> np.ndarray:
    """Means over `count` (or fewer) blocks of the last axis; (blocks, n)."""
    parts = np.array_split(values, min(count, values.shape[1]), axis=1)
    return np.stack([part.mean(1) for part in parts])


def _shape_features(windows: np.ndarray) -> list[np.ndarray]:
    """Skewness, kurtosis, peak, asymmetry of slopes; (n,) each, tails compressed."""
    centred = windows - windows.mean(1, keepdims=True)
    sd = np.maximum(centred.std(1, keepdims=True), 1e-9)
    scaled = centred / sd
    slopes = np.diff(scaled, axis=1)
    slope_sd = np.maximum(slopes.std(1), 1e-9)
    return [
        np.arcsinh((scaled**3).mean(1)),
        np.log((scaled**4).mean(1) + 1e-12),
        np.log(np.abs(scaled).max(1) + 1e-12),
        np.arcsinh((slopes**3).mean(1) / slope_sd**3),
        np.log((slopes**4).mean(1) / slope_sd**4 + 1e-12),
        np.log(slope_sd),
    ]


def _standardised(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance on the reference, limited to ten deviations."""
    sd = reference.std(0)
    scaled = (values - reference.mean(0)) / np.where(sd > 1e-9, sd, 1.0)
    return np.clip(scaled, -10, 10)


def _logistic_regression(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights (1 + D,) of the ridge-penalised fit, by Newton steps."""
    design = np.column_stack([np.ones(len(inputs)), inputs])
    weights = np.zeros(design.shape[1])
    penalty = np.full(design.shape[1], _RIDGE)
    penalty[0] = 1e-6
    for _ in range(12):
        probability = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        slope = design.T @ (labels - probability) - penalty * weights
        variance = np.maximum(probability * (1 - probability), 1e-6)
        curvature = (design.T * variance) @ design + np.diag(penalty)
        step = linalg.solve(curvature, slope, assume_a="pos")
        weights += step
        if np.abs(step).max() < 1e-6:
            break
    return weights
