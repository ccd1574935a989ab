"""`sepprior inspect` and `sepprior sample`: what is in a prior."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sepprior.cli.options import (
    READING,
    Command,
    device_option,
    folder_option,
    label_option,
    path_type,
    reading_options,
    seed_option,
)
from sepprior.errors import SeppriorError
from sepprior.rates import check_sample_rate

if TYPE_CHECKING:
    from sepprior.priors.base import Prior

INSPECTED_WINDOWS = 2000
"""Most noise windows that `inspect` compares the prior with."""
SPECTROGRAMS_AT_ONCE = 64
"""Spectrograms generated at a time."""


@click.command(
    "inspect",
    cls=Command,
    groups={"Reading": READING, "Output": ("output",)},
    example="""
        sepprior inspect prior.safetensors
        sepprior inspect prior.safetensors noise.csv
    """,
)
@click.argument("prior_path", metavar="PRIOR", type=path_type)
@click.argument("noise", nargs=-1, type=path_type)
@reading_options
@label_option
@device_option
@seed_option
@folder_option
def inspect_command(
    prior_path: Path,
    noise: tuple[Path, ...],
    reading: dict[str, Any],
    label: str | None,
    device: str,
    seed: int,
    output: Path | None,
) -> None:
    """Show what a prior learned, and how well it fits NOISE.

    With NOISE, generated and recorded noise are compared, beside recorded noise with
    itself, and PRIOR.inspect.json and PRIOR.inspect.png are written. Of the recording
    that the prior was trained on, the part held out is used where it is long enough.
    With --label the prior draws that kind of noise, and of recordings with labels those
    parts are taken that have it.
    """
    from sepprior.outputs import (
        check_distinct,
        check_output_folder,
        to_json,
        whole_files,
    )

    folder = prior_path.parent if output is None else output
    stem = prior_path.stem
    files = (folder / f"{stem}.inspect.json", folder / f"{stem}.inspect.png")
    if noise:
        check_distinct(files, [prior_path, *noise])
        check_output_folder(folder)

    from sepprior.checkpoint import holds_spectrogram_gan, load_prior

    if not (noise or label) and holds_spectrogram_gan(prior_path):
        click.echo(_spectrogram_card(prior_path, device))
        return
    prior = _labelled(load_prior(prior_path, device=device), label)
    click.echo(_card(prior_path, prior))
    if not noise:
        return

    from sepprior.data import read_recordings
    from sepprior.fidelity import inspect_prior
    from sepprior.real_noise import judging_windows

    recording = read_recordings(noise, **reading)
    check_sample_rate(recording.sample_rate, prior.sample_rate, subject="the noise")
    windows, origin = judging_windows(
        prior, recording, label=label, limit=INSPECTED_WINDOWS
    )
    fidelity = inspect_prior(prior, windows, origin=origin, seed=seed)
    click.echo(f"\n{fidelity.report()}")
    with whole_files(*files) as (table, picture):
        text = to_json(fidelity.to_dict(), indent=2)
        table.write_text(text + "\n", encoding="utf-8")
        fidelity.plot(picture)
    click.echo(f"\nwritten: {', '.join(map(str, files))}")


def _labelled(prior: Prior, label: str | None) -> Prior:
    """The prior with its label fixed, where one is given."""
    from sepprior.priors import with_label

    return prior if label is None else with_label(prior, label)


def _card(path: Path, prior: Prior) -> str:
    """What a prior is and where it comes from, as a two-column table."""
    seconds = prior.window / prior.sample_rate
    spread = float(prior.autocovariance[0]) ** 0.5
    facts: dict[str, object] = {
        "prior": path,
        "model": prior.name,
        "window": f"{prior.window} samples = {seconds:.6g} s",
        "sample rate": f"{prior.sample_rate:.6g} Hz",
        "latents": prior.n_latent,
        "noise": f"mean {prior.level:.4g}, standard deviation {spread:.4g}",
    }
    return _table(facts, prior.metadata)


def _spectrogram_card(path: Path, device: str) -> str:
    """The same of a generator of spectrograms."""
    from sepprior.checkpoint import load_spectrogram_gan

    model = load_spectrogram_gan(path, device=device)
    facts: dict[str, object] = {
        "prior": f"{path}: none, since it generates spectrograms",
        "model": model.name,
        "size": f"{len(model.log_mean)} frequencies, {len(model.log_mean)} frames",
        "latents": model.space.size,
    }
    return _table(facts, model.metadata)


def _table(facts: dict[str, object], metadata: Mapping[str, object]) -> str:
    from sepprior.formatting import format_table

    for name, value in metadata.items():
        worded = _WORDED.get(name, _in_short)
        facts[name.replace("_", " ")] = worded(value)
    return format_table([[name, str(value)] for name, value in facts.items()])


def _calibration_in_words(table: Any) -> str:
    """By how much the error bars are widened, each method's over its raw ones."""
    words = {"gls": "least squares", "robust": "robust fit", "joint": "this prior"}
    parts = []
    for method, name in words.items():
        factors = [
            factor
            for parameter in ("amplitude", "frequency", "phase", "bias")
            for factor in table.get(method, {}).get(parameter, {}).get("q68", [])
        ]
        if factors:
            parts.append(f"{name} {min(factors):.2f} to {max(factors):.2f}")
    bands = len(table.get("cycles", []))
    return f"error bars times {', '.join(parts)} (measured in {bands} bands)"


