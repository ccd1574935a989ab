"""How a `specgan` prior is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sepprior.checkpoint.files import prefixed, stripped
from sepprior.nets import Encoder, Flow, Generator, PlaneShape
from sepprior.priors import LatentSpace, PlaneStatistics, SpecGANPrior


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


def build(tensors: dict[str, Tensor], header: dict[str, Any]) -> SpecGANPrior:
    """The prior of a file."""
    structure = header["structure"]
    generator = build_generator(stripped(tensors, "generator."), structure)
    if "latent" in structure:
        space = LatentSpace.from_dict(structure["latent"])
    else:
        space = LatentSpace(
            generator.project.in_features, uniform=structure["uniform_latent"]
        )
    encoder = None
    if structure["encoder"]:
        encoder = build_encoder(stripped(tensors, "encoder."), structure)
    return SpecGANPrior(
        generator,
        encoder,
        statistics=PlaneStatistics(
            rms=tensors["statistics.rms"],
            log_mean=tensors["statistics.log_mean"],
            log_sd=tensors["statistics.log_sd"],
            loudest=structure.get("loudest", math.inf),
        ),
        whitening=tensors["whitening"],
        autocovariance=tensors["autocovariance"],
        level=header["level"],
        sample_rate=header["sample_rate"],
        frame=structure["frame"],
        space=space,
        metadata=header["metadata"],
    )


def _last_layer(state: dict[str, Tensor]) -> int:
    return max(int(k.split(".")[-2]) for k in state if "layers." in k)


def build_generator(
    state: dict[str, Tensor], structure: Mapping[str, Any]
) -> Generator:
    """A generator of the size its weights tell."""
    layers = {k: v for k, v in state.items() if k.startswith("layers.")}
    last = state[f"layers.{_last_layer(layers)}.weight"]
    chain = stripped(state, "flow.")
    flow = None
    if chain:
        row = structure.get("row_couplings", 0)
        couplings = {k.split(".")[1] for k in chain}
        flow = Flow(len(chain["layers.0.order"]), len(couplings) - row, row)
    generator = Generator(
        PlaneShape(structure["frame"] // 2, structure["frames"]),
        latent=state["project.weight"].shape[1],
        width=last.shape[0],
        channels=last.shape[1],
        bounded=structure["bounded"],
        flow=flow,
        row=structure.get("row", 0),
        row_every=structure.get("row_every", 2),
    )
    generator.load_state_dict(state)
    return generator


def build_encoder(state: dict[str, Tensor], structure: Mapping[str, Any]) -> Encoder:
    """An encoder of the size its weights tell."""
    first = state["body.layers.0.weight"]
    encoder = Encoder(
        PlaneShape(structure["frame"] // 2, structure["frames"]),
        latent=state["body.score.weight"].shape[0] // 2,
        width=first.shape[0],
        channels=first.shape[1],
        row=structure.get("row", 0) > 0,
    )
    encoder.load_state_dict(state)
    return encoder
