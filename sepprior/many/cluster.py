"""Jobs done by the workers of a Dask cluster.

The workers read the inputs and the prior themselves, under the same paths; a local
cluster has one worker per GPU where there are several, else as many as asked for, and
takes orders from this process alone. The finished parts come back to this process,
which writes them. A worker that dies is replaced, and its jobs are done again by
another.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from sepprior.errors import SeppriorError
from sepprior.many.plan import Job
from sepprior.many.work import Part, Skipped, Task, do, no_rows

if TYPE_CHECKING:
    from distributed import Client

IN_FLIGHT = 2
"""Jobs handed out per thread of the cluster: one in work, the others waiting."""
PATIENCE = 60
"""Seconds to wait for the scheduler and the first worker."""
KEPT_BYTES = 2**28
"""Freed memory that a local worker keeps, in each of its pools. Dask has it given back
at once, and a third of a CPU worker's time would go into asking for it again."""


def do_on_cluster(
    jobs: Iterator[Job],
    task: Task,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
) -> Generator[tuple[Job, Part]]:
    """Do jobs on a cluster, in the order in which they are finished.

    Args:
        jobs: drawn as they are handed out.
        task: what they have in common.
        workers: of a local cluster, by default one per GPU or per core.
        scheduler: address of a cluster that runs already, to use instead.

    Raises:
        SeppriorError: an input or an option cannot be used, dask or cryptography is
            missing, the scheduler does not answer, or a job has killed several workers.
    """
    try:
        if scheduler is None:
            import cryptography  # noqa: F401  # makes the certificate of the cluster
        from distributed import KilledWorker, as_completed
    except ImportError as error:
        raise SeppriorError(
            "--engine dask needs dask.distributed, and cryptography for a cluster of "
            "its own; pip install 'sepprior[cluster]'"
        ) from error
    with _client(workers, scheduler) as client:
        running: dict[Any, Job] = {}
        finished = as_completed()

        def hand_out() -> None:
            while len(running) < IN_FLIGHT * max(1, _threads(client)):
                job = next(jobs, None)
                if job is None:
                    return
                future = client.submit(do, job, task, pure=False)
                running[future.key] = job
                finished.add(future)

        hand_out()
        for future in finished:
            job = running.pop(future.key)
            try:
                part = future.result()
            except KilledWorker:
                part = _killed(job, task)
            future.release()
            hand_out()
            yield job, part


def _killed(job: Job, task: Task) -> Part:
    """A job that no worker survived: left out, or an error."""
    reason = (
        "the workers that read it were killed, perhaps for lack of memory; see what "
        "the cluster says, or use --engine local"
    )
    if not task.keep_going:
        raise SeppriorError(f"{job.pieces[0].path}: {reason}")
    skipped = tuple(Skipped(piece.path, reason) for piece in job.pieces)
    return Part(no_rows(task, task.load_prior()), skipped)


def _threads(client: Any) -> int:
    return sum(client.nthreads().values())


@contextmanager
def _client(workers: int | None, scheduler: str | None) -> Iterator[Client]:
    """A client of a running cluster, or of a local one made for it."""
    import dask.config
    from distributed import Client

    from sepprior.many.closed import closed_cluster

    private = TemporaryDirectory(
        prefix="sepprior-",
        dir=dask.config.get("temporary-directory", None),
        ignore_cleanup_errors=True,
    )
    local = {
        # Workers look for modules in Dask's folder, and its usual name in the common
        # one for temporary files may be another user's.
        "temporary-directory": private.name,
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": KEPT_BYTES,
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": KEPT_BYTES,
    }
    with ExitStack() as stack:
        stack.enter_context(private)
        stack.enter_context(dask.config.set(local))
        try:
            target: Any = scheduler
            if scheduler is None:
                found = environments(workers, visible_gpus())
                target = stack.enter_context(closed_cluster(found))
            client = stack.enter_context(Client(target, timeout=PATIENCE))
            client.wait_for_workers(1, timeout=PATIENCE)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            # RuntimeError: encryption is required; TypeError: TLS without certificates.
            raise SeppriorError(
                f"no Dask cluster at {scheduler or 'this machine'} "
                f"({' '.join(str(error).split())}): give the address of a scheduler "
                "that has workers, such as tls://host:8786, for which Dask's setting "
                "distributed.comm.tls names the certificates"
            ) from error
        yield client


def visible_gpus() -> list[str]:
    """Names of the GPUs of this host, as CUDA_VISIBLE_DEVICES has them."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [name for name in told.split(",") if name and name != "-1"]
    return [str(number) for number in range(torch.cuda.device_count())]


def environments(workers: int | None, gpus: list[str]) -> list[dict[str, str]]:
    """Environment variables of each worker: a GPU of its own, or a share of the cores.

    Args:
        workers: how many; by default one per GPU, or per core without a GPU.
        gpus: names of the GPUs.
    """
    cores = os.cpu_count() or 1
    count = workers or len(gpus) or cores
    threads = {"OMP_NUM_THREADS": str(max(1, cores // count))}
    if not gpus:
        return [dict(threads) for _ in range(count)]
    return [
        {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)], **threads}
        for number in range(count)
    ]
