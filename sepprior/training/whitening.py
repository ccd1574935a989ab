"""Which spectrum the noise is divided by before a network sees it.

Whitening by the whole spectrum removes lines as least squares would, each with a free
amplitude and phase. Whitening by the continuum alone leaves them to the network, which
can learn how their phases are locked (a pulse train). Whitening by the spectrum of what
a network's mean leaves lets its scale, which short frames cannot tell frequencies
apart in, be flat, and what is rare stand out.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sepprior.data import iterate_blocks
from sepprior.errors import SeppriorError
from sepprior.inference.robust import MAD_TO_SD
from sepprior.priors import SpecGANPrior
from sepprior.stationary import autocovariance, continuum_autocovariance
from sepprior.training.contract import Task, block_size
from sepprior.training.noise_model import NoiseModel
from sepprior.transforms import Whitener

CONTINUUM_MATTERS = 0.02
"""Nats per sample the lines must be worth before the continuum is considered."""
REST_MATTERS = 0.02
"""Nats per sample that the mean must take away before the rest is considered."""
REST_SAMPLES = 2**18
"""Samples that the rest is measured on, or more in long windows."""
FEWEST_RESTS, REST_BATCH = 64, 64
"""Windows that it is measured on at least, and at a time."""
CLIP = 3.0
"""Robust standard deviations at which the whitened rest is cut off."""


def continuum_filter(
    task: Task, whitening: Literal["auto", "total", "continuum"]
) -> Tensor | None:
    """Autocovariance of the continuum (N,), where a filter may be made from it.

    Args:
        task: the recording made ready.
        whitening: as the recipe has it. With "auto" the lines must be worth something:
            a window with them costs ``(log det C_total - log det C_continuum) / 2``
            nats more than one without.

    Returns:
        None where the noise is to be whitened by the whole spectrum.

    Raises:
        SeppriorError: "continuum" was asked for and the recording is too short.
    """
    if whitening == "total":
        return None
    total = task.gaussian.autocovariance
    window = len(total)
    continuum = continuum_autocovariance(
        iterate_blocks(task.training, block=block_size(window)),
        n_lags=window,
        mean=task.gaussian.level,
    )
    if continuum is None and whitening == "continuum":
        raise SeppriorError(
            f"the recording has no stretch of {16 * window} samples to tell lines from "
            "continuum; record longer noise or set whitening = 'total'"
        )
    if continuum is None or whitening == "continuum":
        return continuum
    worth = Whitener(total).half_log_det - Whitener(continuum).half_log_det
    return None if worth / window < CONTINUUM_MATTERS else continuum


@torch.no_grad()
def rest_filter(prior: SpecGANPrior, model: NoiseModel) -> Tensor | None:
    """Autocovariance of what the decoded mean leaves of the recording.

    Bursts and jumps stand out of what is there between them, not of a spectrum that is
    mostly their own; and frames of 8 samples have five frequencies, too few to say that
    the rest is coloured otherwise than the whole. Samples of the whitened rest beyond
    `CLIP` robust standard deviations are set to that, so that what the mean has not
    found yet counts little.

    Args:
        prior: a generator with an encoder and a mean.
        model: the recording that it was trained on, and its filters.

    Returns:
        Shape (N,), squared data units. None where the mean and the clipping take less
        than `REST_MATTERS` from the spectrum: a filter's ``log det / 2``, per sample.
    """
    rng = torch.Generator().manual_seed(0)
    window = prior.window
    batches = max(FEWEST_RESTS, REST_SAMPLES // window) // REST_BATCH
    left = torch.cat([_rest(prior, model, rng) for _ in range(batches)])
    most = CLIP * MAD_TO_SD * left.abs().median()
    clipped = prior.whitener.inverse(left.clamp(-most, most))
    _, covariance = autocovariance(clipped.cpu().numpy(), n_lags=window)
    worth = prior.whitener.half_log_det - Whitener(covariance).half_log_det
    return None if worth / window < REST_MATTERS else covariance


def _rest(prior: SpecGANPrior, model: NoiseModel, rng: torch.Generator) -> Tensor:
    """What the mean leaves of whitened crops (B, N), z drawn from the encoder."""
    assert prior.encoder is not None
    white, onehot = model.draw_crops(REST_BATCH, rng)
    mean, log_sd = prior.encoder(prior.planes(white))
    draws = torch.randn(mean.shape, generator=rng).to(model.device)
    code = prior.space.joined(mean + log_sd.exp() * draws, onehot)
    coherent, _ = prior.parts_of(code)
    assert coherent is not None
    return white - prior.stft.synthesise(coherent)
