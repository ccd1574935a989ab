"""Frozen priors as safetensors files with JSON metadata.

Loading reads tensors and text only; no code is stored and none is run.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sepprior.errors import SeppriorError
from sepprior.nets import Encoder, Generator, PlaneShape
from sepprior.priors import GaussianPrior, PlaneStatistics, Prior, SpecGANPrior

FORMAT = "sepprior"
FORMAT_VERSION = 1
_KEY = "sepprior"


def save_tensors(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: str | Path
) -> None:
    """Write tensors and a JSON header to `path` in one atomic step."""
    from safetensors.torch import save_file

    path = Path(path)
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        save_file(plain, scratch, metadata={_KEY: json.dumps(header)})
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    finally:
        Path(scratch).unlink(missing_ok=True)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON header of a file written by `save_tensors`.

    Raises:
        SeppriorError: no such file, not a safetensors file, or not from sepprior.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise SeppriorError(
            f"{path}: no such prior file; train one with 'sepprior train-noise'"
        )
    try:
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SeppriorError(
            f"{path}: not a readable safetensors file ({reason}); "
            "give a prior written by 'sepprior train-noise'"
        ) from error
    if _KEY not in metadata:
        raise SeppriorError(
            f"{path}: a safetensors file of another program; "
            "give a prior written by 'sepprior train-noise'"
        )
    try:
        header = json.loads(metadata[_KEY])
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict):
        raise SeppriorError(
            f"{path}: its description is damaged; restore the file or train it again"
        )
    return tensors, header


def save_prior(prior: Prior, path: str | Path) -> None:
    """Write a prior to `path` (safetensors).

    Args:
        prior: a `gaussian` or `specgan` prior.
        path: the file; replaced in one atomic step if it exists.

    Raises:
        TypeError: the prior wraps code of the user's own, which is not stored.
    """
    tensors: dict[str, Tensor] = {"autocovariance": prior.autocovariance}
    structure: dict[str, Any] = {}
    if isinstance(prior, SpecGANPrior):
        stats = prior.statistics
        tensors |= {
            "whitening": prior.whitening,
            "statistics.rms": stats.rms,
            "statistics.log_mean": stats.log_mean,
            "statistics.log_sd": stats.log_sd,
        }
        tensors |= {
            f"generator.{k}": v for k, v in prior.generator.state_dict().items()
        }
        if prior.encoder is not None:
            tensors |= {
                f"encoder.{k}": v for k, v in prior.encoder.state_dict().items()
            }
        structure = {
            "frame": prior.stft.length,
            "uniform_latent": prior.uniform_latent,
            "bounded": prior.generator.bounded,
            "frames": prior.generator.plane.frames,
            "encoder": prior.encoder is not None,
        }
    elif not isinstance(prior, GaussianPrior):
        raise TypeError(f"a {prior.name} prior holds code and cannot be saved")
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": prior.name,
        "level": prior.level,
        "sample_rate": prior.sample_rate,
        "structure": structure,
        "metadata": prior.metadata,
    }
    save_tensors(tensors, header, path)


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
    tensors, header = load_tensors(path)
    if header.get("format") != FORMAT or "kind" not in header:
        raise SeppriorError(
            f"{path}: holds no noise prior (perhaps a training state); "
            "give the .safetensors file that 'sepprior train-noise' reports"
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
    autocovariance = tensors["autocovariance"]
    if header["kind"] == "gaussian":
        return GaussianPrior(
            autocovariance,
            level=header["level"],
            sample_rate=header["sample_rate"],
            metadata=header["metadata"],
        )
    structure = header["structure"]
    generator_state = _strip(tensors, "generator.")
    generator = build_generator(generator_state, structure)
    encoder = None
    if structure["encoder"]:
        encoder = build_encoder(_strip(tensors, "encoder."), structure)
    return SpecGANPrior(
        generator,
        encoder,
        statistics=PlaneStatistics(
            rms=tensors["statistics.rms"],
            log_mean=tensors["statistics.log_mean"],
            log_sd=tensors["statistics.log_sd"],
        ),
        whitening=tensors["whitening"],
        autocovariance=autocovariance,
        level=header["level"],
        sample_rate=header["sample_rate"],
        frame=structure["frame"],
        uniform_latent=structure["uniform_latent"],
        metadata=header["metadata"],
    )


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    size = len(prefix)
    return {k[size:]: v for k, v in tensors.items() if k.startswith(prefix)}


def _last_layer(state: dict[str, Tensor]) -> int:
    return max(int(k.split(".")[-2]) for k in state if "layers." in k)


def build_generator(
    state: dict[str, Tensor], structure: Mapping[str, Any]
) -> Generator:
    """A generator of the size its weights tell."""
    last = state[f"layers.{_last_layer(state)}.weight"]
    generator = Generator(
        PlaneShape(structure["frame"] // 2, structure["frames"]),
        latent=state["project.weight"].shape[1],
        width=last.shape[0],
        channels=last.shape[1],
        bounded=structure["bounded"],
    )
    generator.load_state_dict(state)
    return generator


def build_encoder(state: dict[str, Tensor], structure: Mapping[str, Any]) -> Encoder:
    """An encoder of the size its weights tell."""
    first = state["body.layers.0.weight"]
    encoder = Encoder(
        PlaneShape(structure["frame"] // 2, structure["frames"]),
        latent=state["body.score.weight"].shape[0] // 2,
        width=first.shape[0],
        channels=first.shape[1],
    )
    encoder.load_state_dict(state)
    return encoder


def resolve_device(device: str) -> torch.device:
    """The torch device named `device`; "auto" is a GPU where there is one.

    Raises:
        SeppriorError: unknown or absent device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SeppriorError(
            f"device {device!r} cannot be used ({reason}); "
            "give 'auto', 'cpu' or an available 'cuda:0'"
        ) from error
    return chosen


__all__ = [
    "load_prior",
    "load_tensors",
    "resolve_device",
    "save_prior",
    "save_tensors",
]
