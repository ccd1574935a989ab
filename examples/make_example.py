"""The synthetic instrument of the bundled example, and everything made with it.

    python examples/make_example.py measurement [--seed 0]   measurement and truth
    python examples/make_example.py noise noise.npz          1000 s without signal
    python examples/make_example.py prior                    the bundled prior
    python examples/make_example.py picture                  guide/separation.png

The instrument drifts (pink noise), picks up the mains (50 and 100 Hz), crackles
(bursts) and hears a pump: a pulse train at 1.4 Hz, right where the signal is.
"""

import argparse
import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
RATE = 300.0  # Hz
SAMPLES = 300
PUMP = 1.413  # pulses per second


def pink(rng, n):
    """1/f noise of standard deviation 0.15, flat below 0.2 Hz."""
    size = 2 * n
    f = np.fft.rfftfreq(size, 1 / RATE)
    shape = np.sqrt(1 / np.maximum(f, 0.2))
    shape[0] = 0
    x = np.fft.irfft(np.fft.rfft(rng.normal(size=size)) * shape, size)[:n]
    power = (2 * (shape[1:-1] ** 2).sum() + shape[-1] ** 2) / size
    return 0.15 * x / np.sqrt(power)


def hum(rng, n):
    """Mains at 50.03 Hz and its second harmonic."""
    t = np.arange(n) / RATE
    a, b = rng.uniform(-np.pi, np.pi, 2)
    return 0.2 * np.sin(2 * np.pi * 50.03 * t + a) + 0.08 * np.sin(
        2 * np.pi * 100.06 * t + b
    )


def bursts(rng, n):
    """About three decaying clicks per 300 samples."""
    x = np.zeros(n + 200)
    for start in np.flatnonzero(rng.random(n + 100) < 3 / 300):
        k = np.arange(100)
        x[start : start + 100] += rng.normal(0, 1.5) * np.exp(-k / rng.uniform(3, 12))
    return x[100 : 100 + n]


def pump(rng, n):
    """An asymmetric pulse of standard deviation 0.5 at a fixed rate."""
    u = (PUMP * np.arange(n) / RATE + rng.random()) % 1
    grid = (np.arange(4096) + 0.5) / 4096
    pulse = np.exp(-grid / 0.12) - np.exp(-grid / 0.03)
    x = np.exp(-u / 0.12) - np.exp(-u / 0.03)
    return 0.5 * (x - pulse.mean()) / pulse.std()


def noise(rng, n):
    """Everything the instrument adds, n samples."""
    white = rng.normal(0, 0.05, n)
    return pink(rng, n) + white + hum(rng, n) + bursts(rng, n) + pump(rng, n)


def measurement(seed):
    """Times, samples and truth of one measurement of the example."""
    rng = np.random.default_rng([seed, 1])
    truth = {
        "amplitude": rng.uniform(0.8, 2.0),
        "frequency": rng.uniform(2.0, 5.0),
        "phase": rng.uniform(-np.pi, np.pi),
        "bias": rng.uniform(0.5, 2.0),
    }
    truth = {name: round(value, 4) for name, value in truth.items()}
    t = np.arange(SAMPLES) / RATE
    angle = 2 * np.pi * truth["frequency"] * t + truth["phase"]
    # Cut out of a longer record: drift slower than a window belongs to it.
    around = noise(rng, 20 * SAMPLES)
    x = truth["amplitude"] * np.sin(angle) + truth["bias"] + around[-SAMPLES:]
    return t, x, truth


def recording(seconds=1000, seed=0):
    """Noise alone, to train on."""
    return noise(np.random.default_rng([seed, 2]), round(seconds * RATE))


def picture(path):
    """The example at a glance: measurement, signal, noise, and error bars."""
    import sepprior
    from sepprior.cli.separate import BUNDLED_PRIOR

    _, x, truth = measurement(0)
    result = sepprior.separate(x, sepprior.load_prior(BUNDLED_PRIOR), sample_rate=RATE)
    result.plot(path, truth=truth)


def main():
    parser = argparse.ArgumentParser(description="Make the bundled example.")
    parser.add_argument("what", choices=["measurement", "noise", "prior", "picture"])
    parser.add_argument("file", nargs="?", type=Path, default=Path("noise.npz"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.what == "measurement":
        t, x, truth = measurement(arguments.seed)
        table = np.column_stack([t, x])
        np.savetxt(
            HERE / "measurement.csv", table, "%.6f", ",", header="time,x", comments=""
        )
        text = json.dumps(truth, indent=2) + "\n"
        (HERE / "measurement.truth.json").write_text(text, encoding="utf-8")
    elif arguments.what == "noise":
        np.savez(arguments.file, noise=recording(), sample_rate=RATE)
    elif arguments.what == "picture":
        picture(HERE / "guide" / "separation.png")
    else:
        from sepprior.config import load_config
        from sepprior.data import as_recording
        from sepprior.training import train

        output = HERE.parent / "sepprior" / "data_files" / "example_prior.safetensors"
        output.parent.mkdir(exist_ok=True)
        config = load_config(HERE.parent / "configs" / "example.toml")
        noise_only = as_recording(recording(), sample_rate=RATE)
        for record in train(noise_only, config, output=output):
            print(json.dumps(record), flush=True)
        output.with_name("example_prior.resume.safetensors").unlink()


if __name__ == "__main__":
    main()
