"""`sepprior train-noise`: recordings in, a frozen prior out."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sepprior.cli.options import (
    DEFAULT_PRIOR,
    READING,
    Command,
    device_option,
    path_type,
    reading_options,
)
from sepprior.config import (
    CONFIGS,
    DEFAULT_MODEL,
    NoiseConfig,
    SpecGANConfig,
    config_from_dict,
    load_config,
    override,
)
from sepprior.errors import MOST_SEED, SeppriorError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sepprior.data import Recording
    from sepprior.outputs import StepLog
    from sepprior.training.contract import Work


SPECTROGRAMS = "spectrograms"
WATCHED_SECONDS, UNWATCHED_SECONDS = 0.2, 60.0
"""Between two lines on how far a training is."""
DRAWN_WINDOWS = 100
"""Windows of recorded noise that the picture compares with generated ones."""


@click.command(
    "train-noise",
    cls=Command,
    groups={
        "Model": ("model", "config_file", "window", "steps", "seed"),
        "Reading": READING,
        "Output": ("output", "no_plot", "resume"),
    },
    example="""
        sepprior train-noise noise.csv
        sepprior train-noise night.csv day.csv --model gaussian -o lab.safetensors
    """,
)
@click.argument("noise", nargs=-1, required=True, type=path_type)
@click.option(
    "--model",
    type=click.Choice(list(CONFIGS)),
    help=f"Kind of prior.  [default: {DEFAULT_MODEL}]",
)
@click.option("--config", "config_file", type=path_type, help="Recipe in TOML.")
@reading_options
@click.option("--window", type=int, metavar="N", help="Samples of a noise window.")
@click.option("--steps", type=int, metavar="N", help="Training steps.")
@device_option
@click.option(
    "--seed",
    type=click.IntRange(0, MOST_SEED),
    metavar="N",
    help="Seed of the training.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted training.")
@click.option("--no-plot", is_flag=True, help="Write no picture.")
@click.option(
    "-o",
    "--output",
    type=path_type,
    default=DEFAULT_PRIOR,
    show_default=True,
    metavar="FILE",
    help="The prior to write.",
)
@click.pass_context
def train_noise_command(
    ctx: click.Context,
    noise: tuple[Path, ...],
    model: str | None,
    config_file: Path | None,
    reading: dict[str, Any],
    window: int | None,
    steps: int | None,
    device: str,
    seed: int | None,
    resume: bool,
    no_plot: bool,
    output: Path,
) -> None:
    """Train a noise prior on noise-only recordings.

    NOISE are files or folders: CSV, TXT, NPY, NPZ, WAV, HDF5 or Parquet. Beside the
    prior stand a log of the training (.jsonl) and a picture of recorded and generated
    noise (.png). Ctrl-C leaves a usable prior.

    --config takes a recipe: sizes, losses and their weights, step sizes, all settings
    by name. configs/ in the sources has them in TOML with comments, of each model a
    small and a full one, to be copied and changed. A column named label makes the GANs
    conditional on it.

    With a recipe of channels = "magnitude", NOISE may be spectrograms: CSV files of
    magnitudes without header, a line per frequency, a column per frame, all of one
    size such as 128 x 128. What is learned then generates spectrograms (sepprior
    sample) and cannot separate.
    """
    from sepprior.outputs import StepLog, check_distinct, check_output_file

    check_output_file(output, suffixes=[".safetensors"])
    log_path, picture = output.with_suffix(".jsonl"), output.with_suffix(".png")
    check_distinct([output, log_path, *([] if no_plot else [picture])], noise)
    recipe = _recipe(config_file, model, resumed=output if resume else None)
    recipe = override(recipe, {"window": window, "steps": steps, "seed": seed})

    # Of several processes started by torchrun the first one reports.
    reports = int(os.environ.get("RANK", "0")) == 0
    before = _modified(output)
    progress = Progress()
    records, what, recording = _training(
        noise,
        recipe,
        reading=reading,
        device=device,
        output=output,
        resume=resume,
        watch=progress.watch,
    )
    if reports:
        click.echo(f"training a {recipe.model} {what}", err=True)
        click.echo(
            f"log: {log_path}; Ctrl-C leaves the prior as it is then in {output}, and "
            "--resume goes on",
            err=True,
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    if not reports:
        for _ in records:
            pass
        return
    try:
        with StepLog(log_path, resume=resume) as log:
            progress.follow(records, log)
    except KeyboardInterrupt:
        records.close()  # where the trainer itself was not interrupted, it saves now
        click.echo("Interrupted.", err=True)
        if _modified(output) != before:
            again = ["sepprior", "train-noise", *map(str, noise), "--resume"]
            again += ["-o", str(output)]
            for name, value in reading.items():
                again += [f"--{name.replace('_', '-')}", str(value)] if value else []
            click.echo(
                f"The prior as trained so far is {output}. To go on: "
                f"{shlex.join(again)}",
                err=True,
            )
        ctx.exit(130)
    named = shlex.quote(str(output))
    if recording is None:
        click.echo(f"prior: {output}\nlog: {log_path}")
        click.echo(f"next: sepprior sample {named} -n N -o FOLDER")
        return
    drawn = None if no_plot else _draw(output, recording, picture)
    click.echo(_card(output, log_path, drawn, progress.seconds))
    click.echo(_gained(output), nl=False)
    option = "" if output == DEFAULT_PRIOR else f" --prior {named}"
    click.echo(f"next: sepprior separate MEASUREMENT{option}")


def _gained(output: Path) -> str:
    """Lines on what the prior knows of held-out noise, where it was scored."""
    from sepprior.checkpoint import load_tensors
    from sepprior.priors import beats_gaussian

    header = load_tensors(output)[1]
    facts = header.get("metadata", {})
    if facts.get("config", {}).get("model") == "gaussian":
        return (
            "the noise is taken to be Gaussian and known by its spectrum: structure "
            "was not looked for (--model specgan does)\n"
        )
    scores = {"held-out noise": facts.get("heldout", {})}
    for label, of_label in facts.get("range_error", {}).get("labels", {}).items():
        scores[f"held-out noise labelled {label!r}"] = of_label["heldout"]
    lines = []
    for noise, held in scores.items():
        if not {"gain", "gain_stderr"} <= held.keys():
            continue
        if beats_gaussian(held):
            amount = f"{held['gain']:.2g} +/- {held['gain_stderr']:.1g} nats per sample"
            told = f"is likelier than by its spectrum alone, by {amount}"
        else:
            told = (
                "is no likelier than by its spectrum alone: expect the results of "
                "least squares"
            )
        lines.append(f"{noise} {told}\n")
    return "".join(lines)


def _training(
    noise: tuple[Path, ...],
    recipe: NoiseConfig,
    *,
    reading: dict[str, Any],
    device: str,
    output: Path,
    resume: bool,
    watch: Callable[[Work], object],
) -> tuple[Generator[dict[str, Any], None, object], str, Recording | None]:
    """The records of a training, on what it is, and a recording if it is on one."""
    from sepprior.data.spectrograms import are_spectrograms, read_spectrograms

    if (
        isinstance(recipe, SpecGANConfig)
        and recipe.channels == "magnitude"
        and reading["column"] is None
        and are_spectrograms(noise)
    ):
        from sepprior.training import train_spectrograms

        data = read_spectrograms(noise)
        records = train_spectrograms(
            data, recipe, device=device, output=output, resume=resume
        )
        size = f"{data.size} x {data.size}"
        return records, f"generator on {len(data)} {size} {SPECTROGRAMS}", None

    from sepprior.data import read_recordings
    from sepprior.training import train

    recording = read_recordings(noise, **reading)
    records = train(
        recording,
        recipe,
        device=device,
        output=output,
        resume=resume,
        watch=watch,
    )
    what = (
        f"prior on {recording.n_samples} samples at {recording.sample_rate:.6g} Hz, "
        f"windows of {recipe.window} samples"
    )
    return records, what, recording


def _recipe(
    config_file: Path | None, model: str | None, *, resumed: Path | None
) -> NoiseConfig:
    """Recipe of a file, else of the training that is resumed, else the defaults."""
    if resumed is not None:
        unfinished = resumed.with_suffix(".resume.safetensors")
        if not (resumed.exists() and unfinished.exists()):
            raise SeppriorError(
                f"nothing to resume: '{resumed}' and '{unfinished}' must both exist; "
                "name the prior of the interrupted training with -o"
            )
    if config_file is not None:
        return load_config(config_file, model=model)
    if resumed is not None:
        from sepprior.checkpoint import load_tensors

        stored = load_tensors(resumed)[1].get("metadata", {}).get("config")
        if stored is None:
            raise SeppriorError(
                f"'{resumed}' does not hold the recipe it was trained with: name the "
                "recipe with --config"
            )
        return config_from_dict(stored, model=model)
    return config_from_dict({}, model=model)


class Progress:
    """What a training is doing, how long it still takes, and what it has found.

    One line that is written anew where somebody watches; else a line for each stage,
    and one a minute.
    """

    def __init__(self) -> None:
        self._watched = sys.stderr.isatty()
        self._began = time.monotonic()
        self._written = -math.inf
        self._stage, self._told, self._statistics = "", 0, ""

    @property
    def seconds(self) -> float:
        """Since the training was asked for."""
        return time.monotonic() - self._began

    def watch(self, work: Work) -> None:
        """Show how far a training is."""
        for sentence in work.found[self._told :]:
            self._write(f"  found: {sentence}", lasts=True)
        self._told = len(work.found)
        entered = work.stage != self._stage
        pause = WATCHED_SECONDS if self._watched else UNWATCHED_SECONDS
        if not entered and self.seconds - self._written < pause:
            return
        self._stage, self._written = work.stage, self.seconds
        left = time_left(self.seconds, work.done, work.left)
        share = work.done / max(work.done + work.left, 1e-9)
        text = f"{work.stage}: {100 * share:.0f} % of all, {left}"
        if self._statistics and work.stage == "training":
            text += f" ({self._statistics})"
        self._write(text)

    def follow(
        self, records: Generator[dict[str, Any], None, object], log: StepLog
    ) -> None:
        """Run a training to its end and write its log."""
        for record in records:
            log.write(record)
            self._statistics = _statistics(record)
        if self._watched:
            click.echo("\r\x1b[K", nl=False, err=True)

    def _write(self, text: str, *, lasts: bool = False) -> None:
        if not self._watched:
            click.echo(text, err=True)
            return
        room = shutil.get_terminal_size().columns - 1
        shown = text if lasts else text[:room]
        click.echo(f"\r\x1b[K{shown}", nl=lasts, err=True)


def time_left(seconds: float, done: float, left: float) -> str:
    """In words how long a training still takes, at the rate so far.

    Args:
        seconds: since it began.
        done: work so far.
        left: work that is left.
    """
    if done < 20.0 or seconds < 2.0:
        return "time left not known yet"
    rest = seconds / done * left
    if rest < 10.0:
        return "a few seconds left"
    if rest < 90.0:
        return f"about {10 * math.ceil(rest / 10):.0f} s left"
    return f"about {math.ceil(rest / 60):.0f} min left"


def _draw(path: Path, recording: Recording, picture: Path) -> Path | None:
    """Recorded and generated noise side by side, where there is enough of it."""
    from sepprior.checkpoint import load_prior
    from sepprior.fidelity import inspect_prior
    from sepprior.outputs import whole_files
    from sepprior.real_noise import judging_windows

    prior = load_prior(path, device="cpu")
    try:
        windows, origin = judging_windows(prior, recording, limit=DRAWN_WINDOWS)
        found = inspect_prior(prior, windows, origin=origin)
    except SeppriorError:
        return None
    with whole_files(picture) as (part,):
        found.plot(part)
    return picture


def _card(path: Path, log: Path, picture: Path | None, seconds: float) -> str:
    """What has been trained, as a table."""
    from sepprior.checkpoint import load_prior
    from sepprior.formatting import format_table

    prior = load_prior(path, device="cpu")
    length = f"{prior.window} samples = {prior.window / prior.sample_rate:.4g} s"
    spread = float(prior.autocovariance[0]) ** 0.5
    rows = [
        ["prior", f"{path} ({prior.name})"],
        ["window", f"{length} at {prior.sample_rate:.6g} Hz"],
        ["noise", f"mean {prior.level:.4g}, standard deviation {spread:.4g}"],
        [
            "trained in",
            f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min",
        ],
        ["log", str(log)],
    ]
    if picture is not None:
        rows.append(["picture", f"{picture}: recorded and generated noise"])
    return format_table(rows)


def _statistics(record: dict[str, Any]) -> str:
    named = (
        ("critic", "critic_distance", ".3g", ""),
        ("spectrum", "spectral_error_db", ".2f", " dB"),
        ("held-out", "heldout_nll", ".3f", " nat"),
    )
    return ", ".join(
        f"{label} {record[key]:{form}}{unit}"
        for label, key, form, unit in named
        if record.get(key) is not None
    )


def _modified(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None
