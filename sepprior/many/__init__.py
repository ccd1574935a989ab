"""Many inputs, of any number and size, into one table: a row per window.

`plan` divides the inputs into jobs, `work` does one job, `local` and `cluster` do many
(on this machine's device, or on a Dask cluster), `store` keeps the finished parts, so
that a killed run can be resumed, and `run` puts them together.

Names are imported on first use: a worker of a cluster looks for `closed` before it has
its environment, with which torch must be loaded.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sepprior.many.run import Progress, separate_many

__all__ = ["Progress", "separate_many"]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'sepprior.many' has no attribute {name!r}")
    from sepprior.many import run

    return getattr(run, name)
