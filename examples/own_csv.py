"""Your own files: learn the noise of one CSV, separate the measurement in another.

    python examples/own_csv.py [NOISE.csv MEASUREMENT.csv] [--fmin 1 --fmax 20]

Both files have a `time` column in seconds and one with the samples. Without files the
script writes a pair of a synthetic instrument, to show what they look like. The model
`gaussian` learns in seconds; `specgan` takes minutes and pays where the noise has
structure.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from make_example import RATE, measurement, recording

import sepprior


def write_synthetic(folder):
    noise, run = folder / "noise.csv", folder / "run.csv"
    x = recording(seconds=60)
    t = np.arange(x.size) / RATE
    for path, table in ((noise, (t, x)), (run, measurement(3)[:2])):
        np.savetxt(path, np.column_stack(table), "%.6f", ",", header="time,x")
        path.write_text(path.read_text().lstrip("# "))
    return noise, run


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--model", default="gaussian")
    parser.add_argument("--window", type=int, default=300)
    parser.add_argument("--fmin", type=float)
    parser.add_argument("--fmax", type=float)
    parser.add_argument("-o", "--output", default="own_csv.png")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        noise, run = options.files or write_synthetic(Path(folder))
        recorded = sepprior.read_recordings([noise])
        (measured,) = sepprior.read_measurements([run])
        prior = sepprior.train_noise(
            recorded, model=options.model, window=options.window
        )
    result = sepprior.separate(
        measured.values, prior, fmin=options.fmin, fmax=options.fmax
    )
    print(result.report())
    result.plot(options.output)
    return result


if __name__ == "__main__":
    main()
