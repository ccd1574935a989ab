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
from sepprior.checkpoint.files import load_tensors, resolve_device, save_tensors
from sepprior.errors import SeppriorError, file_path
from sepprior.priors import Prior
from sepprior.torch_state import usual_torch

FORMAT = "sepprior"
FORMAT_VERSION = 7
"""Newest version of any form that this release reads."""


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
    build: Callable[[dict[str, Tensor], dict[str, Any]], Prior]
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
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise SeppriorError(
            f"{path}: format version {version}, this sepprior reads "
            f"up to {FORMAT_VERSION}; upgrade with 'pip install -U sepprior'"
        )
    try:
        prior = _build(tensors, header)
    except (LookupError, RuntimeError, TypeError, ValueError, ArithmeticError) as error:
        reason = str(error).splitlines()[0]
        raise SeppriorError(
            f"{path}: tensors do not fit the description ({reason}); "
            "restore the file or train it again"
        ) from error
    return prior.to(resolve_device(device))


def _build(tensors: dict[str, Tensor], header: dict[str, Any]) -> Prior:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite")
    if header["kind"] not in FORMS:
        raise LookupError(f"unknown kind {header['kind']!r}")
    return FORMS[header["kind"]].build(tensors, header)
