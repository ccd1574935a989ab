"""`sepprior benchmark`: methods on synthetic measurements with a known truth."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sepprior import __version__
from sepprior.cli.options import device_option, path_type, seed_option
from sepprior.errors import SeppriorError

if TYPE_CHECKING:
    import pandas

REFERENCE = "gls_scipy"
"""Method that the others are compared with."""
SHOWN = ["scenario", "duration", "method", "amplitude", "frequency", "phase", "bias"]
"""Columns of the summary that are printed."""


@click.command("benchmark")
@click.option("--scenario", multiple=True, metavar="NAME", help="Only this noise.")
@click.option(
    "--duration",
    multiple=True,
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Only windows of this length, in s.  [default: 10 and 1]",
)
@click.option(
    "--prior",
    multiple=True,
    metavar="METHOD[:CELL]=FILE",
    help="Use this prior, as in specgan:pump1=FILE, instead of training one.",
)
@click.option("--method", multiple=True, metavar="NAME", help="Only this method.")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=400,
    show_default=True,
    metavar="N",
    help="Measurements per scenario.",
)
@click.option(
    "--train-seed",
    multiple=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Seed of the training; several give a prior each.  [default: 0]",
)
@device_option
@seed_option
@click.option(
    "-o",
    "--output",
    type=path_type,
    default=Path("benchmark-results"),
    show_default=True,
    metavar="DIR",
    help="Folder for the files that are written.",
)
def benchmark_command(
    scenario: tuple[str, ...],
    duration: tuple[float, ...],
    prior: tuple[str, ...],
    method: tuple[str, ...],
    trials: int,
    train_seed: tuple[int, ...],
    device: str,
    seed: int,
    output: Path,
) -> None:
    """Measure methods on synthetic measurements with a known truth.

    Writes trials.csv, one line per fit, and summary.md. --scenario, --duration,
    --method, --prior and --train-seed can be given several times; without --scenario
    and --method, all are run.
    """
    from sepprior.outputs import check_output_folder, whole_files

    check_output_folder(output)
    files_of = _prior_files(prior)

    import pandas as pd

    from sepprior.benchmark import iterate_benchmark, summary, to_markdown

    pieces = iterate_benchmark(
        scenario or None,
        method or None,
        duration or (10.0, 1.0),
        trials=trials,
        seed=seed,
        prior_files=files_of,
        train_seeds=train_seed or (0,),
        device=device,
    )
    rows = pd.DataFrame()
    files = (output / "trials.csv", output / "summary.md")
    command = [f"--trials {trials} --seed {seed}"]
    command += [f"--scenario {shlex.quote(name)}" for name in scenario]
    command += [f"--duration {value:g}" for value in duration]
    command += [f"--method {shlex.quote(name)}" for name in method]
    command += [f"--train-seed {value}" for value in train_seed]
    command += [f"--prior {shlex.quote(text)}" for text in prior]
    for piece in pieces:
        rows = pd.concat([rows, piece], ignore_index=True)
        # Rewritten after every cell: an interrupted run keeps what was measured.
        with whole_files(files[0]) as (table,):
            rows.to_csv(table, index=False)
        first = piece.iloc[0]
        click.echo(
            f"{first['scenario']}, {first['duration']:g} s: {first['method']}", err=True
        )
    with whole_files(files[1]) as (text,):
        text.write_text(_summary(rows, " ".join(command)), encoding="utf-8")
    click.echo("RMS error over the bound, strong trials:\n")
    click.echo(to_markdown(pd.DataFrame(summary(rows), columns=SHOWN)))
    click.echo(f"written: {', '.join(map(str, files))}")


def _prior_files(options: tuple[str, ...]) -> dict[str, Path]:
    """Prior files by method, or by method and cell.

    Raises:
        SeppriorError: an option is not METHOD=FILE, or the file does not exist.
    """
    files = {}
    for text in options:
        method, separator, name = text.partition("=")
        if not (method and separator and name):
            raise SeppriorError(
                f"--prior {text!r}: expected METHOD=FILE or METHOD:CELL=FILE, such as "
                "specgan:pump1=prior.safetensors"
            )
        if not Path(name).is_file():
            raise SeppriorError(
                f"--prior {text!r}: there is no file '{name}'; train a prior with "
                "sepprior train-noise"
            )
        files[method] = Path(name)
    return files


def _summary(rows: pandas.DataFrame, options: str) -> str:
    """The tables of a run and the command that made them, in Markdown."""
    from sepprior.benchmark import compare, summary, to_markdown

    parts = [
        f"Made by `sepprior benchmark {options}` of version {__version__}.\n",
        "RMS errors are over the bound, of the strong trials without outliers.\n",
        to_markdown(summary(rows)),
    ]
    cells = ["scenario", "duration"]
    if all(REFERENCE in set(part["method"]) for _, part in rows.groupby(cells)):
        parts += [
            f"RMS error over that of {REFERENCE}, with 95 % intervals:\n",
            to_markdown(compare(rows, REFERENCE)),
        ]
    return "# Benchmark\n\n" + "\n".join(parts)
