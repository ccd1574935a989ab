"""Training on several processes, each with its part of every batch.

Started by ``torchrun``, each process draws the same random numbers for the whole batch
and keeps every `world`-th row, so that the run is that of one process with the joint
batch. DistributedDataParallel averages the gradients; what is not a mean over the batch
(the batch-mean spectrum, how much a batch varies) gathers the joint batch first.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sepprior.errors import SeppriorError

HARMLESS = ("`broadcast_buffers` is deprecated", "Grad strides do not match")
"""Warnings of DistributedDataParallel about which a user can do nothing."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of a training.

    Attributes:
        rank: 0 to world - 1.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    def rows(self, joint: Tensor) -> Tensor:
        """This process's rows (B / world, ...) of a joint batch (B, ...)."""
        return joint if self.world == 1 else joint[self.rank :: self.world]

    def joint(self, rows: Tensor) -> Tensor:
        """The joint batch (B, ...) of all processes' rows, differentiable."""
        if self.world == 1:
            return rows
        return cast(Tensor, _Gather.apply(rows, self.rank, self.world))

    def share(self, batch: int) -> int:
        """Rows of a joint batch that fall to each process.

        Raises:
            SeppriorError: the batch cannot be divided.
        """
        if batch % (2 * self.world) and self.world > 1:
            raise SeppriorError(
                f"a batch of {batch} cannot be shared by {self.world} processes; "
                f"set batch to a multiple of {2 * self.world}"
            )
        return batch // self.world

    def step(
        self,
        module: nn.Module,
        loss: Callable[..., tuple[Tensor, dict[str, Tensor]]],
        *,
        partial: bool = False,
    ) -> nn.Module:
        """`loss` as a module whose backward averages the gradients of `module`.

        Args:
            module: what the loss trains.
            loss: gives the loss and the numbers that are reported.
            partial: some parameters may have no part in the loss, which is an error
                otherwise; looking for them takes a little time in every step.
        """
        objective = Objective(module, loss)
        if self.world == 1:
            return objective
        return nn.parallel.DistributedDataParallel(
            objective, find_unused_parameters=partial, broadcast_buffers=False
        )


class Objective(nn.Module):
    """A loss in the form DistributedDataParallel asks for: a module's forward.

    Args:
        module: what the loss trains.
        loss: gives the loss and the numbers that are reported.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[..., tuple[Tensor, dict[str, Tensor]]],
    ) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, *batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch."""
        return self.loss(*batch)


class _Gather(torch.autograd.Function):
    """All rows in the order of the joint batch.

    The gradient is that of the sum of what the processes compute of the joint batch;
    averaged over them again, it is that of their mean.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, world: int) -> Tensor:
        ctx.place = (rank, world)
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world)]
        dist.all_gather(parts, rows)
        return torch.stack(parts, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, None, None]:
        return _Sum.apply(gradients[0], *ctx.place), None, None


class _Sum(torch.autograd.Function):
    """This process's rows of the sum of all processes' joint batches.

    The adjoint of `_Gather`, a function of its own for the sake of second derivatives,
    which the critic's penalty takes.
    """

    @staticmethod
    def forward(ctx: Any, joint: Tensor, rank: int, world: int) -> Tensor:
        ctx.place = (rank, world)
        total = joint.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[rank::world]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, None, None]:
        return _Gather.apply(gradients[0], *ctx.place), None, None


def current_ranks() -> Ranks:
    """This process's place; alone unless a process group has been set up."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


def join_processes(device: str) -> str:
    """Join the processes that ``torchrun`` started, if it did.

    Args:
        device: as asked for.

    Returns:
        The device of this process: ``cuda:LOCAL_RANK`` where there are GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return device
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    gpus = device in ("auto", "cuda") and torch.cuda.is_available()
    dist.init_process_group("nccl" if gpus else "gloo")
    if not gpus:
        return "cpu" if device == "auto" else device
    place = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    torch.cuda.set_device(place)
    return place
