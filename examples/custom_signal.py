"""A signal of your own: any function of time and parameters, written with torch.

    python examples/custom_signal.py [-o custom_signal.png]

Here an echo, ``height exp(-((t - centre) / width)^2 / 2) cos(2 pi 8 (t - centre)) +
level``, in the noise of the bundled instrument. Default values are starting guesses; a
parameter in which the function is linear (height, level) needs none.
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
import torch
from first_steps import BUNDLED
from make_example import RATE, SAMPLES, noise

import sepprior

TRUTH = {"height": 1.2, "centre": 0.55, "width": 0.12, "level": 0.4}


def echo(t, height, centre=0.5, width=0.1, level=0.0):
    u = t - centre
    wave = torch.exp(-0.5 * (u / width) ** 2) * torch.cos(2 * torch.pi * 8 * u)
    return height * wave + level


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", default="custom_signal.png")
    options = parser.parse_args(arguments)
    t = np.arange(SAMPLES) / RATE
    true = echo(torch.from_numpy(t), **TRUTH).numpy()
    x = true + noise(np.random.default_rng(5), SAMPLES)
    bounds = {"centre": (0.4, 0.7), "width": (0.04, 0.3)}
    prior = sepprior.load_prior(BUNDLED)
    result = sepprior.separate(x, prior, signal=echo, bounds=bounds)
    print(result.report())
    for name, value in TRUTH.items():
        found = result.parameters[name]
        print(f"{name}: {found.value:.3f} +/- {found.stderr:.3f} (true {value})")
    plt.plot(t, x, color="0.6", lw=0.8, label="measurement")
    plt.plot(t, true, "k", lw=2, alpha=0.5, label="true signal")
    plt.plot(t, result.signal, label="separated signal")
    plt.gca().set(xlabel="time (s)")
    plt.legend(frameon=False)
    plt.savefig(options.output, dpi=150)
    plt.close()
    return result


if __name__ == "__main__":
    main()
