"""What the kinds of priors have in common in a file: header, latent, tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sepprior.checkpoint.entries import LARGEST, Entry
from sepprior.checkpoint.facts import check_facts
from sepprior.config.checks import MAX_WINDOW, MIN_WINDOW
from sepprior.priors import LatentSpace

Module = TypeVar("Module", bound=nn.Module)
SLOWEST, FASTEST = 1e-12, 1e15
"""Sample rates, Hz."""
FARTHEST = 1e12
"""Largest level in standard deviations of the noise; of more, rounding is noise."""
SHARES_ERROR = 1e-3
"""By how much the shares of all labels may miss 1."""
FLOATS = (torch.float32, torch.float64)
WHOLE = (torch.int64, torch.bool)


@dataclass(frozen=True)
class Header:
    """What every prior's file says, checked.

    Attributes:
        kind: name of the prior.
        level: mean of the noise, data units.
        sample_rate: Hz.
        structure: what rebuilds the prior beside its tensors, not yet checked.
        metadata: facts, checked as far as they are known.
    """

    kind: str
    level: float
    sample_rate: float
    structure: Entry
    metadata: dict[str, Any]

    @classmethod
    def of(cls, told: Mapping[str, Any], lags: Tensor) -> Header:
        """The header of a file's description.

        Args:
            told: the description.
            lags: autocovariance of the noise, (N,).

        Raises:
            ValueError: says what is wrong.
        """
        entry = Entry(dict(told), "description")
        entry["format_version"].integer(1, 10**6)
        metadata = Entry(entry["metadata"].value, "metadata")
        kind = entry["kind"].text()
        check_facts(metadata, len(lags), scored=kind != "gaussian")
        structure = Entry(entry["structure"].value, "structure")
        structure.fields()
        far = FARTHEST * float(lags[0]) ** 0.5
        return cls(
            kind,
            Entry(entry["level"].value, "level").number(-far, far),
            Entry(entry["sample_rate"].value, "sample_rate").number(SLOWEST, FASTEST),
            structure,
            {name: fact.value for name, fact in metadata.fields().items()},
        )


def check_tensors(tensors: Mapping[str, Tensor]) -> Tensor:
    """Refuse tensors of other types; the autocovariance, which must be among them.

    Raises:
        ValueError: says which tensor, and what is wrong.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in (*FLOATS, *WHOLE):
            raise ValueError(f"{name} has values of type {tensor.dtype}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite")
    lags = tensors.get("autocovariance")
    if lags is None or lags.dim() != 1 or lags.dtype not in FLOATS:
        raise ValueError("autocovariance is missing, or no series of real numbers")
    window = len(lags)
    if not MIN_WINDOW <= window <= MAX_WINDOW:
        raise ValueError(
            f"a window of {window} samples, expected {MIN_WINDOW} to {MAX_WINDOW}"
        )
    for name in ("autocovariance", "whitening"):
        series = tensors.get(name, lags).double()
        variance = float(series.flatten()[0]) if series.numel() else 0.0
        if not 1 / LARGEST <= variance <= LARGEST:
            raise ValueError(f"{name} begins with {variance:g}, which is no variance")
        if float(series.abs().max()) > 2.0 * variance:
            raise ValueError(f"{name} exceeds the variance it begins with")
    return lags


def check_shapes(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    positive: tuple[str, ...] = (),
) -> None:
    """Refuse tensors of real numbers that are missing or have other shapes or signs.

    Raises:
        ValueError: says which tensor, and what is wrong.
    """
    for name, shape in shapes.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ValueError(f"{name} is missing")
        if tuple(tensor.shape) != shape or tensor.dtype not in FLOATS:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} and type {tensor.dtype}, "
                f"expected {shape} and real numbers"
            )
    for name in positive:
        # What single precision rounds to zero is no scale either.
        if not bool((tensors[name].float() >= torch.finfo(torch.float32).tiny).all()):
            raise ValueError(f"{name} is not positive")


def read_latent(told: Entry) -> LatentSpace:
    """A latent variable; of its labels no two are the same."""
    labels = [label.text() for label in told["labels"].items()]
    shares = told["shares"].numbers(len(labels), fewest=0, low=1e-12, high=1.0)
    if len(set(labels)) < len(labels):
        told["labels"].refuse("different names")
    if labels and abs(sum(shares) - 1.0) > SHARES_ERROR:
        told["shares"].refuse("numbers that add up to 1")
    return LatentSpace(
        told["size"].integer(1, MAX_WINDOW),
        told["uniform"].flag(),
        tuple(labels),
        tuple(shares),
    )


class _Unfilled(TorchFunctionMode):
    """Tensors without memory are not filled either.

    To do so torch would import its compiler, which takes seconds.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.startswith("_")):
            return args[0] if args else given["tensor"]
        if name in ("exp", "__rmul__", "mul"):
            return args[0]
        if name == "randn":
            return torch.empty(*args, **given)
        if name == "linspace":
            return torch.empty(args[2], **given)
        if name == "randperm":
            return torch.empty(args, dtype=torch.int64)
        return func(*args, **given)


def shape_of(weights: Mapping[str, Tensor], name: str, size: int) -> tuple[int, ...]:
    """The shape of a tensor that must exist and have `size` dimensions."""
    if name not in weights:
        raise ValueError(f"{name} is missing")
    shape = tuple(weights[name].shape)
    if len(shape) != size or not all(shape):
        raise ValueError(f"{name} has shape {shape}, expected {size} dimensions")
    return shape


def fitted(
    make: Callable[[], Module], weights: Mapping[str, Tensor], prefix: str
) -> Module:
    """A network with the weights of a file.

    It is first made without memory: only one that the file's weights fit is made
    in earnest, so that a description cannot ask for more than the file holds.

    Args:
        make: makes the network with any weights.
        weights: by name.
        prefix: of their names in the file.

    Raises:
        ValueError: weights are missing, left over, or of another shape or type.
    """
    with torch.device("meta"), _Unfilled():
        expected = make().state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights or name not in expected:
            what = "missing" if name in expected else "left over"
            raise ValueError(f"{prefix}{name} is {what}")
        mine, wanted = weights[name], expected[name]
        if mine.shape != wanted.shape:
            raise ValueError(
                f"{prefix}{name} has shape {tuple(mine.shape)}, "
                f"expected {tuple(wanted.shape)}"
            )
        if mine.dtype not in (FLOATS if wanted.is_floating_point() else WHOLE):
            raise ValueError(f"{prefix}{name} has values of type {mine.dtype}")
    network = make()
    network.load_state_dict(dict(weights))
    return network
