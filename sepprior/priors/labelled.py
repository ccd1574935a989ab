"""Priors conditioned on a label."""

from __future__ import annotations

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
