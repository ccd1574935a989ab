"""What a model must offer to be trained, and what it is given.

The loop in `sepprior.training.train` prepares a `Task` from the recording, asks the
model's builder for a `Trainer`, and from then on only calls the trainer's members: it
draws no random number and knows no network. Ticks, interrupts, resumption and
checkpoints are the loop's; losses, optimisers and randomness are the trainer's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sepprior.data import Recording
from sepprior.priors import GaussianPrior, Prior

CHECKS = 900
"""Steps that take about as long as scoring a prior and calibrating its error bars."""


class Work:
    """How far a training is, in steps or in what takes as long as one.

    Attributes:
        stage: what is being done, in words.
        done: work of all stages so far.
        left: work that is left, of all stages, at most.
        found: what has been found so far, in sentences.
    """

    def __init__(self, watch: Callable[[Work], object] | None = None) -> None:
        self.stage, self.done, self.left = "", 0.0, 0.0
        self.found: list[str] = []
        self._watch = watch or (lambda work: None)

    def enter(self, stage: str, *, left: float) -> None:
        """A stage begins, with so much work left in all."""
        self.stage, self.left = stage, float(left)
        self._watch(self)

    def add(self, amount: float = 1.0) -> None:
        """Some work has been done."""
        self.done += amount
        self.left = max(0.0, self.left - amount)
        self._watch(self)

    def tell(self, sentence: str) -> None:
        """Something has been found."""
        self.found.append(sentence)
        self._watch(self)


@dataclass(frozen=True)
class Task:
    """A recording made ready for training.

    Attributes:
        training: the part networks learn from.
        validation: the part held out.
        held: windows of the held-out part (n, N), data units.
        gaussian: level and autocovariance of the training part, as a prior.
        device: where to compute.
        metadata: facts stored with the prior (config, seed, hash, sources).
        work: told how far the training is.
    """

    training: Recording
    validation: Recording
    held: Tensor
    gaussian: GaussianPrior
    device: torch.device
    metadata: Mapping[str, Any]
    work: Work = field(default_factory=Work)


class Trainer(Protocol):
    """One training run. It starts at step 0 or from a saved state.

    Two trainers built from the same task, recipe and state must do the same steps to
    the last bit on a CPU; all randomness therefore comes from generators in `state`.
    """

    step: int

    @property
    def rate_setting(self) -> str:
        """Name of the setting that gave the latest step its size."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """JSON-able choices made at the start, stored with the prior."""
        ...

    def advance(self) -> dict[str, Any]:
        """One step; its losses. Raises SeppriorError when they are not finite."""
        ...

    def report(self, held: Tensor) -> dict[str, Any]:
        """Statistics of a tick: `spectral_error_db`, `heldout_nll` (nats per sample).

        Those that the model cannot give cheaply are left out. Raises SeppriorError
        where they tell, without a likelihood, that the training ran away.
        """
        ...

    def frozen(self, metadata: Mapping[str, Any]) -> Prior:
        """The prior as learned so far, sharing nothing with the run."""
        ...

    def finished(self, metadata: Mapping[str, Any]) -> Prior:
        """The prior at the end: `frozen`, and what is measured once."""
        ...

    def state(self) -> dict[str, Any]:
        """Everything needed to continue exactly, as a nest `pack` understands."""
        ...


BLOCK = 2**20
"""Samples read at a time; at least 64 windows."""


def block_size(window: int) -> int:
    """Samples per block of a pass over a recording."""
    return max(BLOCK, 64 * window)
