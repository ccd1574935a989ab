"""How a `diffusion` prior is stored."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sepprior.checkpoint.files import prefixed, stripped
from sepprior.checkpoint.parts import Header, check_shapes, fitted, shape_of
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


def build(tensors: dict[str, Tensor], header: Header) -> DiffusionPrior:
    """The prior of a file; the network's size is that of its weights."""
    window = len(tensors["autocovariance"])
    (n_levels,) = shape_of(tensors, "levels", 1)
    by_lag, by_pair = (n_levels, window), (2, window, window)
    check_shapes(
        tensors,
        {
            "whitening": (window,),
            "levels": (n_levels,),
            "information": by_lag,
            "scatter": by_lag,
        }
        | ({"products": by_pair} if "products" in tensors else {}),
        positive=("levels",),
    )
    levels = tensors["levels"]
    if (levels.diff() >= 0).any():
        raise ValueError("levels do not fall")
    weights = stripped(tensors, "network.")
    width, views = shape_of(weights, "enter.weight", 4)[:2]
    network = fitted(
        lambda: Denoiser(window=window, width=width, views=views), weights, "network."
    )
    return DiffusionPrior(
        network,
        whitening=tensors["whitening"],
        autocovariance=tensors["autocovariance"],
        level=header.level,
        sample_rate=header.sample_rate,
        levels=levels,
        information=tensors["information"],
        scatter=tensors["scatter"],
        lowest=header.structure["lowest"].number(1e-30, float(levels[0])),
        products=tensors.get("products"),
        metadata=header.metadata,
    )
