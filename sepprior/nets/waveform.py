"""What every generator of waveforms offers to training and to the prior.

A *code* is the generator's input: the latent z, followed by the label as a one-hot
vector where the generator is conditioned on one. Waveforms are in units of the
recording's standard deviation, without its level.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class WaveformGenerator(nn.Module):
    """Codes (B, K + L) to waveforms (B, N); the critic sees the waveform itself.

    Subclasses that show the critic something else override `fake` and `view`, and those
    that grow during training `grow`.
    """

    window: int

    @property
    def settled(self) -> bool:
        """Whether the layers in use stay those that they are."""
        return True

    def structure(self) -> dict[str, Any]:
        """Arguments that rebuild the module, JSON-able."""
        raise NotImplementedError

    def fake(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Generated waveforms (B, N) and what the critic sees of them (B, C, ...)."""
        waveform = self(code)
        return waveform, self.view(waveform)

    def view(self, waveform: Tensor) -> Tensor:
        """What the critic sees of recorded waveforms (B, N): (B, 1, N)."""
        return waveform.unsqueeze(1)

    def grow(self, progress: float) -> None:
        """Follow the training's progress, from 0 to 1."""


def soft_bound(x: Tensor, peak: float) -> Tensor:
    """``peak tanh(x / peak)``: tanh with unit slope that reaches the largest sample."""
    return peak * torch.tanh(x / peak)
