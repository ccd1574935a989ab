"""How a generator of spectrograms is stored."""

from __future__ import annotations

from pathlib import Path

from sepprior.checkpoint.files import (
    load_tensors,
    prefixed,
    resolve_device,
    save_tensors,
    stripped,
)
from sepprior.checkpoint.specgan import build_generator
from sepprior.errors import SeppriorError
from sepprior.priors import LatentSpace
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
    structure = header["structure"]
    generator = build_generator(stripped(tensors, "generator."), structure)
    return SpectrogramGAN(
        generator.to(place),
        LatentSpace.from_dict(structure["latent"]),
        log_mean=tensors["log_mean"].to(place),
        log_sd=tensors["log_sd"].to(place),
        metadata=header["metadata"],
    )
