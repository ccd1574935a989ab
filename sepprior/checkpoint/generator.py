"""How a trained generator of waveforms is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sepprior.checkpoint.entries import Entry
from sepprior.checkpoint.files import prefixed, stripped
from sepprior.checkpoint.parts import Header, check_shapes, fitted, read_latent
from sepprior.config.checks import MAX_WINDOW
from sepprior.nets import (
    GANSynthGenerator,
    LSTMGenerator,
    WaveformGenerator,
    WaveGANGenerator,
)
from sepprior.priors import GeneratorPrior, Reach

NETWORKS: Mapping[str, type[WaveformGenerator]] = {
    "wavegan": WaveGANGenerator,
    "lstm": LSTMGenerator,
    "gansynth": GANSynthGenerator,
}
"""The network of each model."""
RATIO = "range_error.ratio"
"""Name of the spectrum of the range error."""
LABELLED = "range_error.label."
"""Before the name of a label, where it has a range error of its own."""
FACTOR = 1e6
"""Largest gain of a generator whose waveforms have about unit variance."""


def pack(prior: GeneratorPrior) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, the range errors, and what rebuilds the network and its latent."""
    reaches = {RATIO: prior.shared}
    reaches |= {LABELLED + label: reach for label, reach in prior.by_label.items()}
    tensors = {
        **{name: reach.ratio for name, reach in reaches.items()},
        **prefixed(prior.network.state_dict(), "generator."),
    }
    structure: dict[str, Any] = {
        "network": prior.network.structure(),
        "latent": prior.space.to_dict(),
        "gain": prior.shared.gain,
    }
    if version(prior) > 2:
        structure["reach"] = {
            name: {"gain": reach.gain, "absolute": reach.absolute}
            for name, reach in reaches.items()
        }
    return tensors, structure


def version(prior: GeneratorPrior) -> int:
    """6 where labels have a range error of their own, or one has its own spectrum."""
    return 6 if prior.by_label or prior.shared.absolute else 2


def build(tensors: dict[str, Tensor], header: Header) -> GeneratorPrior:
    """The prior of a file."""
    structure, window = header.structure, len(tensors["autocovariance"])
    weights = stripped(tensors, "generator.")
    ratios = {
        k: (window,) for k in (RATIO, *tensors) if k.startswith((RATIO, LABELLED))
    }
    check_shapes(tensors, ratios)
    told = structure["network"]
    arguments = _arguments(told, window, len(weights))
    network = fitted(lambda: NETWORKS[header.kind](**arguments), weights, "generator.")
    space = read_latent(structure["latent"])
    if space.size + len(space.labels) != network.code:
        told["code"].refuse(f"{space.size + len(space.labels)}, latents and labels")
    found = structure.get("reach")
    reaches = {} if found is None else found.fields()
    if found is None or RATIO not in reaches:
        reaches[RATIO] = structure
    if set(stripped(tensors, LABELLED)) - set(space.labels):
        structure["latent"].refuse("every label that has a range error")
    return GeneratorPrior(
        header.kind,
        network,
        space=space,
        reach=_reach(reaches[RATIO], tensors[RATIO]),
        by_label={
            label: _reach(reaches[LABELLED + label], ratio)
            for label, ratio in stripped(tensors, LABELLED).items()
        },
        autocovariance=tensors["autocovariance"],
        level=header.level,
        sample_rate=header.sample_rate,
        metadata=header.metadata,
    )


def _reach(told: Entry, ratio: Tensor) -> Reach:
    absolute = told.get("absolute")
    return Reach(
        gain=told["gain"].number(-FACTOR, FACTOR),
        ratio=ratio,
        absolute=absolute is not None and absolute.flag(),
    )


def _arguments(told: Entry, window: int, most_layers: int) -> dict[str, Any]:
    """Arguments of a network, each within what its tensors can bear out."""
    found: dict[str, Any] = {}
    for name, entry in told.fields().items():
        if name == "window":
            found[name] = entry.integer(window, window)
        elif name == "layers":
            found[name] = entry.integer(1, most_layers)
        elif name in ("code", "width"):
            found[name] = entry.integer(1, MAX_WINDOW)
        elif name == "post_filter":
            found[name] = entry.integer(0, window)
        elif name == "growth":
            found[name] = entry.number(0.0, 1.0)
        elif name == "peak":
            found[name] = entry.number(1e-9, FACTOR)
        else:
            entry.refuse("no such setting of a network")
    return found
