"""Which prior is worth it? Known sinusoids, one noise, several priors.

    python examples/compare_priors.py [PRIOR.safetensors ...] [--measurements 60]

Compares the bundled prior, and any files that are given, with a Gaussian one that is
learned here from a minute of the same noise. The same measurements for all of them.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from first_steps import BUNDLED
from make_example import RATE, measurement, recording

import sepprior

NAMES = ("amplitude", "frequency", "phase", "bias")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--measurements", type=int, default=60)
    parser.add_argument("-o", "--output", default="compare_priors.png")
    options = parser.parse_args(arguments)
    drawn = [measurement(2000 + i) for i in range(options.measurements)]
    x = np.stack([each[1] for each in drawn])
    minute = recording(seconds=60)
    priors = {
        "gaussian": sepprior.train_noise(minute, sample_rate=RATE, model="gaussian")
    }
    for path in [BUNDLED, *options.files]:
        priors[path.stem] = sepprior.load_prior(path)
    bars = {}
    for label, prior in priors.items():
        found = sepprior.separate(x, prior, fmin=1, fmax=10).parameters
        truth = {name: np.array([each[2][name] for each in drawn]) for name in NAMES}
        off = {name: found[name].value - truth[name] for name in NAMES}
        off["phase"] = np.angle(np.exp(1j * off["phase"]))
        bars[label] = [np.sqrt(np.mean(off[name] ** 2)) for name in NAMES]
        inside = [np.mean(np.abs(off[n]) < found[n].stderr) for n in NAMES]
        print(label, "rms errors", np.round(bars[label], 3), "coverage", inside)
    for k, (label, rms) in enumerate(bars.items()):
        ratio = np.array(rms) / bars["gaussian"]
        plt.bar(np.arange(4) + 0.8 * k / len(bars), ratio, 0.8 / len(bars), label=label)
    plt.xticks(np.arange(4) + 0.2, NAMES)
    plt.ylabel("rms error over that of the Gaussian prior")
    plt.legend(frameon=False)
    plt.savefig(options.output, dpi=150)
    plt.close()
    return bars


if __name__ == "__main__":
    main()
