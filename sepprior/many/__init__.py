"""Many inputs, of any number and size, into one table: a row per window.

`plan` divides the inputs into jobs, `work` does one job, `local` and `cluster` do many
(on this machine's device, or on a Dask cluster), `store` keeps the finished parts, so
that a killed run can be resumed, and `run` puts them together.
"""

from sepprior.many.run import Progress as Progress
from sepprior.many.run import separate_many as separate_many
