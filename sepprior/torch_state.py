"""The same answers under whatever state of torch the caller has set."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def usual_torch() -> Iterator[None]:
    """Gradients on, no autocast, float32 and the CPU as defaults; restored afterwards.

    Also a decorator, for the functions that a user calls.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def usual_torch_within(
    function: Callable[Given, Generator[Item, None, Result]],
) -> Callable[Given, Generator[Item, None, Result]]:
    """A generator function that runs in that state, but leaves the caller its own.

    Between two items the caller's state holds, whatever it is then.
    """

    @wraps(function)
    def stream(
        *args: Given.args, **options: Given.kwargs
    ) -> Generator[Item, None, Result]:
        # Called at once: what cannot be used is refused before the first item.
        with usual_torch():
            steps = function(*args, **options)
        return _within(steps)

    return stream


def _within(
    steps: Generator[Item, None, Result],
) -> Generator[Item, None, Result]:
    """A generator each of whose steps runs in the usual state."""
    try:
        while True:
            with usual_torch():
                try:
                    item = next(steps)
                except StopIteration as end:
                    return end.value
            yield item
    finally:
        with usual_torch():
            steps.close()
