"""`sepprior separate`: measurements in; table, fit and picture out."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from sepprior.cli.options import (
    DEFAULT_PRIOR,
    READING,
    Command,
    Components,
    device_option,
    folder_option,
    label_option,
    path_type,
    reading_options,
    seed_option,
)
from sepprior.cli.signal_options import (
    bounds_option,
    expected_option,
    find_signal,
    fixed_option,
    guess_option,
    read_pairs,
    read_values,
    signal_option,
)
from sepprior.cli.table_options import TABLE, TableOptions, table_options
from sepprior.errors import SeppriorError
from sepprior.rates import check_sample_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sepprior.data import Measurement
    from sepprior.priors.base import Prior
    from sepprior.result import Separation

PRIOR_VARIABLE = "SEPPRIOR_PRIOR"
"""Environment variable with the path of the prior to use."""
MANY = 100
"""Measurements from which on a table is recommended."""
BUNDLED_PRIOR = Path(__file__).parents[1] / "data_files" / "example_prior.safetensors"
"""The prior of the bundled example, inside the package."""


@click.command(
    "separate",
    cls=Command,
    groups={
        "Signal": ("signal", "components", "fmin", "fmax"),
        "What is known of it": ("bounds", "fixed", "guess", "expected"),
        "Noise and fit": ("prior_path", "label", "objective", "starts"),
        "Error bars": ("method", "draws"),
        "Reading": READING,
        "Long recordings": ("window", "hop"),
        "One table of many inputs": TABLE,
        "Output": ("output", "no_plot", "verbose", "as_json"),
    },
    example="""
        sepprior separate run.csv --fmin 1 --fmax 20
        sepprior separate year.csv --window 300 --fmin 45 --fmax 55
        sepprior separate 'runs/*.csv' --table fits --keep-going
    """,
)
@click.argument("measurement", nargs=-1, required=True, type=path_type)
@click.option("--prior", "prior_path", type=path_type, help="Noise prior to use.")
@signal_option
@click.option(
    "--components",
    type=Components(),
    default=1,
    show_default=True,
    help="Number of sinusoids or harmonics; auto chooses that of sinusoids.",
)
@click.option("--fmin", type=float, metavar="HZ", help="Lowest frequency to search.")
@click.option("--fmax", type=float, metavar="HZ", help="Highest frequency to search.")
@bounds_option
@fixed_option
@guess_option
@expected_option
@click.option(
    "--objective",
    type=click.Choice(["joint", "plain"]),
    default="joint",
    show_default=True,
    help="joint: likelihood over latent and signal; plain: textbook least squares.",
)
@click.option(
    "--method",
    type=click.Choice(["laplace", "bootstrap", "mcmc", "langevin"]),
    default="laplace",
    show_default=True,
    help="Error bars. laplace: curvature, calibrated; bootstrap: refits of new noise; "
    "mcmc: posterior (latent priors, gaussian); langevin: posterior (diffusion).",
)
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    metavar="N",
    help="Replicas of the bootstrap, or posterior draws.  [default: 200, 1000]",
)
@click.option("--starts", type=click.IntRange(min=1), metavar="N", help="Restarts.")
@label_option
@click.option(
    "--window",
    type=click.IntRange(min=1),
    metavar="N",
    help="Track or --table: samples in a window.  [default: the prior's]",
)
@click.option(
    "--hop",
    type=click.IntRange(min=1),
    metavar="N",
    help="Track or --table: samples from window to window.  [default: half a window, "
    "with --table a whole one]",
)
@reading_options
@device_option
@seed_option
@folder_option
@table_options
@click.option("--no-plot", is_flag=True, help="Write no picture.")
@click.option(
    "--verbose", is_flag=True, help="Print the other methods' answers and diagnostics."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, one line per measurement."
)
def separate_command(
    measurement: tuple[Path, ...],
    prior_path: Path | None,
    signal: str,
    components: int | Literal["auto"],
    fmin: float | None,
    fmax: float | None,
    bounds: tuple[str, ...],
    fixed: tuple[str, ...],
    guess: tuple[str, ...],
    expected: tuple[str, ...],
    objective: str,
    method: str,
    draws: int | None,
    starts: int | None,
    label: str | None,
    window: int | None,
    hop: int | None,
    reading: dict[str, Any],
    device: str,
    seed: int,
    output: Path | None,
    table: Path | None,
    engine: Literal["local", "dask"],
    workers: int | None,
    scheduler: str | None,
    resume: bool,
    keep_going: bool,
    no_plot: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Separate measurements into signal and noise.

    MEASUREMENT are files, folders or quoted patterns. For run.csv this writes
    run.separated.csv, run.fit.json and run.png. Without --prior, the prior is the one
    that the variable SEPPRIOR_PRIOR names, else prior.safetensors in the working
    directory, else the one of the bundled example.

    With --window or --hop a long recording is tracked: it is fitted window by window,
    each with the whole signal, times and phases counted from its first sample;
    run.track.csv has the parameters against time, run.separated.csv the separated
    recording, run.png both. With -o FILE.csv or FILE.parquet the table of one recording
    has that name and format, and the others stand beside it.

    With --table DIR inputs of any number and size are fitted window by window, in
    bounded memory, into one Parquet dataset; a run that was stopped, or killed, goes on
    with --resume.

    Exit status: 0; 2 for input that cannot be used; 3 where --keep-going left some out.
    """
    from sepprior.data import read_measurements
    from sepprior.data.listing import list_files
    from sepprior.outputs import (
        check_distinct,
        check_output_folder,
        check_same_source,
        separation_files,
    )

    form = find_signal(signal)
    limits, held = read_pairs("--bounds", bounds), read_values("--fix", fixed)
    start, priors = read_values("--guess", guess), read_pairs("--expect", expected)
    path, reason = _find_prior(prior_path)
    into = TableOptions(table, engine, workers, scheduler, resume, keep_going)
    if into.table is not None or window is not None or hop is not None:
        if method != "laplace" or draws is not None:
            raise SeppriorError(
                "--window, --hop and --table have the error bars of --method laplace: "
                "leave out --method and --draws"
            )
        if components == "auto":
            raise SeppriorError(
                "--components auto chooses for one measurement: with --window, --hop "
                "or --table give the number of sinusoids"
            )
        from sepprior.tracking import FitOptions

        options = FitOptions(
            signal=form,
            fmin=fmin,
            fmax=fmax,
            components=components,
            bounds=limits,
            fixed=held,
            guess=start,
            expected=priors,
            objective=objective,
            starts=starts,
            seed=seed,
        )
        if into.table is not None:
            from sepprior.cli.many import write_table

            write_table(
                measurement,
                path,
                reason,
                options,
                into,
                window=window,
                hop=hop,
                reading=reading,
                label=label,
                output=output,
                device=device,
                as_json=as_json,
            )
        else:
            from sepprior.cli.tracking import TrackOutput, track_files

            into.check_unused()
            track_files(
                measurement,
                _load_prior(path, reason, device, label),
                options,
                TrackOutput(output, plot=not no_plot, as_json=as_json),
                window=window,
                hop=hop,
                reading=reading,
            )
        return
    into.check_unused()
    measurements = read_measurements(measurement, **reading)
    if len(measurements) > MANY:
        click.echo(
            f"{len(measurements)} measurements, with files for each: --table DIR would "
            "write one table",
            err=True,
        )
    files = [
        separation_files(
            Path(item.source).parent if output is None else output,
            item.name,
            plot=not no_plot,
        )
        for item in measurements
    ]
    check_distinct(chain.from_iterable(files), [path, *list_files(measurement)])
    for item, (_, fit, *_) in zip(measurements, files, strict=True):
        check_same_source(fit, item.source)
    for folder in {paths[0].parent for paths in files}:
        check_output_folder(folder)

    prior = _load_prior(path, reason, device, label)
    measurements = [_with_rate(item, prior) for item in measurements]

    import numpy as np

    from sepprior.arguments import Checked
    from sepprior.separation import separate

    results: dict[int, Separation] = {}
    for rate, members in _batches(measurements, alone=components == "auto"):
        values = [measurements[index].values for index in members]
        x = values[0][None] if len(values) == 1 else np.stack(values)
        x.flags.writeable = False  # so that it is not copied once more
        batch = separate(
            Checked(x),
            prior,
            signal=form,
            sample_rate=rate,
            fmin=fmin,
            fmax=fmax,
            components=components,
            bounds=limits,
            fixed=held,
            guess=start,
            expected=priors,
            objective=objective,
            method=method,
            draws=draws,
            starts=starts,
            seed=seed,
            device=device,
        )
        for position, index in enumerate(members):
            results[index] = batch.select(position)
    for index, item in enumerate(measurements):
        report = "" if as_json else results[index].report(verbose=verbose)
        _deliver(item, results[index], files[index], report)


