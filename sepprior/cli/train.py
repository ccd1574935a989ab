"""`sepprior train-noise`: recordings in, a frozen prior out."""

from __future__ import annotations

import os
import shlex
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

    from tqdm import tqdm

    from sepprior.outputs import StepLog


SPECTROGRAMS = "spectrograms"


@click.command(
    "train-noise",
    cls=Command,
    groups={
        "Model": ("model", "config_file", "window", "steps", "seed"),
        "Reading": READING,
        "Output": ("output", "resume"),
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
    output: Path,
) -> None:
    """Train a noise prior on noise-only recordings.

    NOISE are files or folders: CSV, TXT, NPY, NPZ, WAV, HDF5 or Parquet. Statistics of
    each tick go to a .jsonl file beside the prior. Ctrl-C leaves a usable prior.

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
    log_path = output.with_suffix(".jsonl")
    check_distinct([output, log_path], noise)
    recipe = _recipe(config_file, model, resumed=output if resume else None)
    recipe = override(recipe, {"window": window, "steps": steps, "seed": seed})

    # Of several processes started by torchrun the first one reports.
    reports = int(os.environ.get("RANK", "0")) == 0
    before = _modified(output)
    progress = Progress()
    records, what = _training(
        noise,
        recipe,
        reading=reading,
        device=device,
        output=output,
        resume=resume,
        announce=progress.announce,
    )
    if reports:
        click.echo(f"training a {recipe.model} {what}", err=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    if not reports:
        for _ in records:
            pass
        return
    try:
        with StepLog(log_path, resume=resume) as log:
            total = getattr(recipe, "steps", 1)
            progress.follow(records, log, total=total, resume=resume)
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
    click.echo(f"prior: {output}\nstatistics of the training: {log_path}")
    named = shlex.quote(str(output))
    if what.endswith(SPECTROGRAMS):
        click.echo(f"next: sepprior sample {named} -n N -o FOLDER")
        return
    click.echo(_gained(output), nl=False)
    option = "" if output == DEFAULT_PRIOR else f" --prior {named}"
    click.echo(f"next: sepprior separate MEASUREMENT{option}")


def _gained(output: Path) -> str:
    """Lines on what the prior knows of held-out noise, where it was scored."""
    from sepprior.checkpoint import load_tensors
    from sepprior.priors import beats_gaussian

    facts = load_tensors(output)[1].get("metadata", {})
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
    announce: Callable[[str], object],
) -> tuple[Generator[dict[str, Any], None, object], str]:
    """The records of a training, and on what it is."""
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
        return records, f"generator on {len(data)} {size} {SPECTROGRAMS}"

    from sepprior.data import read_recordings
    from sepprior.training import train

    recording = read_recordings(noise, **reading)
    records = train(
        recording,
        recipe,
        device=device,
        output=output,
        resume=resume,
        announce=announce,
    )
    return records, (
        f"prior on {recording.n_samples} samples at {recording.sample_rate:.6g} Hz, "
        f"windows of {recipe.window} samples"
    )


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
    """The progress bar of a training."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def announce(self, text: str) -> None:
        """Show what is done before the first step."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"preparing: {text}")

    def follow(
        self,
        records: Generator[dict[str, Any], None, object],
        log: StepLog,
        *,
        total: int,
        resume: bool,
    ) -> None:
        """Draw the bar to the end of the training and write its log."""
        from tqdm import tqdm

        with tqdm(total=total, unit="step", dynamic_ncols=True) as bar:
            self._bar = bar
            bar.set_postfix_str("preparing (can take minutes)")
            for record in records:
                log.write(record)
                step = int(record["step"])
                bar.total = int(record["steps"])
                if resume and bar.n == 0:
                    # Steps of the earlier run must not count in the time that is left.
                    bar.initial = bar.n = bar.last_print_n = step
                last = ", last checks" if step == bar.total else ""
                bar.set_postfix_str(_statistics(record) + last, refresh=False)
                bar.update(step - bar.n)
                if last:
                    bar.refresh()


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
