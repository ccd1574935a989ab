"""Tensors and a JSON header in one safetensors file."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sepprior.errors import SeppriorError, shown
from sepprior.outputs import whole_files

_KEY = "sepprior"
_CHECKSUM = "sha256"


def save_tensors(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], path: str | Path
) -> None:
    """Write tensors, a JSON header and their checksum to `path` in one atomic step.

    Raises:
        OSError: the file cannot be written, on a full disk for instance.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    text = json.dumps(header)
    told = {_KEY: text, _CHECKSUM: _checksum(plain, text)}
    with whole_files(path) as (scratch,):
        mode = scratch.stat().st_mode
        try:
            save_file(plain, scratch, metadata=told)
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(path)) from error
        scratch.chmod(mode)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON header of a file written by `save_tensors`.

    Raises:
        SeppriorError: no such file, not a safetensors file, not from sepprior, or not
            what was written (files of before there were checksums have none).
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        found = path.is_file()
    except OSError as error:
        raise SeppriorError(
            f"{str(path)[:100]}...: cannot be opened ({error.strerror})"
        ) from error
    if not found:
        raise SeppriorError(
            f"{path}: no such prior file; train one with 'sepprior train-noise'"
        )
    try:
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (
        SafetensorError,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        OverflowError,
        MemoryError,
    ) as error:
        reason = first_line(error)
        raise SeppriorError(
            f"{path}: not a readable safetensors file ({reason}); "
            "give a prior written by 'sepprior train-noise'"
        ) from error
    if _KEY not in metadata:
        raise SeppriorError(
            f"{path}: a safetensors file of another program; "
            "give a prior written by 'sepprior train-noise'"
        )
    told = metadata.get(_CHECKSUM)
    if told is not None and told != _checksum(tensors, metadata[_KEY]):
        raise SeppriorError(
            f"{path}: is not what was written (its checksum differs); "
            "restore the file or train it again"
        )
    try:
        header = json.loads(metadata[_KEY], object_pairs_hook=_unique)
        json.dumps(header, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise SeppriorError(
            f"{path}: its description is damaged ({first_line(error)}); "
            "restore the file or train it again"
        ) from error
    if not (isinstance(header, dict) and isinstance(header.get("metadata", {}), dict)):
        raise SeppriorError(
            f"{path}: its description is damaged (what should be a table is none); "
            "restore the file or train it again"
        )
    return tensors, header


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of a header and of names, types, shapes and bytes of all tensors."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        about = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(about.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table of a JSON document, whose names must differ."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a name occurs twice in one table")
    return table


def first_line(error: BaseException) -> str:
    """What an error says, on one line that can be printed."""
    line = (str(error).splitlines() or [type(error).__name__])[0].strip(" .:")
    return "".join(c if c.isprintable() else "?" for c in line[:300])


def stripped(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with `prefix`, by the rest of their names."""
    size = len(prefix)
    return {k[size:]: v for k, v in tensors.items() if k.startswith(prefix)}


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same tensors with `prefix` before their names."""
    return {prefix + k: v for k, v in tensors.items()}


def resolve_device(device: str) -> torch.device:
    """The torch device named `device`; "auto" is a GPU where there is one.

    Raises:
        SeppriorError: unknown or absent device.
    """
    if not isinstance(device, str | torch.device):
        raise SeppriorError(
            f"device={shown(device)}: give 'auto', 'cpu' or 'cuda', in quotes"
        )
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.ones(1, device=chosen).cpu()  # "meta" has no numbers to give
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0][:100]
        usable = ["'auto'", "'cpu'"]
        usable += [f"'cuda:{i}'" for i in range(torch.cuda.device_count())]
        raise SeppriorError(
            f"device {device!r} cannot be used ({reason}); "
            f"usable here: {', '.join(usable)}"
        ) from error
    return chosen