def _find_prior(option: Path | None) -> tuple[Path, str]:
    """Path of the prior to use, and why it is this one."""
    variable = os.environ.get(PRIOR_VARIABLE)
    if option is not None:
        path, reason = option, "given with --prior"
    elif variable:
        path, reason = Path(variable), f"named by {PRIOR_VARIABLE}"
    elif DEFAULT_PRIOR.exists():
        path, reason = DEFAULT_PRIOR, "in the working directory"
    else:
        path, reason = BUNDLED_PRIOR, "bundled, for the noise of the bundled example"
    if not path.exists():
        raise SeppriorError(
            f"prior '{path}' ({reason}) does not exist: name one with --prior, or "
            "train one with sepprior train-noise"
        )
    return path, reason


def _load_prior(path: Path, reason: str, device: str, label: str | None) -> Prior:
    """The prior, saying which it is."""
    from sepprior.checkpoint import load_prior

    prior = load_prior(path, device=device)
    say_prior(path, reason, prior)
    if label is None:
        return prior

    from sepprior.priors import with_label

    return with_label(prior, label)


def say_prior(path: Path, reason: str, prior: Prior) -> None:
    """Say which prior is used, and why it is this one."""
    click.echo(
        f"prior: {path} ({reason}): {prior.name}, windows of {prior.window} samples at "
        f"{prior.sample_rate:.6g} Hz",
        err=True,
    )


