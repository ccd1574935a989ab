"""A trained generator of waveforms and the covariance of what it cannot reach."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sepprior.nets import WaveformGenerator
from sepprior.priors.additive import AdditivePrior
from sepprior.priors.latent import LatentSpace
from sepprior.priors.range_error import Reach
from sepprior.torch_state import usual_torch


class GeneratorPrior(AdditivePrior):
    """``n = a sd g(z) + e`` with a trained network g and a Gaussian range error e.

    The gain a and the spectrum of e are fitted to held-out noise after inverting it.
    A generator that was taught the whole noise and reaches a small part of a window
    would make things worse with gain 1 (it puts in as much as it takes away); with
    ``a = 0`` the prior is the stationary Gaussian. Noise under a label that is fixed
    has a gain and a range error of its own; where the label is inferred all share one.

    Args:
        name: the model, such as "wavegan".
        network: codes (B, K + L) to waveforms (B, N) in units of `sd`.
        space: the latent variable.
        reach: a and the spectrum of e.
        by_label: both for noise of one label, by its name.
        autocovariance: shape (N,), of the training noise, squared data units.
        level: mean of the training noise, data units.
        sample_rate: Hz.
        metadata: JSON-able facts.
    """

    def __init__(
        self,
        name: str,
        network: WaveformGenerator,
        *,
        space: LatentSpace,
        reach: Reach,
        autocovariance: Tensor,
        level: float,
        sample_rate: float,
        by_label: Mapping[str, Reach] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.network = network.eval().requires_grad_(False)
        self.shared, self.by_label = reach, dict(by_label or {})
        self.reach = self.by_label.get(space.fixed_label or "", reach)
        self.gain = self.reach.gain
        self.range_error = self.reach.error(autocovariance.double())
        super().__init__(
            space=space,
            error=self.range_error,
            autocovariance=autocovariance,
            level=level,
            sample_rate=sample_rate,
            dtype=torch.float32,
            metadata=metadata,
        )
        self.sd = float(self.autocovariance[0]) ** 0.5

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels the generator knows."""
        return self.space.labels

    def waveform(self, z: Tensor) -> Tensor:
        """``sd g(z)`` in data units without the gain, (..., K) to (..., N)."""
        flat = self.space.code(z.reshape(-1, z.shape[-1]).to(self.dtype))
        return self.sd * self.network(flat).reshape(*z.shape[:-1], -1)

    def coherent(self, z: Tensor) -> Tensor:
        """``a sd g(z)`` in data units, (..., K) to (..., N)."""
        return self.gain * self.waveform(z).double()

    def with_label(self, label: str | None) -> GeneratorPrior:
        """The same prior with its label fixed, or inferred (None)."""
        space = self.space.fixed(label)
        copied = self._copy(self.network, self.device, space=space)
        facts = self.metadata.get("range_error", {})
        if label is not None:
            facts = facts.get("labels", {}).get(label, {})
        if "heldout" in facts:
            copied.metadata["heldout"] = facts["heldout"]
        return copied

    def with_reach(self, reach: Reach) -> GeneratorPrior:
        """The same prior with another gain and range error, of its label if fixed."""
        label = self.space.fixed_label
        if label is None:
            copied = self._copy(self.network, self.device, shared=reach)
        else:
            by_label = self.by_label | {label: reach}
            copied = self._copy(self.network, self.device, by_label=by_label)
        copied.metadata["range_error"] = {"gain": reach.gain}
        return copied

    def with_labels_reach(self, by_label: Mapping[str, Reach]) -> GeneratorPrior:
        """The same prior with gains and range errors of their own for some labels."""
        return self._copy(self.network, self.device, by_label=by_label)

    def scaled(self, factor: float) -> GeneratorPrior:
        """Noise so many times as loud; the network is shared."""
        return self._copy(self.network, self.device, factor=factor)

    @usual_torch()
    def to(self, device: torch.device | str) -> GeneratorPrior:
        """The same prior on another device; itself where it is there already."""
        if torch.device(device) == self.device:
            return self
        return self._copy(copy.deepcopy(self.network).to(device), device)

    def _copy(
        self,
        network: WaveformGenerator,
        device: torch.device | str,
        *,
        space: LatentSpace | None = None,
        shared: Reach | None = None,
        by_label: Mapping[str, Reach] | None = None,
        factor: float = 1.0,
    ) -> GeneratorPrior:
        shared = (shared or self.shared).to(device)
        if by_label is None:
            by_label = self.by_label
        return GeneratorPrior(
            self.name,
            network,
            space=space or self.space,
            reach=shared,
            by_label={k: r.to(device) for k, r in by_label.items()},
            autocovariance=factor**2 * self.autocovariance.to(device),
            level=self.level,
            sample_rate=self.sample_rate,
            metadata=self.metadata,
        )
