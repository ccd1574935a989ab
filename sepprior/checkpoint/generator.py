"""How a trained generator of waveforms is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sepprior.checkpoint.files import prefixed, stripped
from sepprior.nets import (
    GANSynthGenerator,
    LSTMGenerator,
    WaveformGenerator,
    WaveGANGenerator,
)
from sepprior.priors import GeneratorPrior, LatentSpace, Reach

NETWORKS: Mapping[str, type[WaveformGenerator]] = {
    "wavegan": WaveGANGenerator,
    "lstm": LSTMGenerator,
    "gansynth": GANSynthGenerator,
}
"""The network of each model."""
RATIO = "range_error.ratio"
"""Name of the spectrum of the range error."""
LABELLED = "range_error.label."
"""Before the name of a label, where it has a range error of its own."""


def pack(prior: GeneratorPrior) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, the range errors, and what rebuilds the network and its latent."""
    reaches = {RATIO: prior.shared}
    reaches |= {LABELLED + label: reach for label, reach in prior.by_label.items()}
    tensors = {
        **{name: reach.ratio for name, reach in reaches.items()},
        **prefixed(prior.network.state_dict(), "generator."),
    }
    structure: dict[str, Any] = {
        "network": prior.network.structure(),
        "latent": prior.space.to_dict(),
        "gain": prior.shared.gain,
    }
    if version(prior) > 2:
        structure["reach"] = {
            name: {"gain": reach.gain, "absolute": reach.absolute}
            for name, reach in reaches.items()
        }
    return tensors, structure


def version(prior: GeneratorPrior) -> int:
    """6 where labels have a range error of their own, or one has its own spectrum."""
    return 6 if prior.by_label or prior.shared.absolute else 2


def build(tensors: dict[str, Tensor], header: dict[str, Any]) -> GeneratorPrior:
    """The prior of a file."""
    structure = header["structure"]
    network = NETWORKS[header["kind"]](**structure["network"])
    network.load_state_dict(stripped(tensors, "generator."))
    old, reaches = {"gain": structure["gain"]}, structure.get("reach", {})
    return GeneratorPrior(
        header["kind"],
        network,
        space=LatentSpace.from_dict(structure["latent"]),
        reach=Reach(ratio=tensors[RATIO], **reaches.get(RATIO, old)),
        by_label={
            label: Reach(ratio=ratio, **reaches[LABELLED + label])
            for label, ratio in stripped(tensors, LABELLED).items()
        },
        autocovariance=tensors["autocovariance"],
        level=header["level"],
        sample_rate=header["sample_rate"],
        metadata=header["metadata"],
    )
