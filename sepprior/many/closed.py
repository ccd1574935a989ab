"""A local Dask cluster that nobody else on the machine can talk to.

A Dask worker runs whatever it is sent. Every connection of the cluster is therefore
encrypted and asks both sides for a certificate that is made for this run and lies in
the memory of its processes alone; the web servers, which ask for none, are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from distributed import Nanny, Scheduler, SpecCluster, Worker
from distributed.security import Security

QUIET: Any = logging.CRITICAL
"""Restarts of workers are nothing that a user has to read about."""


class ClosedScheduler(Scheduler):
    """A scheduler without a web server."""

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Listen nowhere."""


class ClosedWorker(Worker):
    """A worker without a web server."""

    def start_http_server(self, *args: Any, **kwargs: Any) -> None:
        """Listen nowhere."""


def closed_cluster(environments: Iterable[dict[str, str]]) -> SpecCluster:
    """A running cluster of one process per environment; a dead one is restarted.

    Args:
        environments: variables of each worker's environment.

    Raises:
        ImportError: cryptography, which makes the certificate, is not installed.
    """
    common = {
        "protocol": "tls://",
        "host": "127.0.0.1",
        "security": Security.temporary(),
    }
    return SpecCluster(
        {
            number: {
                "cls": Nanny,
                "options": {
                    "nthreads": 1,
                    "env": environment,
                    "worker_class": ClosedWorker,
                    "silence_logs": QUIET,
                    **common,
                },
            }
            for number, environment in enumerate(environments)
        },
        scheduler={
            "cls": ClosedScheduler,
            "options": {"port": 0, "dashboard": False, **common},
        },
        security=common["security"],
        silence_logs=QUIET,
    )
