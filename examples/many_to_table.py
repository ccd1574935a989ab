"""Many measurements at once: a folder of CSV files becomes one table.

    python examples/many_to_table.py [FOLDER] [--table results.csv]

All files go through `separate` as one batch, which is many times faster than one after
the other. Without a folder the script writes one with a series whose amplitude grows.
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from first_steps import BUNDLED
from make_example import RATE, SAMPLES, noise

import sepprior


def write_series(folder, count):
    t = np.arange(SAMPLES) / RATE
    for i in range(count):
        rng = np.random.default_rng([i, 7])
        x = (0.5 + 0.1 * i) * np.sin(2 * np.pi * 3.2 * t + 1) + 1 + noise(rng, SAMPLES)
        rows = "".join(f"{a:.6f},{b:.6f}\n" for a, b in zip(t, x, strict=True))
        (folder / f"run{i:03}.csv").write_text("time,x\n" + rows)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--prior", type=Path, default=BUNDLED)
    parser.add_argument("--count", type=int, default=20, help="of the written series")
    parser.add_argument("--table", type=Path, default=Path("many.csv"))
    parser.add_argument("-o", "--output", default="many.png")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as written:
        if options.folder is None:
            write_series(Path(written), options.count)
        measured = sepprior.read_measurements([options.folder or Path(written)])
    prior = sepprior.load_prior(options.prior)
    x = np.stack([each.values for each in measured])
    table = sepprior.separate(x, prior, fmin=1, fmax=10).to_frame()
    table.insert(0, "name", [each.name for each in measured])
    table.to_csv(options.table, index=False)
    print(table[["name", "amplitude", "amplitude_stderr", "frequency"]].to_string())
    place = np.arange(len(table))
    plt.errorbar(place, table["amplitude"], table["amplitude_stderr"], fmt="o", ms=4)
    plt.gca().set(xlabel="measurement", ylabel="amplitude")
    plt.savefig(options.output, dpi=150)
    plt.close()
    return table


if __name__ == "__main__":
    main()
