"""Which spectrum the noise is divided by before a network sees it.

Whitening by the whole spectrum removes lines as least squares would, each with a free
amplitude and phase. Whitening by the continuum alone leaves them to the network, which
can learn how their phases are locked (a pulse train).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from sepprior.data import iterate_blocks
from sepprior.errors import SeppriorError
from sepprior.stationary import continuum_autocovariance
from sepprior.training.contract import Task, block_size
from sepprior.transforms import Whitener

CONTINUUM_MATTERS = 0.02
"""Nats per sample the lines must be worth before the continuum is considered."""


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
