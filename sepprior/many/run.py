"""Inputs in, table out: plan, engine and store put together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sepprior import __version__
from sepprior.data import list_files
from sepprior.errors import SeppriorError, file_path
from sepprior.many.cluster import do_on_cluster
from sepprior.many.local import do_locally
from sepprior.many.plan import Cut, Inputs, Job, Plan
from sepprior.many.store import TableStore
from sepprior.many.work import Part, Skipped, Task, file_digest, no_rows, prior_of
from sepprior.signals import Signal
from sepprior.tracking import FitOptions
from sepprior.tracking.windows import check_grid

WRITTEN_BEHIND = 2
"""Parts that may wait for the disk."""
PROMPT = 0.05
"""Seconds that the computing waits for a part to be on disk, so that it is reported at
once and not after the next one; a slow disk is written to meanwhile."""

Engine = Literal["local", "dask"]


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        windows: rows of the table so far.
        done: bytes of input that are done.
        total: bytes of input in all.
        skipped: inputs left out by the newest part.
        resumed: whether an earlier run had done the newest part.
    """

    windows: int
    done: float
    total: float
    skipped: tuple[Skipped, ...]
    resumed: bool


def separate_many(
    inputs: Iterable[str | Path],
    prior: str | Path,
    *,
    table: str | Path,
    window: int | None = None,
    hop: int | None = None,
    sample_rate: float | None = None,
    column: str | None = None,
    time_column: str | None = None,
    skip_lines: int = 0,
    options: FitOptions | None = None,
    label: str | None = None,
    device: str = "auto",
    engine: Engine = "local",
    workers: int | None = None,
    scheduler: str | None = None,
    resume: bool = False,
    keep_going: bool = False,
) -> Iterator[Progress]:
    """Separate inputs of any number and size window by window, into one table.

    Memory does not grow with the inputs, but for their names: a hundred bytes and the
    length of the path for each file. The table is a Parquet dataset: a folder of
    parts that each appear whole. It has one row per window: `source` (the file),
    `measurement` (its name there), and the columns of `WindowFits.table`. A row does
    not depend on the engine, on the other inputs, or on whether the run was resumed,
    beyond rounding.

    Args:
        inputs: files, folders, patterns; see `list_files`.
        prior: file of the noise prior.
        table: folder to write.
        window: samples in a window, by default as many as in the prior's. A shorter
            measurement is one window.
        hop: samples from window to window, by default `window`.
        sample_rate: Hz, for files that do not tell; by default the prior's.
        column: of the samples in each file.
        time_column: see `sepprior.data.read_recordings`.
        skip_lines: see there.
        options: how to fit. A function as the signal must be a plain one of a file, so
            that a resumed run can tell that it is the same.
        label: kind of noise, for a prior trained with labels; inferred by default.
        device: where to compute.
        engine: "local", or "dask" for a cluster of processes or machines.
        workers: processes of a local Dask cluster, by default one per GPU or core.
        scheduler: address of a Dask scheduler; inputs and prior must have the same
            paths for its workers.
        resume: continue the table in the folder, if there is one.
        keep_going: leave out inputs that cannot be used.

    Returns:
        The progress, after each part. The work is done while it is drawn.

    Raises:
        SeppriorError: an option cannot be used, pyarrow is missing, the folder holds
            something that cannot be continued or, while the progress is drawn, an
            input cannot be used. Finished parts stay.
    """
    if engine == "local" and (workers is not None or scheduler is not None):
        raise SeppriorError("workers and a scheduler belong to --engine dask")
    if workers is not None and scheduler is not None:
        raise SeppriorError("give --workers or --scheduler, not both")
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise SeppriorError(
            f"writing the table '{table}' needs pyarrow; pip install pyarrow"
        ) from error
    prior, table = file_path("prior", prior), file_path("table", table)
    digest = file_digest(prior)
    loaded = prior_of(str(prior), device, digest, label)
    window = loaded.window if window is None else window
    cut = Cut(
        window,
        window if hop is None else hop,
        sample_rate,
        column,
        time_column,
        skip_lines,
    )
    check_grid(cut.window, cut.hop)
    options = options or FitOptions()
    task = Task(str(prior), digest, device, cut, options, label, keep_going)
    signal = signal_identity(options.signal)
    no_rows(task, loaded)  # a mistake in the options is an error before anything else
    found = Inputs.survey(list_files(inputs))
    identity = {
        "version": __version__,
        "prior": digest,
        "inputs": found.digest,
        **asdict(cut),
        **asdict(options),
        "signal": signal,
        "label": label,
    }
    store = TableStore(Path(table), identity, resume=resume)
    plan = Plan(found, cut, store.extents, store.learned)
    return _progress(plan, store, task, engine, workers, scheduler)


def signal_identity(signal: Signal) -> str:
    """What tells a signal from all others: its name, or a function and its file.

    Raises:
        SeppriorError: the function is not told by a file alone.
    """
    if isinstance(signal, str):
        return signal
    code = getattr(signal, "__code__", None)
    if code is None or code.co_freevars or not Path(code.co_filename).is_file():
        raise SeppriorError(
            f"signal '{getattr(signal, '__name__', signal)}': a table needs a plain "
            "function that stands in a file, without values from around it"
        )
    return f"{code.co_name} of a file with SHA-256 {file_digest(code.co_filename)}"


def _progress(
    plan: Plan,
    store: TableStore,
    task: Task,
    engine: Engine,
    workers: int | None,
    scheduler: str | None,
) -> Iterator[Progress]:
    """Do what is left of a plan."""
    total = float(sum(plan.inputs.sizes))
    windows, done = 0, 0.0
    resumed: deque[tuple[str, float]] = deque()

    def remaining() -> Iterator[Job]:
        for job in plan.jobs():
            if job.name in store.done:
                resumed.append((job.name, job.size))
            else:
                yield job

    def news(name: str, size: float, *, resumed: bool) -> Progress:
        nonlocal windows, done
        rows, skipped = store.done[name]
        windows, done = windows + rows, done + size
        return Progress(windows, done, total, skipped, resumed)

    if engine == "dask":
        parts = do_on_cluster(remaining(), task, workers=workers, scheduler=scheduler)
    else:
        parts = do_locally(remaining(), task)
    with closing(parts):
        for job in _written(parts, store):
            while resumed:
                yield news(*resumed.popleft(), resumed=True)
            yield news(job.name, job.size, resumed=False)
    while resumed:
        yield news(*resumed.popleft(), resumed=True)


def _written(parts: Iterator[tuple[Job, Part]], store: TableStore) -> Iterator[Job]:
    """Write parts in a thread of their own; yield the jobs whose parts are on disk."""
    waiting: deque[tuple[Job, Future[None]]] = deque()
    with ThreadPoolExecutor(1, "writer") as writer:
        for job, part in parts:
            waiting.append((job, writer.submit(store.write, job.name, part)))
            wait([waiting[-1][1]], timeout=PROMPT)
            while waiting and (len(waiting) > WRITTEN_BEHIND or waiting[0][1].done()):
                done, future = waiting.popleft()
                future.result()
                yield done
        for done, future in waiting:
            future.result()
            yield done
