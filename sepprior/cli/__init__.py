"""Command line: train a noise prior, separate measurements with it, look at it.

Each command reads its inputs, calls the function of the same name, and writes files.
Numerical libraries are imported inside the commands: `sepprior --help` answers at once.
"""

import click

from sepprior import __version__
from sepprior.cli.benchmark import benchmark_command
from sepprior.cli.look import inspect_command, sample_command
from sepprior.cli.program import Program
from sepprior.cli.separate import separate_command
from sepprior.cli.train import train_noise_command

__all__ = ["main"]


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sepprior")
def main() -> None:
    r"""Separate a signal of known form from structured noise.

    Train a noise prior once on recordings without a signal, then separate every later
    measurement into signal and noise, with error bars on the signal's parameters:

    \b
        sepprior train-noise noise.csv
        sepprior inspect prior.safetensors noise.csv
        sepprior separate measurement.csv

    Each command has its own --help. Tab completes commands and options after
    eval "$(_SEPPRIOR_COMPLETE=bash_source sepprior)" (or zsh_source, fish_source).
    """


for _command in (
    train_noise_command,
    inspect_command,
    separate_command,
    sample_command,
    benchmark_command,
):
    main.add_command(_command)
