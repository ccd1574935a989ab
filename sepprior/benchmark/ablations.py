"""A prior's separation with one of its parts taken away: what the part earns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sepprior.benchmark.methods import Unavailable

if TYPE_CHECKING:
    from sepprior.priors.base import Prior


@dataclass(frozen=True)
class Ablation:
    """What is taken away.

    Attributes:
        how: in a phrase.
        part: function of `sepprior.priors.reduced` that takes it away from a prior, or
            None where the prior stays whole.
        objective: of `separate`.
        starts: of `separate`.
    """

    how: str
    part: Literal["flat", "without_encoder", "untrained"] | None = None
    objective: str = "joint"
    starts: int | None = None

    def of(self, prior: Prior) -> Prior:
        """The prior without it.

        Raises:
            Unavailable: the prior has no such part.
        """
        if self.part is None:
            return prior
        from sepprior.priors import SpecGANPrior, reduced

        if not isinstance(prior, SpecGANPrior):
            raise Unavailable(f"a {prior.name} prior has no such part to take away")
        return getattr(reduced, self.part)(prior)


ABLATIONS: Mapping[str, Ablation] = {
    "joint": Ablation("nothing"),
    "plain": Ablation("all but the squared error", objective="plain"),
    "flat": Ablation("the density of the latent", "flat"),
    "one-start": Ablation("all starts but the highest peak", starts=1),
    "no-encoder": Ablation("the encoder: latents at random", "without_encoder"),
    "untrained": Ablation("the training of the networks", "untrained"),
}
"""By the name that follows the slash, as in ``specgan/plain``."""
