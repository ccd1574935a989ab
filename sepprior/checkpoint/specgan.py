"""How a `specgan` prior is stored."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sepprior.checkpoint.entries import Entry
from sepprior.checkpoint.files import prefixed, stripped
from sepprior.checkpoint.parts import (
    Header,
    check_shapes,
    fitted,
    read_latent,
    shape_of,
)
from sepprior.config.checks import MAX_WINDOW
from sepprior.nets import Encoder, Flow, Generator, PlaneShape
from sepprior.priors import LatentSpace, PlaneStatistics, SpecGANPrior
from sepprior.transforms import TightSTFT

LOUDEST = 200.0
"""Largest log variance of a bin over that of stationary noise."""


def pack(prior: SpecGANPrior) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and moments, and the sizes that the weights do not tell."""
    stats = prior.statistics
    tensors = {
        "whitening": prior.whitening,
        "statistics.rms": stats.rms,
        "statistics.log_mean": stats.log_mean,
        "statistics.log_sd": stats.log_sd,
        **prefixed(prior.generator.state_dict(), "generator."),
    }
    if prior.encoder is not None:
        tensors |= prefixed(prior.encoder.state_dict(), "encoder.")
    structure = {
        "frame": prior.stft.length,
        "uniform_latent": prior.space.uniform,
        "bounded": prior.generator.bounded,
        "frames": prior.generator.plane.frames,
        "encoder": prior.encoder is not None,
    }
    if prior.generator.row is not None:
        structure["row"] = prior.generator.row.latent
        structure["row_every"] = prior.generator.row.every
        structure["row_couplings"] = 0 if prior.flow is None else prior.flow.row
    if prior.space.labels:
        structure["latent"] = prior.space.to_dict()
    if stats.loudest < math.inf:
        structure["loudest"] = stats.loudest
    return tensors, structure


def version(prior: SpecGANPrior) -> int:
    """The first format that knows all that the prior has."""
    row = prior.generator.row
    if row is not None:
        bent = prior.flow is not None and prior.flow.row > 0
        return 7 if bent or row.every == 1 else 5
    if prior.statistics.loudest < math.inf:
        return 4
    if prior.flow is not None:
        return 3
    return 2 if prior.space.labels else 1


def build(tensors: dict[str, Tensor], header: Header) -> SpecGANPrior:
    """The prior of a file."""
    structure, window = header.structure, len(tensors["autocovariance"])
    plane = _plane(structure)
    frame, column = 2 * plane.bins, (plane.bins, 1)
    bounded = structure["bounded"].flag()
    expected = TightSTFT(window, frame).n_frames - int(bounded)
    if plane.frames != expected:
        structure["frames"].refuse(str(expected))
    moments = {f"statistics.{k}": column for k in ("rms", "log_mean", "log_sd")}
    check_shapes(
        tensors,
        {"whitening": (window,), **moments},
        positive=("statistics.rms", "statistics.log_sd"),
    )
    generator = build_generator(stripped(tensors, "generator."), structure)
    latent = structure.get("latent")
    inputs = generator.project.in_features
    if latent is not None:
        space = read_latent(latent)
    else:
        space = LatentSpace(inputs, uniform=structure["uniform_latent"].flag())
    if space.size + len(space.labels) != inputs:
        structure["latent"].refuse(f"{inputs} latents and labels")
    encoder = None
    if structure["encoder"].flag():
        encoder = build_encoder(stripped(tensors, "encoder."), structure)
    loudest = structure.get("loudest")
    return SpecGANPrior(
        generator,
        encoder,
        statistics=PlaneStatistics(
            rms=tensors["statistics.rms"],
            log_mean=tensors["statistics.log_mean"],
            log_sd=tensors["statistics.log_sd"],
            loudest=math.inf if loudest is None else loudest.number(-LOUDEST, LOUDEST),
        ),
        whitening=tensors["whitening"],
        autocovariance=tensors["autocovariance"],
        level=header.level,
        sample_rate=header.sample_rate,
        frame=frame,
        space=space,
        metadata=header.metadata,
    )


def _plane(structure: Entry) -> PlaneShape:
    """The plane of a network, of a frame that is a power of two."""
    frame = structure["frame"].integer(4, MAX_WINDOW)
    if frame & (frame - 1):
        structure["frame"].refuse("a power of two")
    return PlaneShape(frame // 2, structure["frames"].integer(1, MAX_WINDOW))


def _row(structure: Entry) -> tuple[int, int]:
    """Latents that stand in a row, and at every how many frames."""
    row, every = structure.get("row"), structure.get("row_every")
    return (
        0 if row is None else row.integer(0, MAX_WINDOW),
        2 if every is None else every.integer(1, 2),
    )


def _last_layer(state: dict[str, Tensor]) -> int:
    numbers = [k.split(".")[-2] for k in state if "layers." in k]
    return max((int(n) for n in numbers if n.isdecimal()), default=0)


def build_generator(state: dict[str, Tensor], structure: Entry) -> Generator:
    """A generator of the size its weights tell."""
    layers = {k: v for k, v in state.items() if k.startswith("layers.")}
    width, channels = shape_of(state, f"layers.{_last_layer(layers)}.weight", 4)[:2]
    latent = shape_of(state, "project.weight", 2)[1]
    chain = stripped(state, "flow.")
    row, every = _row(structure)

    def make() -> Generator:
        flow = None
        if chain:
            bent = structure.get("row_couplings")
            couplings = {k.split(".")[1] for k in chain}
            n_row = 0 if bent is None else bent.integer(0, len(couplings))
            (size,) = shape_of(chain, "layers.0.order", 1)
            flow = Flow(size, len(couplings) - n_row, n_row)
        return Generator(
            _plane(structure),
            latent=latent,
            width=width,
            channels=channels,
            bounded=structure["bounded"].flag(),
            flow=flow,
            row=row,
            row_every=every,
        )

    for name, order in chain.items():
        if name.endswith(".order") and order.sort().values.tolist() != [
            *range(len(order))
        ]:
            raise ValueError(f"generator.flow.{name} is no permutation")
    return fitted(make, state, "generator.")


def build_encoder(state: dict[str, Tensor], structure: Entry) -> Encoder:
    """An encoder of the size its weights tell."""
    width, channels = shape_of(state, "body.layers.0.weight", 4)[:2]
    outputs = shape_of(state, "body.score.weight", 2)[0]
    return fitted(
        lambda: Encoder(
            _plane(structure),
            latent=outputs // 2,
            width=width,
            channels=channels,
            row=_row(structure)[0] > 0,
        ),
        state,
        "encoder.",
    )
