"""First steps: separate the bundled measurement with the bundled prior.

    python examples/first_steps.py [-o first_steps.png]

The picture shows the measurement with the signal that was found, the noise, the
whitened residual, and how probable each frequency is.
"""

import argparse
import json
from pathlib import Path

import sepprior

HERE = Path(__file__).resolve().parent
BUNDLED = Path(sepprior.__file__).parent / "data_files" / "example_prior.safetensors"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", default="first_steps.png")
    options = parser.parse_args(arguments)

    prior = sepprior.load_prior(BUNDLED)
    (measurement,) = sepprior.read_measurements([HERE / "measurement.csv"])
    result = sepprior.separate(measurement.values, prior)
    print(result.report())

    truth = json.loads((HERE / "measurement.truth.json").read_text(encoding="utf-8"))
    for name, value in truth.items():
        found = result.parameters[name]
        off = (found.value - value) / found.stderr
        print(f"{name}: {off:+.1f} standard errors from the truth ({value})")
    result.plot(options.output)
    return result


if __name__ == "__main__":
    main()
