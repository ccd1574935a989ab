"""Nested training states as flat tensors plus JSON, and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor


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
