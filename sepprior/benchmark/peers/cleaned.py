"""Denoise first, fit afterwards: noisereduce and PyWavelets."""

from __future__ import annotations

import warnings
from typing import cast

import numpy as np

from sepprior.benchmark.baselines import Estimate, curve_fit_plain
from sepprior.benchmark.methods import Fitter, Runs, band
from sepprior.benchmark.noise import WINDOW, Array
from sepprior.benchmark.scenarios import Cell, Trials

FRAME = 128
"""Samples of a frame of noisereduce; its default is longer than a window."""
WAVELET, LEVELS = "sym8", 4


def noisereduce_fit(cell: Cell, runs: Runs) -> Fitter:
    """``reduce_noise(stationary=True, y_noise=record)``, then `curve_fit`.

    Spectral gating by the noise-only record, at its mean level: the default of 1.5
    standard deviations more takes a tenth of the amplitude along. Smoothing of the mask
    in Hz and in ms, made for speech, is off.
    """
    import noisereduce  # pyright: ignore[reportMissingImports]

    noise = np.concatenate(list(runs))
    level = noise.mean()

    def clean(x: Array) -> Array:
        mean = x.mean()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reduced = noisereduce.reduce_noise(
                y=x - mean,
                sr=cast(int, cell.sample_rate),
                y_noise=noise - level,
                stationary=True,
                n_fft=FRAME,
                n_std_thresh_stationary=cast(float, 0.0),
                freq_mask_smooth_hz=cast(int, None),
                time_mask_smooth_ms=cast(int, None),
            )
        return np.asarray(reduced, dtype=np.float64) + mean

    def fit(trials: Trials) -> dict[str, Estimate]:
        cleaned = np.stack([clean(x) for x in trials.x])
        return curve_fit_plain(cleaned, **band(trials))

    return fit


def pywavelets_fit(cell: Cell, runs: Runs) -> Fitter:
    """Hard threshold ``s_j sqrt(2 ln N)`` on the wavelet details, then `curve_fit`.

    The level s_j of each scale is the median absolute value of its details in the
    noise-only record over 0.6745 (Johnstone and Silverman, 1997).
    """
    del cell
    import pywt  # pyright: ignore[reportMissingImports]

    def details(x: Array) -> list[Array]:
        return pywt.wavedec(x, WAVELET, mode="symmetric", level=LEVELS, axis=-1)

    size = WINDOW
    windows = np.concatenate(
        [run[: run.size // size * size].reshape(-1, size) for run in runs]
    )
    levels = [np.median(np.abs(d)) / 0.6745 for d in details(windows)[1:]]
    reach = np.sqrt(2 * np.log(size))

    def fit(trials: Trials) -> dict[str, Estimate]:
        smooth, *fine = details(trials.x)
        kept = [
            pywt.threshold(d, reach * level, mode="hard")
            for d, level in zip(fine, levels, strict=True)
        ]
        cleaned = pywt.waverec([smooth, *kept], WAVELET, mode="symmetric", axis=-1)
        return curve_fit_plain(cleaned[:, : trials.x.shape[1]], **band(trials))

    return fit
