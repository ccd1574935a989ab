"""Priors conditioned on a label."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from sepprior.errors import SeppriorError
from sepprior.priors.base import Prior
from sepprior.priors.generator import GeneratorPrior
from sepprior.priors.specgan import SpecGANPrior


def with_label(prior: Prior, label: str) -> Prior:
    """The prior with its label fixed.

    Raises:
        SeppriorError: the prior does not know the label.
    """
    if isinstance(prior, GeneratorPrior | SpecGANPrior):
        return prior.with_label(label)
    raise SeppriorError(
        f"label {label!r} is unknown to the prior: a {prior.name} prior is trained "
        "without labels; leave the label out"
    )


def inferred_labels(prior: Prior, z: Tensor | None) -> np.ndarray | None:
    """Names of the labels that latents stand for; None where none is inferred.

    Args:
        prior: the prior whose latents they are.
        z: latents of the windows of B measurements, shape (B, W, K), or None.

    Returns:
        Of each measurement the label that most of its windows have, shape (B,).
    """
    if z is None or not isinstance(prior, GeneratorPrior | SpecGANPrior):
        return None
    if not prior.space.infers_label:
        return None
    numbers = prior.space.numbers(z)
    most = numbers.mode(-1).values.cpu().numpy()
    return np.array(prior.space.labels)[most]
