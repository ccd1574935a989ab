"""Write the prior of format version 5, latents in a row, that a test keeps loading.

Written by the last release of that format, ``python tests/data/make_prior_v5.py``.
"""

import json
from pathlib import Path

import torch

from sepprior.checkpoint import FORMAT_VERSION, save_prior
from sepprior.nets import Encoder, Flow, Generator, PlaneShape
from sepprior.priors import LatentSpace, PlaneStatistics, SpecGANPrior

WINDOW, LATENT = 64, 6
HERE = Path(__file__).parent
R = 2.0 * 0.6 ** torch.arange(WINDOW, dtype=torch.float64)


def main() -> None:
    if FORMAT_VERSION > 6:
        raise SystemExit("this script writes format version 5 only")
    torch.manual_seed(0)
    plane = PlaneShape(4, 17)
    flow = Flow(LATENT, 2)
    generator = Generator(
        plane, latent=LATENT, width=2, channels=3, flow=flow, row=LATENT
    )
    encoder = Encoder(plane, latent=LATENT, width=2, channels=3, row=True)
    with torch.no_grad():
        for layer in flow.layers:
            layer.net[-1].weight.normal_(0.0, 0.1)
    rise = torch.linspace(0.5, 1.5, 4)[:, None]
    prior = SpecGANPrior(
        generator,
        encoder,
        statistics=PlaneStatistics(rise, rise - 1.5, 0.5 * rise),
        whitening=R,
        autocovariance=R,
        level=0.25,
        sample_rate=100.0,
        frame=8,
        space=LatentSpace(LATENT),
        metadata={"seed": 0},
    )
    save_prior(prior, HERE / "v5_row.safetensors")
    x = prior.sample(2, generator=torch.Generator().manual_seed(0))
    expected = {"sample": x[:, :8].tolist(), "nll": prior.heldout_nll(x).tolist()}
    (HERE / "v5_expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
