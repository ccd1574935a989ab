"""How a `diffusion` prior is stored."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sepprior.checkpoint.files import prefixed, stripped
from sepprior.nets import Denoiser
from sepprior.priors import DiffusionPrior


def pack(prior: DiffusionPrior) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, information and levels; the lowest level the network knows."""
    tensors = {
        "whitening": prior.whitening,
        "levels": prior.levels,
        "information": prior.information,
        "scatter": prior.scatter,
        **prefixed(prior.network.state_dict(), "network."),
    }
    return tensors, {"lowest": prior.lowest}


def build(tensors: dict[str, Tensor], header: dict[str, Any]) -> DiffusionPrior:
    """The prior of a file; the network's size is that of its weights."""
    weights = stripped(tensors, "network.")
    width, views = weights["enter.weight"].shape[:2]
    network = Denoiser(window=len(tensors["autocovariance"]), width=width, views=views)
    network.load_state_dict(weights)
    return DiffusionPrior(
        network,
        whitening=tensors["whitening"],
        autocovariance=tensors["autocovariance"],
        level=header["level"],
        sample_rate=header["sample_rate"],
        levels=tensors["levels"],
        information=tensors["information"],
        scatter=tensors["scatter"],
        lowest=header["structure"]["lowest"],
        metadata=header["metadata"],
    )
