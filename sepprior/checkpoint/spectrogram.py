"""How a generator of spectrograms is stored."""

from __future__ import annotations

from pathlib import Path

import torch

from sepprior.checkpoint.entries import Entry
from sepprior.checkpoint.files import (
    first_line,
    load_tensors,
    prefixed,
    resolve_device,
    save_tensors,
    stripped,
)
from sepprior.checkpoint.parts import check_shapes, read_latent
from sepprior.checkpoint.specgan import build_generator
from sepprior.errors import SeppriorError
from sepprior.priors.spectrogram import SpectrogramGAN

KIND = SpectrogramGAN.name


def save_spectrogram_gan(model: SpectrogramGAN, path: str | Path) -> None:
    """Write a generator of spectrograms to `path` (safetensors)."""
    plane = model.generator.plane
    header = {
        "format": "sepprior",
        "format_version": 2,
        "kind": KIND,
        "structure": {
            "frame": 2 * plane.bins,
            "frames": plane.frames,
            "bounded": True,
            "latent": model.space.to_dict(),
        },
        "metadata": model.metadata,
    }
    tensors = {"log_mean": model.log_mean, "log_sd": model.log_sd}
    tensors |= prefixed(model.generator.state_dict(), "generator.")
    save_tensors(tensors, header, path)


def holds_spectrogram_gan(path: str | Path) -> bool:
    """Whether a file holds a generator of spectrograms, and no prior.

    Raises:
        SeppriorError: the file is missing, damaged, or of another program.
    """
    return load_tensors(path)[1].get("kind") == KIND


def load_spectrogram_gan(path: str | Path, *, device: str = "auto") -> SpectrogramGAN:
    """Read a generator of spectrograms.

    Raises:
        SeppriorError: the file is missing, damaged, or holds something else.
    """
    tensors, header = load_tensors(path)
    if header.get("kind") != KIND:
        raise SeppriorError(f"{path}: holds no generator of spectrograms")
    place = resolve_device(device)
    try:
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} is not finite")
        description = Entry(header, "description")
        structure, facts = description["structure"], description["metadata"].fields()
        generator = build_generator(stripped(tensors, "generator."), structure)
        column = (generator.plane.bins, 1)
        check_shapes(
            tensors, {"log_mean": column, "log_sd": column}, positive=("log_sd",)
        )
        space = read_latent(structure["latent"])
        if space.size + len(space.labels) != generator.project.in_features:
            raise ValueError("latents and weights of the generator do not agree")
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise SeppriorError(
            f"{path}: tensors and metadata do not fit the description of a generator "
            f"of spectrograms ({first_line(error)}); restore the file or train it again"
        ) from error
    return SpectrogramGAN(
        generator.to(place),
        space,
        log_mean=tensors["log_mean"].to(place),
        log_sd=tensors["log_sd"].to(place),
        metadata={name: fact.value for name, fact in facts.items()},
    )