def _heldout_in_words(held: Any) -> str:
    """What held-out noise says."""
    if not {"gain", "gain_stderr"} <= held.keys():
        return _in_short(held)
    gain = f"{held['gain']:.3g} +/- {held['gain_stderr']:.1g}"
    return f"{gain} nats per sample likelier than by the spectrum alone"


def _change_in_words(table: Any) -> str:
    """What a measurement's noise is compared with."""
    bands, count = len(table.get("mean", [])), table.get("windows", 0)
    return f"told by the power in {bands} bands, as in {count} recorded windows"


def _gains_in_words(table: Any) -> str:
    """What false alarms are judged by."""
    bands = len(table.get("cycles", []))
    return f"gains of sinusoids in recorded noise, in {bands} bands"


_WORDED: dict[str, Callable[[Any], str]] = {
    "calibration": _calibration_in_words,
    "heldout": _heldout_in_words,
    "novelty": _change_in_words,
    "gains": _gains_in_words,
}


def _in_short(value: object) -> str:
    """A fact of the metadata on one line."""
    if isinstance(value, dict):
        inner = (f"{name} {_in_short(item)}" for name, item in value.items())
        return ", ".join(inner) or "none"
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} values"
    if isinstance(value, list):
        return " ".join(map(_in_short, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@click.command(
    "sample",
    cls=Command,
    groups={"Output": ("number", "output")},
    example="sepprior sample prior.safetensors -n 100 -o drawn.csv",
)
@click.argument("prior_path", metavar="PRIOR", type=path_type)
@click.option(
    "-n",
    "--number",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of windows.",
)
@label_option
@device_option
@seed_option
@click.option(
    "-o",
    "--output",
    type=path_type,
    metavar="FILE",
    help="CSV (time, sample_0, ...) or NPY (N, window).  [default: CSV to stdout]; of "
    "spectrograms a folder, for a CSV each.",
)
def sample_command(
    prior_path: Path,
    number: int,
    label: str | None,
    device: str,
    seed: int,
    output: Path | None,
) -> None:
    """Draw noise from a prior.

    From what was trained on spectrograms it draws such.
    """
    from sepprior.checkpoint import holds_spectrogram_gan
    from sepprior.outputs import (
        check_distinct,
        check_output_file,
        whole_files,
        write_csv,
    )

    if holds_spectrogram_gan(prior_path):
        if label is not None:
            raise SeppriorError(
                f"label {label!r} is unknown: spectrograms have no labels; leave the "
                "label out"
            )
        _sample_spectrograms(prior_path, number, device, seed, output)
        return
    if output is not None:
        check_output_file(output, suffixes=[".csv", ".npy"])
        check_distinct([output], [prior_path])

    import numpy as np
    import torch

    from sepprior.checkpoint import load_prior

    prior = _labelled(load_prior(prior_path, device=device), label)
    generator = torch.Generator().manual_seed(seed)
    samples = prior.sample(number, generator=generator).cpu().numpy()
    columns = {"time": np.arange(prior.window) / prior.sample_rate}
    columns |= {f"sample_{index}": window for index, window in enumerate(samples)}
    if output is None:
        write_csv(sys.stdout, columns)
        return
    with whole_files(output) as (path,):
        if output.suffix.lower() == ".npy":
            np.save(path, samples)
        else:
            with path.open("w", newline="", encoding="utf-8") as file:
                write_csv(file, columns)
    click.echo(f"written: {output}")


def _sample_spectrograms(
    path: Path, number: int, device: str, seed: int, folder: Path | None
) -> None:
    """Write generated spectrograms as CSV files, as those that were trained on."""
    import torch

    from sepprior.checkpoint import load_spectrogram_gan
    from sepprior.data.spectrograms import write_spectrogram
    from sepprior.outputs import check_output_folder, whole_files

    if folder is None or folder.suffix:
        raise SeppriorError(
            f"'{path}' generates spectrograms: name the folder for their CSV files "
            "with -o FOLDER"
        )
    check_output_folder(folder)
    model = load_spectrogram_gan(path, device=device)
    rng = torch.Generator().manual_seed(seed)
    for first in range(0, number, SPECTROGRAMS_AT_ONCE):
        count = min(SPECTROGRAMS_AT_ONCE, number - first)
        for place, values in enumerate(model.sample(count, generator=rng), first):
            with whole_files(folder / f"spectrogram_{place:05d}.csv") as (name,):
                write_spectrogram(name, values.cpu().numpy())
    click.echo(f"written: {number} spectrograms to {folder}")
