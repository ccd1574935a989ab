"""Your own generator as the prior G: any differentiable map from z to a waveform.

    python examples/own_generator.py [-o own_generator.png]

The instrument hears a machine whose pulses have a known shape but an unknown time and
height in every window. A small torch module knows that; what it cannot produce is left
to a stationary Gaussian remainder, whose autocovariance stands beside it.
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
import torch

import sepprior
from sepprior.priors import WaveformPrior

RATE, N = 100.0, 200
SD = 0.1


class Pulse(torch.nn.Module):
    """z = (time, height) to a pulse at time 1 + 0.3 z_0 of height 2 + 0.5 z_1."""

    def forward(self, z):
        t = torch.arange(N, dtype=z.dtype) / RATE
        u = (t - 1 - 0.3 * z[..., :1]) / 0.08
        return (2 + 0.5 * z[..., 1:]) * torch.exp(-0.5 * u**2)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", default="own_generator.png")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = Pulse()(torch.randn(4000, 2, dtype=torch.float64)).numpy()
    power = np.mean(np.abs(np.fft.rfft(drawn - drawn.mean(), 2 * N)) ** 2, axis=0)
    white = torch.zeros(N, dtype=torch.float64)
    white[0] = SD**2
    whole = white + torch.from_numpy(np.fft.irfft(power)[:N] / N)
    prior = WaveformPrior(
        Pulse(), n_latent=2, range_autocovariance=white, autocovariance=whole,
        sample_rate=RATE,
    )  # fmt: skip
    t = np.arange(N) / RATE
    true = 0.4 * np.sin(2 * np.pi * 1.3 * t + 0.5) + 1
    x = true + drawn[0] + np.random.default_rng(1).normal(0, SD, N)
    result = sepprior.separate(x, prior, fmin=0.6, fmax=5)
    print(result.report())
    plt.plot(t, x, color="0.6", lw=0.8, label="measurement")
    plt.plot(t, true, "k", lw=2, alpha=0.5, label="true signal")
    plt.plot(t, result.signal, label="separated signal")
    plt.legend(frameon=False)
    plt.savefig(options.output, dpi=150)
    plt.close()
    return result


if __name__ == "__main__":
    main()
