"""The calibration line of LIGO Hanford at 331.9 Hz, in windows of a quarter second.

    python examples/ligo_line.py [H-H1_LOSC_4_V2-....hdf5]

Takes a strain file of the Gravitational Wave Open Science Center (gwosc.org, 32 s at
4096 Hz, HDF5; needs h5py), or makes noise as steep with a line in it. The first half,
with the line taken out, is what the prior learns; the second is measured. Ordinary
least squares finds the line in none of the windows.
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
from scipy import signal

import sepprior

LINE, RATE, WINDOW = 331.9, 1024, 256


def read_strain(path):
    if path is None:
        rng = np.random.default_rng(0)
        f = np.fft.rfftfreq(32 * RATE, 1 / RATE)
        shape = 1e-1 + (60 / np.maximum(f, 20)) ** 4
        x = np.fft.irfft(np.fft.rfft(rng.standard_normal(32 * RATE)) * shape)
        return x + 0.12 * np.sin(2 * np.pi * LINE * np.arange(x.size) / RATE)
    import h5py

    with h5py.File(path) as file:
        strain = file["strain/Strain"]
        x, step = 1e21 * strain[:], strain.attrs["Xspacing"]
    sections = signal.butter(8, 20, "highpass", fs=1 / step, output="sos")
    x = signal.sosfiltfilt(sections, x)
    return signal.resample_poly(x, 1, round(1 / step / RATE))[RATE:-RATE]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?")
    parser.add_argument("-o", "--output", default="ligo_line.png")
    options = parser.parse_args(arguments)
    noise, measured = np.array_split(read_strain(options.file), 2)
    angle = 2 * np.pi * LINE * np.arange(noise.size) / RATE
    design = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    noise = noise - design @ np.linalg.lstsq(design, noise, rcond=None)[0]
    prior = sepprior.train_noise(
        noise, sample_rate=RATE, model="gaussian", window=WINDOW
    )
    windows = measured[: measured.size // WINDOW * WINDOW].reshape(-1, WINDOW)
    f = sepprior.separate(windows, prior, fmin=25, fmax=450).parameters["frequency"]
    print(f"rms error {np.sqrt(np.mean((f.value - LINE) ** 2)):.3f} Hz")
    plt.errorbar(np.arange(len(windows)) / 4, f.value, f.stderr, fmt="o", ms=4)
    plt.axhline(LINE, color="k", lw=0.8)
    plt.gca().set(xlabel="time (s)", ylabel="frequency (Hz)", title="LIGO line")
    plt.savefig(options.output, dpi=150)
    plt.close()
    return f


if __name__ == "__main__":
    main()
