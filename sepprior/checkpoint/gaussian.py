"""How a `gaussian` prior is stored."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sepprior.checkpoint.parts import Header
from sepprior.priors import GaussianPrior


def pack(prior: GaussianPrior) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Nothing beyond the autocovariance."""
    return {}, {}


def build(tensors: dict[str, Tensor], header: Header) -> GaussianPrior:
    """The prior of a file."""
    return GaussianPrior(
        tensors["autocovariance"],
        level=header.level,
        sample_rate=header.sample_rate,
        metadata=header.metadata,
    )
