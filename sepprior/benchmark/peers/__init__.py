"""Methods of other packages, each called as its own documentation says."""

from collections.abc import Mapping

from sepprior.benchmark.methods import Method

PEERS: Mapping[str, Method] = {}
