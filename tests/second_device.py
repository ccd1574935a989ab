"""A device that is not the CPU, made of it: the rules of a GPU, the CPU's arithmetic.

A `Remote` tensor holds a tensor of the CPU and says that it lies on another device. An
operation of it with a tensor of the CPU that is not a scalar is refused, as is reading
it by numpy; only `to`, `cpu`, `item` and copies cross over.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing

NAME = "second"


class _Backend(backend_registration._DummyBackendModule):
    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        """Random numbers are the CPU's, whose state is kept anyway."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend(
    NAME, backend_module=_Backend()
)
DEVICE = torch.device(NAME, 0)
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._to_copy.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
INDICES = (torch.int64, torch.bool)
INDEXED += (aten._index_put_impl_.default, aten._unsafe_index.Tensor)


class Remote(torch.Tensor):
    """A tensor on the second device."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Remote:
        remote = torch.Tensor._make_wrapper_subclass(  # pyright: ignore
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        remote.held = held
        return remote

    def __repr__(self, **_: Any) -> str:
        return f"Remote({self.held!r})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def __reduce_ex__(self, protocol: int) -> Any:
        return Remote, (self.held,)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatched(func, args, kwargs or {})


def lstm_cell(i_gates: Any, h_gates: Any, c: Any, bias: Any = None, more: Any = None):
    """`_thnn_fused_lstm_cell`, which the CPU has not."""
    gates = i_gates + h_gates
    if bias is not None:
        gates = gates + bias + more
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    return o * c.tanh(), c, torch.cat([i, f, g, o], 1)


def lstm_cell_backward(d_h: Any, d_c: Any, c: Any, new: Any, gates: Any, bias: bool):
    """The derivative of `lstm_cell`."""
    i, f, g, o = gates.chunk(4, 1)
    d_h = torch.zeros_like(new) if d_h is None else d_h
    tanh = new.tanh()
    d_c = d_h * o * (1 - tanh**2) + (0 if d_c is None else d_c)
    parts = d_c * g * i * (1 - i), d_c * c * f * (1 - f), d_c * i * (1 - g**2)
    d_gates = torch.cat([*parts, d_h * tanh * o * (1 - o)], 1)
    return d_gates, d_c * f, d_gates.sum(0) if bias else None


OF_A_GPU = {
    aten._thnn_fused_lstm_cell.default: lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: lstm_cell_backward,
}


@cache
def aliases(func: Any) -> bool:
    """Whether what an operation gives shares memory with what it is given."""
    schema = func._schema
    return any(v.alias_info is not None for v in (*schema.arguments, *schema.returns))


def dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation on what the tensors hold, where they lie on one device."""
    places = set()
    indexed = func in INDEXED  # indices may lie on the CPU

    def held(value: Any) -> Any:
        if isinstance(value, Remote):
            places.add("remote")
            return value.held
        if isinstance(value, torch.Tensor):
            if value.dim() and not (indexed and value.dtype in INDICES):
                places.add("local")
        elif isinstance(value, (list, tuple)):
            return [held(each) for each in value]
        return value

    values = [held(value) for value in args]
    given = {name: held(value) for name, value in kwargs.items()}
    if len(places) == 2 and func not in COPIES:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found two ({func})"
        )
    remote = True
    if given.get("device") is not None:
        remote = torch.device(given["device"]).type == NAME
        if remote:
            given["device"] = torch.device("cpu")
    found = OF_A_GPU.get(func, func)(*values, **given)
    if not remote:
        return found
    if isinstance(found, torch.Tensor):
        found = Remote(found)
    elif isinstance(found, (list, tuple)):
        found = type(found)(
            Remote(v) if isinstance(v, torch.Tensor) else v for v in found
        )
    if not aliases(func) or func is aten._to_copy.default:
        return found
    if func is aten.copy_.default and not isinstance(args[0], Remote):
        return args[0]
    return return_and_correct_aliasing(func, args, kwargs, found)


def made(func: Any) -> Any:
    """A factory that makes its tensor on the second device."""

    def make(*args: Any, device: Any = None, pin_memory: Any = None, **given: Any):
        return Remote(func(*args, device=torch.device("cpu"), **given))

    return make


_library = torch.library.Library("aten", "IMPL")
for _name in (
    *("empty.memory_format", "empty_strided", "arange", "arange.start"),
    *("arange.start_step", "eye", "eye.m", "linspace", "logspace", "randperm"),
):
    _base, _, _overload = _name.partition(".")
    _func = getattr(getattr(aten, _base), _overload or "default")
    _library.impl(_name, made(_func), "PrivateUse1")


def zeros(size: Any, **given: Any) -> Any:
    """The zero tangents of forward-mode derivatives."""
    return made(aten.zeros.default)(size, **given)


_library.impl("_efficientzerotensor", zeros, "PrivateUse1")


def copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
    """A copy to, from or on the device, where autograd has been passed."""
    ends = (end.held if isinstance(end, Remote) else end for end in (target, source))
    torch.Tensor.copy_(*ends)
    return target


_library.impl("_copy_from", copy_from, "PrivateUse1")
