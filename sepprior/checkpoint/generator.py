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
from sepprior.priors import GeneratorPrior, LatentSpace

NETWORKS: Mapping[str, type[WaveformGenerator]] = {
    "wavegan": WaveGANGenerator,
    "lstm": LSTMGenerator,
    "gansynth": GANSynthGenerator,
}
"""The network of each model."""


def pack(prior: GeneratorPrior) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, the range error, and what rebuilds the network and its latent."""
    tensors = {
        "range_error.ratio": prior.range_error.ratio,
        **prefixed(prior.network.state_dict(), "generator."),
    }
    structure = {
        "network": prior.network.structure(),
        "latent": prior.space.to_dict(),
        "gain": prior.gain,
    }
    return tensors, structure


def build(tensors: dict[str, Tensor], header: dict[str, Any]) -> GeneratorPrior:
    """The prior of a file."""
    structure = header["structure"]
    network = NETWORKS[header["kind"]](**structure["network"])
    network.load_state_dict(stripped(tensors, "generator."))
    return GeneratorPrior(
        header["kind"],
        network,
        space=LatentSpace.from_dict(structure["latent"]),
        gain=structure["gain"],
        ratio=tensors["range_error.ratio"],
        autocovariance=tensors["autocovariance"],
        level=header["level"],
        sample_rate=header["sample_rate"],
        metadata=header["metadata"],
    )
