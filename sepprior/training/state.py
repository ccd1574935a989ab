"""Nested training states as flat tensors plus JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sepprior.config import config_from_dict, config_to_dict
from sepprior.errors import SeppriorError


def resume_path(output: Path) -> Path:
    """Where the full training state of a prior at `output` is kept."""
    return output.with_name(f"{output.stem}.resume.safetensors")


def pack(tree: Any, prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """Split a nest of dictionaries and lists into tensors and plain values.

    Args:
        tree: dictionaries (string or integer keys), lists, tuples, tensors, numbers,
            strings, None.
        prefix: path of this node.

    Returns:
        Tensors by path, and a JSON-able tree that refers to them by path.
    """
    if isinstance(tree, Tensor):
        return {prefix: tree}, {"tensor": prefix}
    if isinstance(tree, dict):
        tensors: dict[str, Tensor] = {}
        items = []
        for key, value in tree.items():
            inner, plain = pack(value, f"{prefix}/{key}")
            tensors |= inner
            items.append([key, plain])
        return tensors, {"dict": items}
    if isinstance(tree, list | tuple):
        tensors = {}
        plains = []
        for i, value in enumerate(tree):
            inner, plain = pack(value, f"{prefix}/{i}")
            tensors |= inner
            plains.append(plain)
        return tensors, {"list": plains}
    return {}, {"value": tree}


def unpack(tensors: dict[str, Tensor], plain: Any) -> Any:
    """Inverse of `pack` (tuples come back as lists)."""
    if "tensor" in plain:
        return tensors[plain["tensor"]]
    if "dict" in plain:
        return {key: unpack(tensors, value) for key, value in plain["dict"]}
    if "list" in plain:
        return [unpack(tensors, value) for value in plain["list"]]
    return plain["value"]


def check_continued(
    state: Mapping[str, Any], metadata: Mapping[str, Any], where: Path
) -> None:
    """Refuse to continue a training with other recordings or settings.

    Args:
        state: what the earlier run stored.
        metadata: facts of this run.
        where: the file of the state.

    Raises:
        SeppriorError: says what differs.
    """
    if state["data_hash"] != metadata["data_hash"]:
        raise SeppriorError(
            f"{where}: belongs to other recordings; give the same noise files or train "
            "from the start"
        )
    now = metadata["config"]
    # Settings that are newer than the file had their default then.
    before = config_to_dict(config_from_dict(state["config"]))
    changed = sorted(k for k in now if before.get(k) != now[k])
    if set(changed) - {"steps", "tick"}:
        raise SeppriorError(
            f"{where}: was trained with another {changed[0]} "
            f"({before.get(changed[0])!r}, now {now[changed[0]]!r}); "
            "give the same settings or train from the start"
        )
