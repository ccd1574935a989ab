"""Labels of a recording: states of the instrument or kinds of noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sepprior.data import Recording, random_placed_crops

UNLABELLED = "unlabelled"
"""Name of the segments without a label, in a recording where others have one."""


@dataclass(frozen=True)
class Labels:
    """The labels of a recording, by name, with their shares of its samples.

    Attributes:
        names: sorted; none where the recording has fewer than two different labels.
        shares: share of the samples under each.
    """

    names: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()

    @classmethod
    def of(cls, recording: Recording) -> Labels:
        """The labels of a recording's segments."""
        counts: dict[str, int] = {}
        for segment in recording.segments:
            name = segment.label or UNLABELLED
            counts[name] = counts.get(name, 0) + len(segment.values)
        if len(counts) < 2:
            return cls()
        names = tuple(sorted(counts))
        total = sum(counts.values())
        return cls(names, tuple(counts[name] / total for name in names))

    def onehot(self, recording: Recording, segments: np.ndarray) -> Tensor | None:
        """Labels (n, L) of segments by number, None without labels."""
        if not self.names:
            return None
        number = [
            self.names.index(segment.label or UNLABELLED)
            for segment in recording.segments
        ]
        chosen = torch.from_numpy(np.asarray(number)[segments])
        return torch.nn.functional.one_hot(chosen, len(self.names)).float()


def labelled_part(recording: Recording, name: str) -> Recording:
    """The segments of a recording under one of its labels."""
    chosen = (s for s in recording.segments if (s.label or UNLABELLED) == name)
    return replace(recording, segments=tuple(chosen))


def labelled_crops(
    recording: Recording,
    labels: Labels,
    *,
    window: int,
    n: int,
    rng: torch.Generator,
    margin: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Random windows (n, N), float64, and their labels (n, L) or None.

    With a `margin` of so many samples on either side, (n, N + 2 margin).
    """
    crops, segments = random_placed_crops(
        recording, window=window, n=n, generator=rng, margin=margin
    )
    return torch.from_numpy(crops), labels.onehot(recording, segments)
