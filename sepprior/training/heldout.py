"""How likely held-out noise is under a prior, against its spectrum alone."""

from __future__ import annotations

import math

from torch import Tensor


def heldout_facts(own: Tensor, reference: Tensor) -> dict[str, float]:
    """Summary of negative log-likelihoods.

    Args:
        own: of windows under the prior, nats per sample, (n,).
        reference: of the same under the stationary Gaussian, (n,).

    Returns:
        Means ``heldout_nll`` and ``heldout_nll_gaussian``, their difference ``gain``
        with its standard error ``gain_stderr``, and the number of ``windows``.
    """
    own, reference = own.double(), reference.double()
    gain = reference - own
    error = gain.std() / math.sqrt(len(gain)) if len(gain) > 1 else gain.abs().mean()
    return {
        "heldout_nll": float(own.mean()),
        "heldout_nll_gaussian": float(reference.mean()),
        "gain": float(gain.mean()),
        "gain_stderr": float(error),
        "windows": len(gain),
    }
