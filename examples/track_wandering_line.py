"""Follow a line that wanders in frequency and amplitude through coloured noise.

    python examples/track_wandering_line.py [FOLDER]

Trains a Gaussian prior on noise alone, tracks the line in windows of 3 s, compares
with the truth, and draws `track.png` in FOLDER.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.signal import lfilter

import sepprior

SAMPLE_RATE = 100.0
WINDOW = 300


def noise(n: int, rng: np.random.Generator) -> np.ndarray:
    """First-order autoregressive noise, standard deviation 1.25."""
    return lfilter([1.0], [1.0, -0.6], rng.standard_normal(n))


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    rng = np.random.default_rng(1)
    prior = sepprior.train_noise(
        noise(60_000, rng), sample_rate=SAMPLE_RATE, model="gaussian", window=WINDOW
    )

    t = np.arange(60_000) / SAMPLE_RATE
    frequency = 12 + 0.2 * np.sin(2 * np.pi * t / 170) + 0.1 * np.sin(t / 11)
    amplitude = 1.2 + 0.6 * np.cos(2 * np.pi * t / 400)
    line = amplitude * np.sin(2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE)
    x = noise(len(t), rng) + line
    x[25_000:26_500] = np.nan  # the recorder was off

    track = sepprior.track(x, prior, fmin=5, fmax=30)
    print(track.report())

    seen = track.table[track.table["detected"]]
    for name, truth in (("frequency", frequency), ("amplitude", amplitude)):
        at_centre = np.interp(seen["centre"], t, truth)
        inside = (seen[f"{name}_low"] < at_centre) & (at_centre < seen[f"{name}_high"])
        print(f"{name}: truth inside the 95 % interval in {inside.mean():.1%}")
    error = np.nanstd(track.signal - line)
    print(f"separated signal: rms error {error:.3f}, noise {np.nanstd(x - line):.3f}")
    track.plot(folder / "track.png")


if __name__ == "__main__":
    main()
