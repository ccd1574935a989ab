"""Jobs done on the one device of this process, reading ahead of the computing."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from sepprior.many.plan import Job
from sepprior.many.work import Loaded, Part, Task, fit, load

READ_AHEAD = 2
"""Jobs read before they are needed; with the one in work, all that memory holds."""


def do_locally(jobs: Iterator[Job], task: Task) -> Generator[tuple[Job, Part]]:
    """Do jobs in order; a thread reads the next ones meanwhile.

    Args:
        jobs: drawn one by one, by the reading thread.
        task: what they have in common.

    Raises:
        SeppriorError: an input or an option cannot be used.
    """
    prior = task.load_prior()

    def read_next() -> tuple[Job, Loaded] | None:
        job = next(jobs, None)
        return None if job is None else (job, load(job, task, prior))

    with ThreadPoolExecutor(1, "reader") as reader:
        ahead: deque[Future[tuple[Job, Loaded] | None]] = deque(
            reader.submit(read_next) for _ in range(READ_AHEAD)
        )
        try:
            while (found := ahead.popleft().result()) is not None:
                ahead.append(reader.submit(read_next))
                job, loaded = found
                yield job, fit(loaded, task, prior)
        finally:
            reader.shutdown(cancel_futures=True)