def _with_rate(item: Measurement, prior: Prior) -> Measurement:
    """The measurement with a sample rate, checked against the prior's."""
    if item.sample_rate is not None:
        check_sample_rate(
            item.sample_rate, prior.sample_rate, subject=f"measurement '{item.source}'"
        )
        return item
    say_rate_is_assumed(item.name, prior)
    # Without a rate the time of a measurement is counted in samples.
    return replace(
        item, sample_rate=prior.sample_rate, start=item.start / prior.sample_rate
    )


def say_rate_is_assumed(name: str, prior: Prior) -> None:
    """Tell that a measurement is taken to have the prior's sample rate."""
    click.echo(
        f"{name}: the file does not tell its sample rate; taken to be the prior's, "
        f"{prior.sample_rate:.6g} Hz (say otherwise with --sample-rate)",
        err=True,
    )


def _batches(
    measurements: Sequence[Measurement], *, alone: bool
) -> list[tuple[float, list[int]]]:
    """Sample rate and numbers of the measurements that can be separated together.

    With `alone`, each is a batch of its own: all of a batch have as many components.
    """
    batches: dict[tuple[int, float, int], list[int]] = defaultdict(list)
    for index, item in enumerate(measurements):
        # Nine digits: rates that were found from time columns differ in the last bits.
        rate = float(f"{item.sample_rate:.9g}")
        batches[len(item.values), rate, index if alone else 0].append(index)
    return [(rate, members) for (_, rate, _), members in batches.items()]


def _deliver(
    item: Measurement, result: Separation, files: Sequence[Path], report: str
) -> None:
    """Write the files of one measurement and print its report, or JSON for none."""
    from sepprior.outputs import fit_summary, to_json, write_separation

    write_separation(files, item, result)
    if not report:
        click.echo(to_json(fit_summary(item, result)))
        return
    click.echo(f"{item.name}\n\n{report}")
    if item.start != 0:
        click.echo(f"phase: at the first sample, at {item.start:.9g} s")
    click.echo(f"\nwritten: {', '.join(map(str, files))}\n")
