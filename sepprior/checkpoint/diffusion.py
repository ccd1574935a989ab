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
    if prior.products is not None:
        tensors["products"] = prior.products
    return tensors, {"lowest": prior.lowest}


def version(prior: DiffusionPrior) -> int:
    """Format 3 with products for each pair of samples, which format 2 does not know."""
    return 2 if prior.products is None else 3


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
        products=tensors.get("products"),
        metadata=header["metadata"],
    )
