"""The end of a SpecGAN training: draws as loud as what was recorded.

Likelihood fits the flow where recorded windows are encoded to, and says little about
what the generator paints elsewhere. In `bursts` one draw of fifty was louder than the
loudest of a thousand recorded windows, and these had two thirds of the fourth moment of
all that was drawn; draws of the encoder's posteriors had it right. So the flow is
fitted once more, by the likelihood of the encoded windows as before, and by how far the
distribution of the draws' loudness is from that of the encoded windows.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sepprior.losses import loudness_distance, sampled_kl
from sepprior.nets import Flow
from sepprior.priors import SpecGANPrior
from sepprior.training.noise_model import NoiseModel
from sepprior.training.steps import follow, set_rate

STEPS, SHARE = 400, 1 / 15
"""Most steps, and their share of the training's."""
BATCH = 256
"""Encoded windows of a step."""
ENCODED_AGAIN = 12
"""Steps that an encoded window takes part in."""
DRAWS, DRAWN_SAMPLES = 512, 2**20
"""Most draws of a step, and most of their samples: memory is bounded by it."""
WEIGHT = 300.0
"""Of the squared distance of loudness, nats^2, against nats per window."""
RATE = 2e-3
CLIP_NORM = 5.0
AVERAGE = 0.99
LOUDER, LOUD = 2e-3, 5e-3
"""Shares of draws up to which they are left alone: of those louder than all that was
encoded, and of those louder than 999 of 1000 encoded windows.

Of a right prior the first is one in the number of encoded windows, some 1e-4, the
second one in 1000, which does not hang on a single recorded window. Anything else
that loudness may tell is better left: phases that are never recorded and drawn too
softly (in `pump`) are neighbours of all others, and to press them out tears the rest.
"""


def settle_loudness(prior: SpecGANPrior, model: NoiseModel, *, trained: int) -> None:
    """Fit a prior's flow such that draws are as loud as encoded windows are; in place.

    Nothing is done without a flow or an encoder, or where hardly any draw is louder
    than all that was encoded. The random numbers are of the recipe's seed alone.

    Args:
        prior: at the end of its training, sharing no weights with the run.
        model: the recording.
        trained: steps of the training.
    """
    average, steps = prior.flow, min(STEPS, int(trained * SHARE))
    if average is None or prior.encoder is None or not steps:
        return
    at_once = min(DRAWS, max(1, DRAWN_SAMPLES // prior.window))
    rng = torch.Generator().manual_seed(model.config.seed)
    with torch.no_grad():
        n = math.ceil(steps * BATCH / ENCODED_AGAIN / at_once)
        seen = _Encoded.of([_encode(prior, model, at_once, rng) for _ in range(n)])

    def drawn(flow: Flow) -> Tensor:
        normal = torch.randn((at_once, flow.size), generator=rng).to(model.device)
        label = None
        if seen.onehot is not None:
            label = seen.onehot[seen.rows(at_once, rng)]
        return prior.loudness(prior.space.joined(flow(normal), label))

    with torch.no_grad():
        before = torch.cat([drawn(average) for _ in range(n)])
        if not too_loud(before, seen.loudness):
            return
    flow = copy.deepcopy(average).requires_grad_(True)
    optimiser = torch.optim.Adam(flow.parameters(), RATE)
    for step in range(steps):
        set_rate(optimiser, 0.5 * RATE * (1.0 + math.cos(math.pi * step / steps)))
        rows = seen.rows(BATCH, rng)
        log_sd = seen.log_sd[rows]
        noise = torch.randn(log_sd.shape, generator=rng).to(model.device)
        z, volume = flow.inverse(seen.mean[rows] + log_sd.exp() * noise)
        loss = sampled_kl(noise, log_sd, z, volume).mean()
        loss = loss + WEIGHT * loudness_distance(drawn(flow), seen.loudness)
        if not bool(loss.isfinite()):
            return
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), CLIP_NORM)
        optimiser.step()
        follow(average, flow, AVERAGE)


def too_loud(drawn: Tensor, encoded: Tensor) -> bool:
    """Whether more draws are louder than what was recorded than chance would have.

    Args:
        drawn: loudness of draws, (M,), nats.
        encoded: of encoded windows, ascending, (R,), nats.
    """
    most = encoded[int(0.999 * (len(encoded) - 1))]
    beyond_all = float((drawn > encoded[-1]).double().mean())
    beyond_most = float((drawn > most).double().mean())
    return beyond_all >= LOUDER or beyond_most >= LOUD


@dataclass(frozen=True)
class _Encoded:
    """What n recorded windows are encoded to.

    Attributes:
        mean: shape (n, K).
        log_sd: shape (n, K).
        onehot: labels (n, L), or None.
        loudness: of what a draw of each decodes to, (n,).
    """

    mean: Tensor
    log_sd: Tensor
    onehot: Tensor | None
    loudness: Tensor

    @classmethod
    def of(cls, parts: list[_Encoded]) -> _Encoded:
        """All of them, the loudness in order."""
        labels = [part.onehot for part in parts if part.onehot is not None]
        return cls(
            torch.cat([part.mean for part in parts]),
            torch.cat([part.log_sd for part in parts]),
            torch.cat(labels) if labels else None,
            torch.cat([part.loudness for part in parts]).sort().values,
        )

    def rows(self, n: int, rng: torch.Generator) -> Tensor:
        """Numbers of some of the windows, (n,)."""
        return torch.randint(len(self.mean), (n,), generator=rng).to(self.mean.device)


def _encode(
    prior: SpecGANPrior, model: NoiseModel, n: int, rng: torch.Generator
) -> _Encoded:
    assert prior.encoder is not None
    white, onehot = model.draw_crops(n, rng)
    mean, log_sd = prior.encoder(prior.planes(white))
    noise = torch.randn(mean.shape, generator=rng).to(model.device)
    code = prior.space.joined(mean + log_sd.exp() * noise, onehot)
    return _Encoded(mean, log_sd, onehot, prior.loudness(code))
