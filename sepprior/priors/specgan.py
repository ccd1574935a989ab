"""Noise decoded on the time-frequency plane by a SpecGAN generator."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sepprior.nets import Encoder, Generator
from sepprior.priors.base import (
    HALF_LOG_2PI,
    Decoded,
    conditional_energy,
    sample_count,
    unit_curvature,
    unit_scale,
)
from sepprior.priors.latent import LatentSpace
from sepprior.priors.marginal import laplace_nll
from sepprior.priors.planes import PlaneStatistics, crop_plane, plane_channels
from sepprior.torch_state import usual_torch
from sepprior.transforms import TightSTFT, Whitener

LOG_SCALE_LIMIT = 8.0
"""Largest |log variance| of a bin relative to stationary noise, nats."""

SAMPLES_PER_BOUND = 16


class SpecGANPrior:
    """A generator's planes read as a conditional Gaussian of one noise window.

    Mode ``complex`` (default). The window is whitened by a stationary filter W and
    analysed by a tight STFT. The generator gives, per bin, a complex mean M and a log
    variance ``log D``; the noise is ``W^-1 (S M + e)`` with S the synthesis and e
    independent over bins with variances D. With ``M = 0, D = 1`` this is the
    stationary Gaussian model. D is the harmonic sum of what the generator paints and of
    the largest value that any bin of the recording asks for: likelihood alone leaves
    open how loud latents become that no recorded window is encoded to, and in bursts a
    few such draws had most of the power. The energy of a residual with coefficients R
    is

        1/2 sum k_f |R_ft|^2 / D_ft + 1/4 sum k_f e_t log D_ft,

    where 1/4 = 1/2 x the one degree of freedom per two coefficients of the half
    overlap. The quadratic form is that of the precision matrix ``S D^-1 S^T``, exactly;
    the second sum is an upper bound of ``log det Sigma / 2``, exact for constant D
    (``log det S D^-1 S^T >= tr S log D^-1 S^T``, the operator concavity of the
    logarithm), so that ``exp(-energy)`` never integrates to more than one.

    Mode ``magnitude``. One plane: the log-magnitude normalised per frequency, divided
    by 3 and clipped to [-1, 1]. There is no mean; the variance of a bin is the
    generated power, its phase integrated out.

    Args:
        generator: the trained generator.
        encoder: amortised proposals for z, or None.
        statistics: normalisation moments.
        whitening: autocovariance (N,) the filter W is made from; a single positive
            number times a unit impulse in magnitude mode.
        autocovariance: shape (N,), of the training noise, squared data units.
        level: mean of the training noise, data units.
        sample_rate: Hz.
        space: the latent variable; normal latents without labels by default.
        metadata: JSON-able facts.
    """

    name = "specgan"
    learned = True
    dtype = torch.float32

    def __init__(
        self,
        generator: Generator,
        encoder: Encoder | None,
        *,
        statistics: PlaneStatistics,
        whitening: Tensor,
        autocovariance: Tensor,
        level: float,
        sample_rate: float,
        frame: int,
        space: LatentSpace | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.generator = generator.eval().requires_grad_(False)
        self.encoder = encoder
        if encoder is not None:
            encoder.eval().requires_grad_(False)
        self.statistics = statistics
        self.whitening = whitening.double()
        self.autocovariance = autocovariance.double()
        self.level, self.sample_rate = float(level), float(sample_rate)
        self.space = space or LatentSpace(generator.project.in_features)
        self.flow = generator.flow
        self.metadata = dict(metadata or {})
        self.window = int(autocovariance.shape[0])
        self.n_latent = self.space.n_latent
        self.device = autocovariance.device
        self.stft = TightSTFT(self.window, frame)
        self.hop = self.stft.hop
        self.whitener = Whitener(self.whitening)
        like = torch.zeros(1, dtype=self.dtype, device=self.device)
        self._multiplicity = self.stft.multiplicity(like)
        self._share = self.stft.frame_share(like)

    @property
    def n_candidates(self) -> int:
        """Proposals for z worth comparing: few from an encoder, many at random."""
        return 64 if self.encoder is None else 4 * max(1, len(self.space.labels))

    @property
    def complex_mode(self) -> bool:
        """Whether the generator gives a mean and a scale (else magnitudes)."""
        return not self.generator.bounded

    # -- the time-frequency plane ----------------------------------------------------

    def white(self, x: Tensor) -> Tensor:
        """Whitened samples (..., N) of level-free noise."""
        return self.whitener.forward(x).to(self.dtype)

    def flatten(self, coefficients: Tensor) -> Tensor:
        """Complex (..., F, T) to real features (..., C) with unit-frame scaling."""
        scaled = coefficients * self._multiplicity.sqrt()
        return torch.view_as_real(scaled).flatten(-3)

    def planes(self, white: Tensor) -> Tensor:
        """Channels seen by critic and encoder, (B, N) to (B, C, F, T)."""
        coefficients = crop_plane(
            self.stft.analyse(white), complex_mode=self.complex_mode
        )
        return plane_channels(
            coefficients, self.statistics, complex_mode=self.complex_mode
        )

    def plane_parts(self, z: Tensor) -> tuple[Tensor | None, Tensor]:
        """Complex mean (B, F, T), or None, and log variance (B, F, T), with Nyquist."""
        return self.parts_of(self.space.code(z))

    def parts_of(self, code: Tensor) -> tuple[Tensor | None, Tensor]:
        """The same for an input of the generator (B, K + L)."""
        return self._parts(self.generator(code))

    def _parts(self, planes: Tensor) -> tuple[Tensor | None, Tensor]:
        out, stats = planes.to(self.dtype), self.statistics
        if self.complex_mode:
            mean = torch.complex(out[:, 0], out[:, 1]) * stats.rms
            mean = torch.cat([mean, torch.zeros_like(mean[:, :1])], 1)
            log_d = LOG_SCALE_LIMIT * torch.tanh(out[:, 2] / LOG_SCALE_LIMIT)
            if stats.loudest < math.inf:
                log_d = -torch.logaddexp(-log_d, log_d.new_tensor(-stats.loudest))
        else:
            mean = None
            log_magnitude = 3.0 * out[:, 0] * stats.log_sd + stats.log_mean
            # A frame spans twice its share of the samples: half its power is noise
            # variance per coefficient of the tight frame.
            log_d = 2.0 * log_magnitude + math.log(2.0)
            log_d = torch.cat([log_d[..., :1], log_d], -1)
        log_d = torch.cat([log_d, log_d[:, -1:]], 1)
        return mean, log_d

    def loudness(self, code: Tensor) -> Tensor:
        """Log of the mean square of whitened noise drawn there, (B, K + L) to (B,).

        Nats; of independent bins, as if the frame were orthonormal.
        """
        mean, log_d = self.parts_of(code)
        share = self._multiplicity * self._share
        power = 0.5 * (share * log_d.exp()).sum((-1, -2))
        if mean is not None:
            power = power + self.stft.synthesise(mean).square().sum(-1)
        return torch.log(power / self.window)

    # -- the prior contract ----------------------------------------------------------

    def features(self, x: Tensor) -> Tensor:
        """Time-frequency coefficients of whitened noise, real, shape (..., C)."""
        return self.flatten(self.stft.analyse(self.white(x)))

    def decode(self, z: Tensor) -> Decoded:
        """Conditional Gaussian of latents (..., K)."""
        return self.decode_code(self.space.code(z))

    def decode_code(self, code: Tensor) -> Decoded:
        """Conditional Gaussian of inputs of the generator (..., K + L)."""
        mean, log_d = self.parts_of(code.reshape(-1, code.shape[-1]))
        share = self._multiplicity * self._share
        half = 0.25 * (share * log_d).sum((-1, -2)) + self.whitener.half_log_det
        features, log_c = self._features(mean, log_d)
        lead = code.shape[:-1]
        return Decoded(
            features.reshape(*lead, -1),
            torch.exp(-log_c).reshape(*lead, -1),
            half.reshape(lead),
        )

    def _features(self, mean: Tensor | None, log_d: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the features (B, C), of those of the plane."""
        log_c = torch.stack([log_d, log_d], -1).flatten(1)
        if mean is None:
            return torch.zeros_like(log_c), log_c
        return self.flatten(self.stft.analyse(self.stft.synthesise(mean))), log_c

    @property
    def tangential(self) -> bool:
        """Whether latents are painted in a row, each in a few frames."""
        return self.generator.row is not None

    def tangents(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives of what latents (B, K) in a row decode to, (K, B, C) each.

        Of the mean and of the log precision; three times as fast as one latent after
        the other.
        """
        row = self.generator.row
        assert row is not None

        def everywhere(direction: Tensor) -> Tensor:
            return torch.func.jvp(
                lambda v: self.generator.everywhere(self.space.code(v)),
                (z,),
                (direction.expand_as(z),),
            )[1]

        planes = self.generator(self.space.code(z))

        def pushed(moved: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.jvp(
                lambda v: self._features(*self._parts(v)), (planes,), (moved,)
            )[1]

        eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        moved = torch.func.vmap(everywhere)(eye)
        # Element by element: one direction has the slopes of all.
        slopes = torch.func.jvp(self.space.code, (z,), (torch.ones_like(z),))[1]
        local = row.derivatives(self.space.code(z)[:, : row.latent])
        local = local * slopes[:, : row.latent].mT[..., None, None, None]
        moved = torch.cat([moved[: row.latent] + local, moved[row.latent :]])
        d_mean, d_log = torch.func.vmap(pushed)(moved)
        return d_mean, -d_log

    def coherent(self, z: Tensor) -> Tensor:
        """Waveform of the decoded mean in data units, (..., K) to (..., N)."""
        flat = z.reshape(-1, z.shape[-1])
        mean, _ = self.plane_parts(flat)
        if mean is None:
            zero = torch.zeros((len(flat), self.window), dtype=torch.float64)
            return zero.to(self.device).reshape(*z.shape[:-1], -1)
        waveform = self.whitener.inverse(self.stft.synthesise(mean))
        return waveform.reshape(*z.shape[:-1], -1)

    def precision_matrix(self, z: Tensor) -> Tensor:
        """Exact precision ``W^T S D^-1 S^T W`` of one latent (K,), (N, N), float64.

        The dense reference for the fast likelihood; for windows of moderate length.
        """
        decoded = self.decode(z[None])
        eye = torch.eye(self.window, dtype=torch.float64, device=self.device)
        columns = self.features(eye).double()
        return (columns * decoded.precision[0].double()) @ columns.mT

    def latent_energy(self, z: Tensor) -> Tensor:
        """``-log p(z)`` up to a constant, shape (...)."""
        if self.flow is None:
            return self.space.energy(z)
        size = self.space.size
        normal, volume = self.flow.inverse(z[..., :size])
        return self.space.energy(torch.cat([normal, z[..., size:]], -1)) - volume

    def latent_curvature(self, z: Tensor) -> Tensor:
        """Expected Hessian of `latent_energy`, (B, K) to (B, K, K).

        With a flow f from z to a normal latent, ``J_f^T J_f``.
        """
        curvature = unit_curvature(z)
        if self.flow is None:
            return curvature
        size = self.space.size
        slopes = self.flow.slopes(z[:, :size].detach())
        curvature = curvature.clone()
        curvature[:, :size, :size] = slopes.mT @ slopes
        return curvature

    def from_normal(self, draws: Tensor) -> Tensor:
        """Latents (..., n_latent) that are distributed as z, from normal draws."""
        size = self.space.size
        bent = self.generator.bend(draws[..., :size])
        return torch.cat([bent, draws[..., size:]], -1)

    def propose(self, features: Tensor, *, draws: Tensor) -> Tensor:
        """Candidate latents (n, ..., K): the encoder's draws, or the prior's.

        The first is the centre: the encoder's mean, or zero.
        """
        if self.encoder is None:
            return self.from_normal(self.space.centred(draws))
        latent = draws[..., : self.space.size]
        latent = torch.cat([torch.zeros_like(latent[:1]), latent[1:]])
        mean, log_sd = self.posterior(features.reshape(-1, features.shape[-1]))
        lead = features.shape[:-1]
        mean, sd = mean.reshape(*lead, -1), log_sd.exp().reshape(*lead, -1)
        return self.space.with_labels_by_turns(mean + sd * latent)

    def standardise(self, features: Tensor, decoded: Decoded) -> Tensor:
        """Residual over its decoded scale, resynthesised, shape (..., N)."""
        scaled = (features - decoded.mean) * decoded.precision.sqrt()
        return self.stft.synthesise(self.unflatten(scaled))

    def unflatten(self, features: Tensor) -> Tensor:
        """Inverse of `flatten`: (..., C) to complex (..., F, T)."""
        paired = features.unflatten(-1, (self.stft.n_bins, self.stft.n_frames, 2))
        coefficients = torch.view_as_complex(paired.contiguous())
        return coefficients / self._multiplicity.sqrt()

    def latent_scale(self, features: Tensor) -> Tensor:
        """The encoder's standard deviation of z, or ones, (..., K)."""
        if self.encoder is None:
            return unit_scale(features, self.n_latent)
        _, log_sd = self.posterior(features.reshape(-1, features.shape[-1]))
        scale = unit_scale(features, self.n_latent)
        scale[..., : self.space.size] = log_sd.exp().reshape(*features.shape[:-1], -1)
        return scale

    def posterior(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder's mean and log standard deviation of z for features (B, C)."""
        if self.encoder is None:
            raise TypeError("this prior has no encoder")
        coefficients = crop_plane(self.unflatten(features), complex_mode=True)
        return self.encoder(plane_channels(coefficients, self.statistics))

    @usual_torch()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """`n` windows of noise in data units, level included, (n, N), float64."""
        n = sample_count(n, self.window)
        z = torch.randn((n, self.n_latent), generator=generator, dtype=self.dtype)
        with torch.no_grad():
            z = self.from_normal(z.to(self.device))
            white = self.sample_white(z, generator=generator)
        return self.whitener.inverse(white) + self.level

    def sample_white(
        self, z: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Whitened noise (B, N) drawn from the conditional Gaussians of z (B, K)."""
        mean, log_d = self.plane_parts(z)
        shape = (*log_d.shape, 2)
        normal = torch.randn(shape, generator=generator, dtype=self.dtype)
        return self.draw(mean, log_d, normal.to(self.device))

    def draw(self, mean: Tensor | None, log_d: Tensor, normal: Tensor) -> Tensor:
        """Whitened noise (B, N): the mean plus white noise shaped by the scale.

        Draws are independent per bin; synthesis by a tight frame keeps their variance,
        so that D = 1 gives white noise of unit variance exactly.

        Args:
            mean: complex (B, F, T), or None.
            log_d: log variances (B, F, T).
            normal: standard normal (B, F, T, 2).
        """
        draws = torch.view_as_complex(normal)
        draws = draws / self._multiplicity.sqrt()
        shaped = draws * torch.exp(0.5 * log_d)
        if mean is not None:
            shaped = shaped + mean
        return self.stft.synthesise(shaped)

    def heldout_nll(self, windows: Tensor, *, draws: int = SAMPLES_PER_BOUND) -> Tensor:
        """Upper bound on ``-log p`` of windows (n, N) in data units, nats, (n,).

        With an encoder, the importance-weighted bound over `draws` draws (Burda et
        al. 2016, equation 8); without one, Laplace's method over z.
        """
        windows = torch.as_tensor(windows, dtype=torch.float64).to(self.device)
        constant = self.window * HALF_LOG_2PI
        if self.encoder is None:
            return laplace_nll(self, windows) + constant
        with torch.no_grad():
            features = self.features(windows - self.level)
            mean, log_sd = self.posterior(features)
            shape = (draws, *mean.shape)
            rng = torch.Generator().manual_seed(0)
            noise = torch.randn(shape, generator=rng, dtype=self.dtype).to(self.device)
            scores = []
            for draw in noise:
                latent = mean + log_sd.exp() * draw
                # -log q(z), without the constant that cancels against p(z)'s.
                cost = 0.5 * draw.square().sum(-1) + log_sd.sum(-1)
                for z in self.space.under_each_label(latent):
                    energy = conditional_energy(features, self.decode(z))
                    scores.append(cost - energy - self.latent_energy(z))
            bound = torch.logsumexp(torch.stack(scores), 0) - math.log(len(noise))
        return constant - bound.double()

    def with_label(self, label: str | None) -> SpecGANPrior:
        """The same prior with its label fixed, or inferred (None)."""
        return self._copy(self.device, self.space.fixed(label))

    def scaled(self, factor: float) -> SpecGANPrior:
        """Noise so many times as loud; the networks are shared."""
        louder = copy.copy(self)
        louder.whitening = self.whitening * factor**2
        louder.autocovariance = self.autocovariance * factor**2
        louder.whitener = Whitener(louder.whitening)
        return louder

    @usual_torch()
    def to(self, device: torch.device | str) -> SpecGANPrior:
        """The same prior on another device; itself where it is there already."""
        if torch.device(device) == self.device:
            return self
        return self._copy(device, self.space)

    def _copy(self, device: torch.device | str, space: LatentSpace) -> SpecGANPrior:
        stats = self.statistics
        moved = replace(
            stats,
            rms=stats.rms.to(device),
            log_mean=stats.log_mean.to(device),
            log_sd=stats.log_sd.to(device),
        )
        return SpecGANPrior(
            copy.deepcopy(self.generator).to(device),
            copy.deepcopy(self.encoder).to(device) if self.encoder else None,
            statistics=moved,
            whitening=self.whitening.to(device),
            autocovariance=self.autocovariance.to(device),
            level=self.level,
            sample_rate=self.sample_rate,
            frame=self.stft.length,
            space=space,
            metadata=self.metadata,
        )
