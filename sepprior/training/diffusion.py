"""Training of the diffusion prior: denoising score matching on whitened noise.

Each step smooths a batch of windows to noise levels spread over the whole range and
regresses the network on the error of the linear denoiser (Vincent 2011; weighted as in
Karras et al. 2022, so that every level counts alike). At the end the information
matrices of the score are measured, and the solver's last level is chosen by injected
signals: at low levels the error of the score outweighs what is left to gain.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sepprior.config import DiffusionConfig
from sepprior.data import random_crops
from sepprior.diffusion import denoising_gain, flat_draws, geometric
from sepprior.inference.last_level import choose_last_level
from sepprior.nets import Denoiser
from sepprior.priors import DiffusionPrior, ScorePrior
from sepprior.priors.diffusion import FLOW_RANGE
from sepprior.priors.views import Geometry
from sepprior.training.contract import Task
from sepprior.training.parallel import current_ranks
from sepprior.training.scores import ScoreProducts, measure_scores, pair_products
from sepprior.training.steps import check_finite, follow, mixed_precision, set_rate
from sepprior.training.validate import unseen_crops
from sepprior.training.whitening import continuum_filter
from sepprior.transforms import MAX_DENSE_WINDOW, Whitener

BETAS = (0.9, 0.99)
WEIGHT_DECAY = 0.01
RISE = 100
"""Steps over which the learning rate rises."""
LEAST_RATE = 0.02
"""Share of the learning rate that is left at the end of the cosine."""
CLIP_NORM = 1.0
INFORMATION_WINDOWS = 1024
PAIR_WINDOWS = 4096
FEWEST_FOR_PAIRS = 400
"""Windows side by side from which products of pairs of samples are told from chance:
the information about a signal is then uncertain by 7 % at most."""
ENERGY_WINDOWS = 256
REPORT_LEVELS = 8
REPORT_WINDOWS = 64


class DiffusionTrainer:
    """One training run, a step at a time.

    Args:
        task: the recording made ready.
        config: the recipe.
        whitening: shape (N,), autocovariance the filter is made from.
        chosen: its name.
    """

    rate_setting = "learning_rate"

    def __init__(
        self, task: Task, config: DiffusionConfig, whitening: Tensor, chosen: str
    ) -> None:
        self.task, self.config = task, config
        self.ranks = current_ranks()
        self.ranks.share(config.batch)  # an error where it cannot be
        self.whitening = whitening.to(task.device)
        self.facts: dict[str, Any] = {"whitening": chosen}
        self.whitener = Whitener(self.whitening)
        covariance = task.gaussian.autocovariance.to(task.device)
        self.geometry = Geometry.of(self.whitener, covariance)
        self.smoothing = self.geometry.smoothing
        self.highest = FLOW_RANGE * max(1.0, self.smoothing.reach)
        self.rng = torch.Generator().manual_seed(config.seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            network = Denoiser(
                window=config.window, width=config.width, views=self.geometry.n_views
            )
        self.network = network.to(task.device)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(),
            config.learning_rate,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )
        self._objective = self.ranks.step(self.network, self._loss)
        if config.compile:
            self.network.compile()
        self.step = 0

    # -- steps -----------------------------------------------------------------------

    def _crops(self, n: int) -> Tensor:
        """Random training windows (n, N), data units without the level."""
        crops = random_crops(
            self.task.training,
            window=self.config.window,
            n=n,
            generator=self.rng,
        )
        return torch.from_numpy(crops) - self.task.gaussian.level

    def _white(self, x: Tensor) -> Tensor:
        return self.whitener.forward(x.to(self.task.device)).float()

    def _batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """This process's rows of a batch: clean, smoothed (B, N), and levels (B,).

        The levels of the joint batch are spread evenly over the logarithm of the range.
        """
        n = self.config.batch
        crops = self._crops(n)
        place = (torch.rand(n, generator=self.rng) + torch.arange(n)) / n
        noise = torch.randn((n, self.config.window), generator=self.rng)
        low, high = math.log(self.config.lowest_level), math.log(self.highest)
        clean = self._white(self.ranks.rows(crops))
        sigma = torch.exp(low + (high - low) * self.ranks.rows(place)).to(clean)
        noisy = clean + sigma.unsqueeze(-1) * self.ranks.rows(noise).to(clean)
        return clean, noisy, sigma

    def _loss(
        self, clean: Tensor, noisy: Tensor, sigma: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean-square error of the correction; 1 for a network that returns zero."""
        views = self.geometry.views(noisy, sigma)
        with mixed_precision(self.config, self.task.device):
            found = self.network(views, sigma.log())
        target = self.smoothing.target(clean, noisy, sigma)
        loss = (target - found.float()).square().mean()
        return loss, {"denoising_loss": loss.detach()}

    def advance(self) -> dict[str, float]:
        """One step; returns its loss."""
        loss, parts = self._objective(*self._batch())
        set_rate(self.optimiser, self._rate())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        self.optimiser.step()
        self.step += 1
        decay = min(self.config.ema, (1.0 + self.step) / (20.0 + self.step))
        follow(self.average, self.network, decay)
        record = {name: float(part) for name, part in parts.items()}
        check_finite(record, self.step, self.config)
        return record

    def _rate(self) -> float:
        share = self.step / self.config.steps
        cosine = 0.5 * (1.0 + math.cos(math.pi * share))
        rise = min(1.0, (self.step + 1) / RISE)
        return self.config.learning_rate * rise * (LEAST_RATE + cosine)

    # -- what a tick reports, and the end ----------------------------------------------

    def report(self, held: Tensor) -> dict[str, Any]:
        """Estimated likelihood of held-out noise, from the denoising errors."""
        windows = held[:REPORT_WINDOWS].to(self.task.device)
        w = self.whitener.forward(windows - self.task.gaussian.level).float()
        rng = torch.Generator().manual_seed(1)
        levels = geometric(self.highest, self.config.lowest_level, REPORT_LEVELS)
        draws = flat_draws(1, self.config.window, generator=rng)
        with torch.no_grad():
            gain = denoising_gain(
                self.smoothing, self._correction, w, levels, draws=draws.to(w)
            )
        nll = self.task.gaussian.heldout_nll(windows.cpu()).to(gain) - gain
        return {"heldout_nll": float(nll.mean()) / self.config.window}

    def _correction(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        return self.average(self.geometry.views(noisy, sigma), sigma.log())

    def solver_levels(self) -> Tensor:
        """Noise levels of the solver, falling by factors of two."""
        first = max(0, round(math.log2(self.smoothing.reach)))
        last = math.ceil(math.log2(self.config.lowest_level))
        powers = torch.arange(first, last - 1, -1, dtype=torch.float64)
        return 2.0**powers

    def frozen(self, metadata: Mapping[str, Any]) -> DiffusionPrior:
        """The running average as a prior, with the information of Gaussian noise."""
        levels = self.solver_levels()
        gaussian = torch.zeros(
            (len(levels), self.config.window),
            dtype=torch.float64,
            device=self.task.device,
        )
        gaussian[:, 0] = 1.0
        products = ScoreProducts(gaussian, gaussian)
        return self._prior(copy.deepcopy(self.average), levels, products, metadata)

    def _prior(
        self,
        network: Denoiser,
        levels: Tensor,
        products: ScoreProducts,
        metadata: Mapping[str, Any],
        pairs: Tensor | None = None,
    ) -> DiffusionPrior:
        return DiffusionPrior(
            network,
            whitening=self.whitening,
            autocovariance=self.task.gaussian.autocovariance.to(self.task.device),
            level=self.task.gaussian.level,
            sample_rate=self.task.training.sample_rate,
            levels=levels,
            information=products.smoothed[: len(levels)],
            scatter=products.clean[: len(levels)],
            lowest=self.config.lowest_level,
            products=pairs,
            metadata=dict(metadata),
        )

    def finished(self, metadata: Mapping[str, Any]) -> DiffusionPrior:
        """The running average with its measured information and its last level."""
        levels = self.solver_levels()
        state = self.rng.get_state()
        self.rng.manual_seed(self.config.seed + 1)
        windows = self._white(self._crops(INFORMATION_WINDOWS))
        prior = self.frozen(metadata)
        products = measure_scores(prior, windows, levels, self.rng)
        prior = self._prior(prior.network, levels, products, metadata)
        pair_windows = self._white(self._crops(PAIR_WINDOWS))
        crops = unseen_crops(
            self.task.training,
            self.task.validation,
            self.config.window,
            np.random.default_rng(self.config.seed),
        )
        keep = len(levels)
        if crops is not None:
            keep = choose_last_level(prior, crops, seed=self.config.seed)
            unseen = torch.from_numpy(crops(ENERGY_WINDOWS)) - self.task.gaussian.level
            windows = self._white(unseen)
        facts = {**metadata, "energy": usual_energy(prior, windows)}
        pairs = None
        independent = self.task.training.n_samples // self.config.window
        if self.config.window <= MAX_DENSE_WINDOW and independent >= FEWEST_FOR_PAIRS:
            level = float(levels[keep - 1])
            pairs = pair_products(prior, pair_windows, level, self.rng)
        self.rng.set_state(state)
        return self._prior(prior.network, levels[:keep], products, facts, pairs)

    def state(self) -> dict[str, Any]:
        """Network, running average, optimiser, random numbers and the filter."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rng": self.rng.get_state(),
            "step": self.step,
            "whitening": self.whitening,
            "whitening_name": self.facts["whitening"],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rng.set_state(state["rng"])
        self.step = state["step"]


def usual_energy(prior: ScorePrior, windows: Tensor) -> dict[str, float]:
    """Mean and standard deviation of ``-log p`` over whitened noise (n, N), nats.

    As the solver estimates it: without constants, by the prior's own draws.
    """
    energy = prior.gaussian_energy(windows) - prior.gain(windows)
    return {"mean": float(energy.mean()), "sd": float(energy.std())}


def build_trainer(
    task: Task, config: DiffusionConfig, *, state: dict[str, Any] | None
) -> DiffusionTrainer:
    """A training run, fresh or from a saved state."""
    if state is not None:
        trainer = DiffusionTrainer(
            task, config, state["whitening"], state["whitening_name"]
        )
        trainer.load_state(state)
        return trainer
    return DiffusionTrainer(task, config, *choose_whitening(task, config))


def choose_whitening(task: Task, config: DiffusionConfig) -> tuple[Tensor, str]:
    """The filter in front of the network, and its name.

    Added noise is white in the whitened domain. With lines whitened away it would bury
    them at every level; with the continuum alone whitened, as much noise is added at a
    line as beside it, and the phase relations of the lines survive to high levels. The
    linear part of the denoiser knows the lines either way.
    """
    if config.window <= MAX_DENSE_WINDOW:
        continuum = continuum_filter(task, config.whitening)
        if continuum is not None:
            return continuum, "continuum"
    return task.gaussian.autocovariance, "total"
