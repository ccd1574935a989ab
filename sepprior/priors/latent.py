"""The latent variable of a prior: what z means, and what is fed to the generator."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from sepprior.errors import SeppriorError


@dataclass(frozen=True)
class LatentSpace:
    """``z ~ N(0, 1)^K``, and a label.

    A latent that the generator takes as uniform on (-1, 1) is its normal variable's
    ``erf(z / sqrt 2)``, so that the penalty is ``||z||^2 / 2`` in any case.

    A label that is not fixed is one more coordinate of z. It is a normal variable too,
    whose quantile says which label is meant, so that draws of ``N(0, 1)^(K + 1)`` have
    the recording's labels in the recording's shares. It has no gradient; proposals try
    every label.

    Attributes:
        size: K.
        uniform: the generator takes uniform latents.
        labels: names of the labels the generator knows, none if it is not conditioned.
        shares: how often each occurs in the recording; they add up to 1.
        label: number of the label that is fixed, or None to infer it.
    """

    size: int
    uniform: bool = False
    labels: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    label: int | None = None

    @property
    def infers_label(self) -> bool:
        """Whether the label is a coordinate of z."""
        return bool(self.labels) and self.label is None

    @property
    def fixed_label(self) -> str | None:
        """Name of the label that is fixed, if one is."""
        return None if self.label is None else self.labels[self.label]

    @property
    def n_latent(self) -> int:
        """Coordinates of z: K, or K + 1 with a label that is inferred."""
        return self.size + int(self.infers_label)

    def code(self, z: Tensor) -> Tensor:
        """The generator's input (..., K + L) for z (..., n_latent)."""
        latent = z[..., : self.size]
        if not self.labels:
            return self.joined(latent, None)
        onehot = torch.nn.functional.one_hot(self.numbers(z), len(self.labels))
        return self.joined(latent, onehot.to(latent.dtype))

    def joined(self, latent: Tensor, onehot: Tensor | None) -> Tensor:
        """The same for normal latents (..., K) and one-hot labels (..., L)."""
        if self.uniform:
            latent = torch.erf(latent / math.sqrt(2.0))
        return latent if onehot is None else torch.cat([latent, onehot], -1)

    def numbers(self, z: Tensor) -> Tensor:
        """Number of the label of each z (..., n_latent), shape (...)."""
        if self.label is not None:
            return torch.full(z.shape[:-1], self.label, device=z.device)
        quantile = torch.special.ndtr(z[..., -1].detach().contiguous())
        return torch.bucketize(quantile, quantile.new_tensor(self._edges[1:-1]))

    @property
    def _edges(self) -> list[float]:
        """Quantiles between which each label lies, L + 1 from 0 to 1."""
        return [0.0, *accumulate(self.shares)]

    def energy(self, z: Tensor) -> Tensor:
        """``-log p(z)`` up to a constant: ``||z||^2/2 - log share``, (..., n) to (...).

        A fixed label is given, not random, and costs nothing.
        """
        energy = 0.5 * z[..., : self.size].square().sum(-1)
        if not self.infers_label:
            return energy
        cost = -z.new_tensor(self.shares).log()
        return energy + cost[self.numbers(z)]

    def centred(self, draws: Tensor) -> Tensor:
        """Normal draws (n, ..., n_latent) as candidates: first the mode, all labels."""
        latent = draws[..., : self.size]
        latent = torch.cat([torch.zeros_like(latent[:1]), latent[1:]])
        return self.with_labels_by_turns(latent)

    def with_labels_by_turns(self, latent: Tensor) -> Tensor:
        """Candidates (n, ..., K) completed to (n, ..., n_latent)."""
        if not self.infers_label:
            return latent
        turns = torch.arange(len(latent), device=latent.device) % len(self.labels)
        column = self._middles(latent)[turns].view(-1, *([1] * (latent.dim() - 1)))
        return torch.cat([latent, column.expand(*latent.shape[:-1], 1)], -1)

    def under_each_label(self, latent: Tensor) -> list[Tensor]:
        """Latents (..., K) completed to (..., n_latent), once per label."""
        if not self.infers_label:
            return [latent]
        return [
            torch.cat([latent, middle.expand(*latent.shape[:-1], 1)], -1)
            for middle in self._middles(latent)
        ]

    def _middles(self, like: Tensor) -> Tensor:
        """The coordinate that stands for each label, (L,)."""
        edges = like.new_tensor(self._edges)
        return torch.special.ndtri(0.5 * (edges[1:] + edges[:-1]))

    def fixed(self, label: str | None) -> LatentSpace:
        """The same space with the label fixed, or inferred (None).

        Raises:
            SeppriorError: the generator does not know the label.
        """
        if label is None:
            return replace(self, label=None)
        if label not in self.labels:
            known = ", ".join(map(repr, self.labels)) or "none (it was trained without)"
            raise SeppriorError(
                f"label {label!r} is unknown to the prior; labels it knows: {known}"
            )
        return replace(self, label=self.labels.index(label))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "size": self.size,
            "uniform": self.uniform,
            "labels": list(self.labels),
            "shares": list(self.shares),
        }
