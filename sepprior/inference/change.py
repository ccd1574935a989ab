"""What has most likely happened where the noise is not that of the training.

A residual that is a power of ten times as loud at all frequencies is a measurement in
another unit. One whose excess stands next to the fitted frequency, or at its multiples,
is the rest of a signal of another form. Else the noise itself has changed, at all
frequencies or in some bands.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sepprior.inference.novelty import N_BANDS, judged_windows, scores
from sepprior.inference.record import Record
from sepprior.signals.form import Form

UNIT_SPREAD = 1.3
"""Factor by which the level may miss a power of ten."""
EVEN = 1.5
"""Ratio of the loudest to the quietest band below which the level alone has changed."""
SIGNIFICANT = 3.5
"""Normal score of a band that counts as changed, or as another than the rest."""
NEAR = 4
"""Frequencies 1 / T apart, on either side of a fitted one, that its rest lies in."""
MULTIPLES = 4
"""Multiples of a fitted frequency at which harmonics are looked for."""


@dataclass(frozen=True)
class Change:
    """Likeliest causes of B measurements.

    Attributes:
        cause: "unit", "form", "level" or "band" of each, "" where nothing was asked.
        level: amplitude of the residual over that of the training's noise, (B,).
        low: lower edge of what has changed, Hz, (B,), NaN where nothing was asked.
        high: upper edge, likewise.
        ratio: amplitude there over that of the training, likewise.
    """

    cause: list[str]
    level: Tensor
    low: Tensor
    high: Tensor
    ratio: Tensor

    def with_level(self, factor: float, nyquist: float) -> Change:
        """The same of noise whose level was followed: `factor` times the training's."""
        silent = torch.tensor([not name for name in self.cause])
        silent = silent.to(self.level.device)
        level = torch.full_like(self.level, factor)
        return Change(
            [name or "level" for name in self.cause],
            level,
            torch.where(silent, 0.0, self.low),
            torch.where(silent, nyquist, self.high),
            torch.where(silent, level, factor * self.ratio),
        )


def likeliest_change(
    white: Tensor,
    record: Record,
    form: Form,
    theta: Tensor,
    asked: Tensor,
    directions: Tensor | None,
) -> Change:
    """Likeliest causes of the changes of some measurements.

    Args:
        white: whitened residual of the fit, (B, W, N).
        record: the measurements.
        form: what was fitted.
        theta: its parameters, (B, P).
        asked: shape (B,), where the cause is looked for.
        directions: as of `false_alarm_probability`.
    """
    power, dof = _band_totals(white, record.present, directions)
    level = (power.sum(-1) / dof.sum(-1).clamp_min(1.0)).sqrt()
    low, high, ratio = (torch.full_like(level, torch.nan) for _ in range(3))
    cause = [""] * len(level)
    if not bool(asked.any()):
        return Change(cause, level, low, high, ratio)
    at_signal = _stands_at_signal(white, record, form, theta)
    width = 0.5 * record.sample_rate / N_BANDS
    for b in asked.nonzero().flatten().tolist():
        own = power[b] / dof[b].clamp_min(1e-9)
        first, last = 0, N_BANDS
        apart = scores(own / level[b].square().clamp_min(1e-300), dof[b].clamp_min(1.0))
        even = (own.amax() / own.amin().clamp_min(1e-300)).sqrt() < EVEN
        if bool(even) or float(apart.abs().max()) < SIGNIFICANT:
            decades = torch.log10(level[b])
            away = (decades - decades.round()).abs()
            is_unit = bool(decades.round().abs() >= 1 and 10**away < UNIT_SPREAD)
            cause[b] = "unit" if is_unit else "level"
        else:
            first, last = _changed_bands(scores(own, dof[b].clamp_min(1.0)))
            cause[b] = "form" if bool(at_signal[b]) else "band"
        here = slice(first, last)
        low[b], high[b] = first * width, last * width
        ratio[b] = (power[b, here].sum() / dof[b, here].sum().clamp_min(1.0)).sqrt()
    return Change(cause, level, low, high, ratio)


def _band_totals(
    white: Tensor, present: Tensor, directions: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Power over what is expected, times its degrees of freedom, and these, (B, 8)."""
    shape = (white.shape[0] * white.shape[1], N_BANDS)
    power, dof = (white.new_zeros(shape).double() for _ in range(2))
    for part in judged_windows(white, present, directions):
        group = N_BANDS // part.dof.shape[1]
        here = (part.dof / group).repeat_interleave(group, 1)
        dof[part.rows] = here
        power[part.rows] = here * part.ratio.repeat_interleave(group, 1)
    whole = (*white.shape[:2], N_BANDS)
    return power.view(whole).sum(1), dof.view(whole).sum(1)


def _changed_bands(z: Tensor) -> tuple[int, int]:
    """First band and the one after the last of those about the most changed one."""
    most = int(z.abs().argmax())
    alike = (z * z[most].sign() > max(SIGNIFICANT, 0.3 * float(z[most].abs()))).tolist()
    first = last = most
    while first > 0 and alike[first - 1]:
        first -= 1
    while last + 1 < N_BANDS and alike[last + 1]:
        last += 1
    return first, last + 1


def _stands_at_signal(
    white: Tensor, record: Record, form: Form, theta: Tensor
) -> Tensor:
    """Whether most of the excess lies at the fitted frequencies or multiples, (B,)."""
    flat = white.flatten(1)
    power = torch.fft.rfft(flat.double(), norm="ortho").abs().square()[:, 1:]
    n_frequencies = power.shape[1]
    grid = torch.arange(1, n_frequencies + 1, device=power.device).to(power)
    grid = grid * record.sample_rate / flat.shape[1]
    share = record.present.flatten(1).double().mean(-1, keepdim=True)
    reach = NEAR / record.duration
    near = torch.zeros_like(power, dtype=torch.bool)
    for kind, frequency in form.frequencies(theta).values():
        if kind == "bias":
            continue
        for multiple in range(1, MULTIPLES + 1):
            near |= (grid - multiple * frequency[:, None]).abs() <= reach
    excess = power - share
    local = (excess * near).sum(-1)
    # Where they cover most of the band, nothing stands out.
    few = near.double().mean(-1) < 0.5
    return few & (local > 0.6 * excess.clamp_min(0.0).sum(-1))
