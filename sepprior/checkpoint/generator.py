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
LABELLED = "range_error.label."
"""Before the name of a label, where it has a range error of its own."""


def pack(prior: GeneratorPrior) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, the range error, and what rebuilds the network and its latent."""
    tensors = {
        "range_error.ratio": prior.shared.ratio,
        **prefixed({k: r.ratio for k, r in prior.by_label.items()}, LABELLED),
        **prefixed(prior.network.state_dict(), "generator."),
    }
    structure: dict[str, Any] = {
        "network": prior.network.structure(),
        "latent": prior.space.to_dict(),
        "gain": prior.shared.gain,
    }
    if prior.by_label:
        structure["gains"] = {k: r.gain for k, r in prior.by_label.items()}
    return tensors, structure


def version(prior: GeneratorPrior) -> int:
    """6 where labels have a range error of their own."""
    return 6 if prior.by_label else 2


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
        by_label={
            label: Reach(structure["gains"][label], ratio)
            for label, ratio in stripped(tensors, LABELLED).items()
        },
        autocovariance=tensors["autocovariance"],
        level=header["level"],
        sample_rate=header["sample_rate"],
        metadata=header["metadata"],
    )
