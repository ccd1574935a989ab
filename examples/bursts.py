"""Noise in which least squares fails: clicks, hum and a pump inside the band.

    python examples/bursts.py [--measurements 40]

Known sinusoids in the noise of the bundled instrument. The picture has the errors of
least squares with the noise's own covariance (GLS), of a robust fit, and of the prior.
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
from first_steps import BUNDLED
from make_example import measurement

import sepprior


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measurements", type=int, default=40)
    parser.add_argument("-o", "--output", default="bursts.png")
    options = parser.parse_args(arguments)
    drawn = [measurement(1000 + i) for i in range(options.measurements)]
    truth = np.array([each[2]["amplitude"] for each in drawn])
    result = sepprior.separate(
        np.stack([each[1] for each in drawn]),
        sepprior.load_prior(BUNDLED),
        fmin=1,
        fmax=10,
    )
    errors = {
        name: np.abs(result.baselines[name]["amplitude"].value - truth)
        for name in ("gls", "robust")
    }
    errors["prior"] = np.abs(result.parameters["amplitude"].value - truth)
    for name, error in errors.items():
        rms = np.sqrt(np.mean(error**2))
        print(f"{name:7} amplitude error: rms {rms:.3f}, median {np.median(error):.3f}")
        share = np.arange(1, error.size + 1) / error.size
        plt.step(np.sort(error), share, where="post", label=f"{name}, rms {rms:.3f}")
    plt.gca().set(
        xlabel="error of the amplitude",
        ylabel="share of the measurements",
        title="The further left, the better",
        xscale="log",
    )
    plt.legend(frameon=False)
    plt.savefig(options.output, dpi=150)
    plt.close()
    return errors


if __name__ == "__main__":
    main()
