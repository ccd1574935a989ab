"""Draws of a signal's parameters: a posterior's, or the replicas of a bootstrap."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False, kw_only=True)
class Samples:
    """What error bars were made from.

    The leading dimension B is absent for a single measurement. C chains, S draws of
    each, P parameters.

    Attributes:
        method: "bootstrap", "mcmc" or "langevin".
        names: the parameters.
        draws: shape (B, C, S, P), in the order of `names`; phases about the estimate,
            so that they may lie outside (-pi, pi]. A bootstrap is one chain of
            independent replicas.
        rhat: shape (B, P), split R-hat; None for a bootstrap.
        ess: shape (B, P), effective number of draws; None for a bootstrap.
    """

    method: str
    names: tuple[str, ...]
    draws: np.ndarray
    rhat: np.ndarray | None = None
    ess: np.ndarray | None = None

    def of(self, name: str) -> np.ndarray:
        """Draws of one parameter, (B, C, S)."""
        return self.draws[..., self.names.index(name)]

    def select(self, index: int) -> Samples:
        """The draws for one measurement of a batch."""
        return replace(
            self,
            draws=self.draws[index],
            rhat=None if self.rhat is None else self.rhat[index],
            ess=None if self.ess is None else self.ess[index],
        )

    def summary(self) -> dict[str, Any]:
        """Method, numbers of chains and draws, R-hat and effective draws by name."""
        chains, count = self.draws.shape[-3:-1]
        facts: dict[str, Any] = {
            "method": self.method,
            "chains": chains,
            "draws": count,
        }
        for key, values in (("rhat", self.rhat), ("ess", self.ess)):
            if values is not None:
                columns = np.moveaxis(values, -1, 0)
                facts[key] = dict(zip(self.names, columns, strict=True))
        return facts
