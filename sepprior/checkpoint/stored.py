"""Frozen priors to files and back.

Each kind of prior has a `Form`: how it is taken apart into tensors and plain values,
and put together again. A form's version is raised when its files change; files of
earlier versions keep loading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sepprior.checkpoint import diffusion, gaussian, generator, specgan, spectrogram
from sepprior.checkpoint.files import (
    first_line,
    load_tensors,
    resolve_device,
    save_tensors,
)
from sepprior.checkpoint.parts import Header, check_tensors
from sepprior.errors import SeppriorError, file_path
from sepprior.priors import LatentPrior, Prior, ScorePrior
from sepprior.torch_state import usual_torch
from sepprior.transforms import Whitener

FORMAT = "sepprior"
FORMAT_VERSION = 7
"""Newest version of any form that this release reads."""
NO_VERSION = 10**6
"""No number of a version is as large."""
LARGEST_FEATURE = 1e8
"""Largest magnitude of what a prior decodes, in units of about the noise's own."""


@dataclass(frozen=True)
class Form:
    """How one kind of prior is stored.

    Attributes:
        pack: the prior's own tensors (beyond the autocovariance) and plain values.
        build: the prior of a file's tensors and header.
        version: first format version that can hold a prior: older releases say that
            they must be upgraded.
    """

    pack: Callable[[Any], tuple[dict[str, Tensor], dict[str, Any]]]
    build: Callable[[dict[str, Tensor], Header], Prior]
    version: Callable[[Any], int]


FORMS: Mapping[str, Form] = {
    "gaussian": Form(gaussian.pack, gaussian.build, lambda _: 1),
    "specgan": Form(specgan.pack, specgan.build, specgan.version),
    "diffusion": Form(diffusion.pack, diffusion.build, diffusion.version),
    **{
        name: Form(generator.pack, generator.build, generator.version)
        for name in generator.NETWORKS
    },
}
"""The form of each kind of prior, by the prior's name."""


@usual_torch()
def save_prior(prior: Prior, path: str | Path) -> None:
    """Write a prior to `path` (safetensors).

    Args:
        prior: a prior made by training.
        path: the file; replaced in one atomic step if it exists.

    Raises:
        SeppriorError: the prior wraps code of the user's own, which is not stored.
    """
    path = file_path("path", path)
    form = FORMS.get(getattr(prior, "name", ""))
    if form is None:
        kind = getattr(prior, "name", type(prior).__name__)
        raise SeppriorError(f"a {kind} holds code, or is no prior: it cannot be saved")
    tensors, structure = form.pack(prior)
    header = {
        "format": FORMAT,
        "format_version": form.version(prior),
        "kind": prior.name,
        "level": prior.level,
        "sample_rate": prior.sample_rate,
        "structure": structure,
        "metadata": prior.metadata,
    }
    save_tensors({"autocovariance": prior.autocovariance, **tensors}, header, path)


@usual_torch()
def load_prior(path: str | Path, *, device: str = "auto") -> Prior:
    """Read a frozen prior.

    Args:
        path: a file written by `save_prior` or ``sepprior train-noise``.
        device: "auto" (a GPU where there is one), "cpu", "cuda", ...

    Returns:
        The prior, ready for `separate`.

    Raises:
        SeppriorError: the file is missing, damaged, of another program or of a newer
            version.
    """
    path = file_path("path", path)
    tensors, header = load_tensors(path)
    if header.get("format") != FORMAT or "kind" not in header:
        raise SeppriorError(
            f"{path}: holds no noise prior (perhaps a training state); "
            "give the .safetensors file that 'sepprior train-noise' reports"
        )
    if header["kind"] == spectrogram.KIND:
        raise SeppriorError(
            f"{path}: generates spectrograms, from which no noise waveform follows: "
            "'sepprior sample' writes them; to separate, train on recordings"
        )
    version = header.get("format_version")
    if isinstance(version, int) and FORMAT_VERSION < version < NO_VERSION:
        raise SeppriorError(
            f"{path}: format version {version}, this sepprior reads "
            f"up to {FORMAT_VERSION}; upgrade with 'pip install -U sepprior'"
        )
    try:
        prior = _build(tensors, header)
    except (
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        ArithmeticError,
        MemoryError,
    ) as error:
        raise SeppriorError(
            f"{path}: tensors and metadata do not fit the description of a prior "
            f"({first_line(error)}); restore the file or train it again"
        ) from error
    return prior.to(resolve_device(device))


def _build(tensors: dict[str, Tensor], told: Mapping[str, Any]) -> Prior:
    header = Header.of(told, check_tensors(tensors))
    form = FORMS.get(header.kind)
    if form is None:
        raise LookupError(f"unknown kind {header.kind!r}")
    prior = form.build(tensors, header)
    expected = {"autocovariance", *form.pack(prior)[0]}
    surplus = sorted(tensors.keys() - expected)
    if surplus:
        raise ValueError(f"{surplus[0]} is left over")
    _try(prior)
    return prior


def _try(prior: Prior) -> None:
    """Refuse a prior that does not decode, or to values out of all proportion."""
    whitener = Whitener(prior.autocovariance)
    random = torch.Generator().manual_seed(0)
    white = torch.randn((2, prior.window), generator=random, dtype=torch.float64)
    noise = whitener.inverse(white.to(prior.device))
    with torch.no_grad():
        if isinstance(prior, ScorePrior):
            features = prior.features(noise)
            ends = (float(prior.levels[0]), float(prior.levels[-1]))
            parts = [
                features,
                *(level * prior.score(features, level) for level in ends),
            ]
        elif isinstance(prior, LatentPrior):
            draws = torch.randn((1, 2, prior.n_latent), generator=random)
            z = draws[0].to(prior.device, prior.dtype)
            features = prior.features(noise)
            proposed = prior.propose(features, draws=z[None])[0]
            parts = [features, proposed]
            for decoded in (prior.decode(z), prior.decode(proposed)):
                parts += [decoded.mean, decoded.precision, 1.0 / decoded.precision]
                parts += [decoded.half_log_det / prior.window]
        else:
            parts = [noise]
    for part in parts:
        # A comparison with NaN is false.
        if part.numel() and not float(part.abs().max()) <= LARGEST_FEATURE:
            raise ValueError("what is decoded is out of all proportion to the noise")
