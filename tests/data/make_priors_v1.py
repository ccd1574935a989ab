"""Write the priors of format version 1 that the tests keep loading.

Run once, when the format is released; a later format gets a script of its own:
``python tests/data/make_priors_v1.py``.
"""

import json
from pathlib import Path

import torch

from sepprior.checkpoint import FORMAT_VERSION, save_prior
from sepprior.nets import Encoder, Generator, PlaneShape
from sepprior.priors import (
    GaussianPrior,
    LatentSpace,
    PlaneStatistics,
    Prior,
    SpecGANPrior,
)

WINDOW = 64
HERE = Path(__file__).parent
R = 2.0 * 0.6 ** torch.arange(WINDOW, dtype=torch.float64)
FACTS = {"seed": 0, "config": {"window": WINDOW}}


def specgan(*, magnitude: bool) -> SpecGANPrior:
    plane = PlaneShape(8, 8 if magnitude else 9)
    channels = 1 if magnitude else 3
    generator = Generator(
        plane, latent=3, width=2, channels=channels, bounded=magnitude
    )
    with torch.no_grad():
        generator.layers[-1].weight.mul_(50.0)
    rise = torch.linspace(0.5, 1.5, 8)[:, None]
    return SpecGANPrior(
        generator,
        None if magnitude else Encoder(plane, latent=3, width=2, channels=channels),
        statistics=PlaneStatistics(rise, rise - 1.5, 0.5 * rise),
        whitening=torch.eye(WINDOW, dtype=torch.float64)[0] * 2 if magnitude else R,
        autocovariance=R,
        level=0.25,
        sample_rate=100.0,
        frame=16,
        space=LatentSpace(3, uniform=magnitude),
        metadata=FACTS,
    )


def main() -> None:
    if FORMAT_VERSION != 1:
        raise SystemExit("this script writes format version 1 only")
    torch.manual_seed(0)
    priors: dict[str, Prior] = {
        "gaussian": GaussianPrior(R, level=0.25, sample_rate=100.0, metadata=FACTS),
        "complex": specgan(magnitude=False),
        "magnitude": specgan(magnitude=True),
    }
    expected = {}
    for name, prior in priors.items():
        save_prior(prior, HERE / f"v1_{name}.safetensors")
        x = prior.sample(2, generator=torch.Generator().manual_seed(0))
        expected[name] = {
            "sample": x[:, :8].tolist(),
            "heldout_nll": prior.heldout_nll(x).tolist(),
        }
    (HERE / "v1_expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
