"""`sepprior benchmark`: methods on synthetic measurements with a known truth."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sepprior import __version__
from sepprior.cli.options import (
    READING,
    Command,
    device_option,
    path_type,
    reading_options,
    seed_option,
)
from sepprior.errors import SeppriorError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas

    from sepprior.benchmark import Scenario
    from sepprior.benchmark.jobs import Job, Outcome

REFERENCE = "gls_scipy"
"""Method that the others are compared with."""


@click.command(
    "benchmark",
    cls=Command,
    groups={
        "Noise": ("scenario", "noise", "duration", "trials"),
        "Methods": ("method", "peers", "prior", "train_seed"),
        "Reading": READING,
        "Output": ("output", "resume"),
    },
    example="""
        sepprior benchmark --scenario white --method gls_scipy --method gaussian
        sepprior benchmark --noise noise.csv --method gaussian --trials 100
    """,
)
@click.option(
    "--scenario",
    multiple=True,
    metavar="NAME",
    help="Only this noise; FILE.py:FUNCTION for one of your own.",
)
@click.option(
    "--noise",
    type=path_type,
    metavar="FILE",
    help="A recording of noise, into which known sinusoids are put.",
)
@reading_options
@click.option(
    "--duration",
    multiple=True,
    type=click.FloatRange(min=0, max=1e5, min_open=True),
    metavar="S",
    help="Only windows of this length, in s.  [default: 10 and 1]",
)
@click.option(
    "--prior",
    multiple=True,
    metavar="METHOD[:CELL]=FILE",
    help="Use this prior, as in specgan:pump1=FILE, instead of training one.",
)
@click.option(
    "--method",
    multiple=True,
    metavar="NAME",
    help="Only this method; specgan/plain is its textbook objective, and "
    "specgan/flat, /one-start, /no-encoder or /untrained lacks the part named.",
)
@click.option("--peers", is_flag=True, help="Also methods of other packages.")
@click.option(
    "--trials",
    type=click.IntRange(1, 10**6),
    default=400,
    show_default=True,
    metavar="N",
    help="Measurements per cell, and as many of noise alone.",
)
@click.option(
    "--train-seed",
    multiple=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Seed of the training; several give a prior each.  [default: 0]",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Jobs at a time, of one thread each.",
)
@click.option("--resume", is_flag=True, help="Keep what an interrupted run has done.")
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
    noise: Path | None,
    reading: dict[str, Any],
    duration: tuple[float, ...],
    prior: tuple[str, ...],
    method: tuple[str, ...],
    peers: bool,
    trials: int,
    train_seed: tuple[int, ...],
    processes: int,
    resume: bool,
    device: str,
    seed: int,
    output: Path,
) -> None:
    """Measure methods on synthetic measurements with a known truth.

    A cell is a kind of noise at one window length; all methods see the same trials.
    Writes trials.csv (and trials.parquet where pyarrow is installed), one line per fit,
    summary.md, summary.json, and report.html with all figures. --scenario, --duration,
    --method, --prior and --train-seed can be given several times.
    """
    from sepprior.outputs import check_output_folder

    check_output_folder(output)
    files_of = _prior_files(prior)

    from sepprior.benchmark import METHODS, WITHOUT_PRIOR, plan_benchmark, run_jobs
    from sepprior.benchmark.peers import PEERS

    names = [*(method or METHODS), *(PEERS if peers else ())]
    jobs = plan_benchmark(
        _scenarios(scenario, noise, reading),
        list(dict.fromkeys(names)),
        duration or (10.0, 1.0),
        trials=trials,
        seed=seed,
        prior_files=files_of,
        train_seeds=train_seed or (0,),
        device=device,
    )
    pieces = output / "pieces"
    if pieces.exists() and not resume:
        shutil.rmtree(pieces)
    outcomes = _with_progress(
        run_jobs(jobs, processes=processes, pieces=pieces), len(jobs)
    )
    place = {job.label: number for number, job in enumerate(jobs)}
    outcomes.sort(key=lambda outcome: place[outcome.job.label])

    import pandas as pd

    rows = pd.concat([outcome.rows for outcome in outcomes], ignore_index=True)
    context = click.get_current_context()
    missing = [(each.job, each.reason) for each in outcomes if each.reason is not None]
    if rows.empty:
        raise SeppriorError(
            "none of the methods could be run: "
            + "; ".join(f"{job.label}: {reason}" for job, reason in missing)
        )
    how = {name: each.how for name, each in WITHOUT_PRIOR.items()}
    from sepprior.benchmark import grid, summary, to_markdown

    table = summary(rows)
    command = _command_line(context)
    written = _write(output, rows, table, missing, how, command)
    written.append(_write_report(output, jobs, rows, table, missing, how, command))
    click.echo("RMS error over the bound, strong trials, amplitude/frequency:\n")
    click.echo(to_markdown(grid(table, ("amplitude", "frequency"))))
    for job, reason in missing:
        click.echo(f"not run: {job.label}: {reason}")
    click.echo(f"written: {', '.join(map(str, written))}")


def _scenarios(
    names: tuple[str, ...],
    noise: Path | None,
    reading: dict[str, Any],
) -> list[str | Scenario] | None:
    """The scenarios that were named; None means all."""
    from sepprior.benchmark import file_scenario, recorded_scenario
    from sepprior.data import read_recordings

    found: list[str | Scenario] = [
        file_scenario(name) if ".py:" in name else name for name in names
    ]
    if noise is not None:
        recording = read_recordings(noise, **reading)
        found.append(recorded_scenario(noise.stem, recording))
    elif any(reading.values()):
        raise SeppriorError(
            "--column, --sample-rate, --time-column and --skip-lines say how to read a "
            "recording: add --noise FILE"
        )
    return found or None


def _with_progress(outcomes: Iterator[Outcome], total: int) -> list[Outcome]:
    """Collect the outcomes behind a progress bar."""
    from tqdm import tqdm

    done: list[Outcome] = []
    with tqdm(total=total, unit="job", disable=None, dynamic_ncols=True) as bar:
        for outcome in outcomes:
            done.append(outcome)
            bar.set_description(outcome.job.label)
            bar.update()
    return done


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


def _command_line(context: click.Context) -> str:
    """The command with the options that were given and matter to the numbers."""
    words = ["sepprior benchmark"]
    for option in context.command.params:
        name = str(option.name)
        given = context.get_parameter_source(name)
        if given is None or given.name == "DEFAULT" or name in ("resume", "output"):
            continue
        value = context.params[name]
        for each in value if isinstance(value, tuple) else (value,):
            words.append(option.opts[0])
            if not isinstance(each, bool):
                words.append(shlex.quote(str(each)))
    return " ".join(words)


def _write(
    folder: Path,
    rows: pandas.DataFrame,
    table: pandas.DataFrame,
    missing: list[tuple[Job, str]],
    how: dict[str, str],
    command: str,
) -> list[Path]:
    """Write every trial and the tables."""
    import importlib.util

    from sepprior.outputs import to_json, whole_files

    files = [folder / name for name in ("trials.csv", "summary.md", "summary.json")]
    with whole_files(*files) as (trials, text, plain):
        rows.to_csv(trials, index=False)
        text.write_text(_summary(rows, table, missing, command), encoding="utf-8")
        described = {name: how[name] for name in table["method"] if name in how}
        content = {
            "version": __version__,
            "command": command,
            "methods": described,
            "summary": table.to_dict("records"),
            "not_run": [
                {"cell": job.cell.label, "method": job.name, "reason": reason}
                for job, reason in missing
            ],
        }
        plain.write_text(to_json(content, indent=1) + "\n", encoding="utf-8")
    if importlib.util.find_spec("pyarrow") is not None:
        files.append(folder / "trials.parquet")
        with whole_files(files[-1]) as (trials,):
            rows.to_parquet(trials, index=False)
    return files


def _write_report(
    folder: Path,
    jobs: list[Job],
    rows: pandas.DataFrame,
    table: pandas.DataFrame,
    missing: list[tuple[Job, str]],
    how: dict[str, str],
    command: str,
) -> Path:
    """Write the page with the figures."""
    from sepprior.benchmark.report import report
    from sepprior.outputs import whole_files

    cells = {
        f"{job.cell.scenario.name} {job.cell.duration:g}": job.cell for job in jobs
    }
    path = folder / "report.html"
    with whole_files(path) as (page,):
        text = report(
            rows,
            table,
            cells,
            seed=jobs[0].seed,
            missing=[(job.cell.label, job.name, reason) for job, reason in missing],
            how=how,
            command=command,
            reference=REFERENCE,
        )
        page.write_text(text, encoding="utf-8")
    return path


def _learned(table: pandas.DataFrame) -> list[str]:
    """What learned scores promise, where there are any."""
    from sepprior.benchmark import grid, to_markdown
    from sepprior.benchmark.settings import PARAMETERS

    columns = tuple(f"{name}_learned" for name in PARAMETERS)
    known = table.dropna(subset=list(columns))
    if known.empty:
        return []
    return [
        "What the score that a prior has learned promises, over the bound:\n",
        to_markdown(grid(known, columns)),
    ]


def _summary(
    rows: pandas.DataFrame,
    table: pandas.DataFrame,
    missing: list[tuple[Job, str]],
    command: str,
) -> str:
    """The tables of a run and the command that made them, in Markdown."""
    import pandas as pd

    from sepprior.benchmark import compare, grid, to_markdown
    from sepprior.benchmark.settings import PARAMETERS

    parts = [
        f"Made by `{command}` of version {__version__}.\n",
        "RMS errors are over the bound, of the trials without outliers.\n",
        "Strong trials, amplitude/frequency:\n",
        to_markdown(grid(table, ("amplitude", "frequency"))),
        "Strong trials, phase/bias:\n",
        to_markdown(grid(table, ("phase", "bias"))),
        "Outliers, share of the strong/weak trials (with its 95 % interval):\n",
        to_markdown(grid(table, ("outliers", "outliers_weak"), intervals=True)),
        "Coverage of the 68 % intervals, amplitude/frequency/phase/bias:\n",
        to_markdown(grid(table, tuple(f"{name}_68" for name in PARAMETERS))),
        "Coverage of the 95 % intervals, likewise:\n",
        to_markdown(grid(table, tuple(f"{name}_95" for name in PARAMETERS))),
        "Coverage of the 68 %/95 % intervals of the frequency, with its 95 % interval:"
        "\n",
        to_markdown(grid(table, ("frequency_68", "frequency_95"), intervals=True)),
        "Weak signals detected at 1 % false alarms:\n",
        to_markdown(grid(table, ("detected",))),
        *_learned(table),
        "Time per measurement in the batch/alone (ms):\n",
        to_markdown(grid(table, ("ms", "ms_alone"))),
        "Every score and its 95 % interval is in summary.json.\n",
    ]
    cells = ["scenario", "duration"]
    if all(REFERENCE in set(part["method"]) for _, part in rows.groupby(cells)):
        parts += [
            f"RMS error over that of {REFERENCE}, with 95 % intervals:\n",
            to_markdown(compare(rows, REFERENCE)),
        ]
    if missing:
        reasons = [(job.cell.label, job.name, reason) for job, reason in missing]
        left_out = pd.DataFrame(reasons, columns=["cell", "method", "reason"])
        parts += ["Not run:\n", to_markdown(left_out)]
    return "# Benchmark\n\n" + "\n".join(parts)
