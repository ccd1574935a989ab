"""Tables of the scores, from the rows of a benchmark run."""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sepprior.benchmark import scores
from sepprior.benchmark.noise import Array
from sepprior.benchmark.scenarios import PARAMETERS
from sepprior.errors import SeppriorError

CELL = ["scenario", "duration"]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores of every method in every cell, one row each.

    Columns, with one of each kind per parameter:
        `amplitude`, ...: RMS error over the bound in the strong trials (A >= 1).
        `amplitude_weak`, ...: the same in the weak trials.
        `outliers`, `outliers_weak`: share of the strong and weak trials whose frequency
        is off by more than 0.5 / T. They are left out of the RMS errors.
        `amplitude_68`, `amplitude_95`, ...: coverage of the 68 % and 95 % intervals,
        over all trials.
        `ms`, `ms_alone`, `training_s`: times per measurement in a batch and on its own
        (ms), and of the training (s).

    Args:
        rows: What `run_benchmark` returned.
    """
    table = []
    for key, group in rows.groupby([*CELL, "method"], sort=False):
        scenario, duration, method = cast(tuple[str, float, str], key)
        strong = (group["amplitude_true"] >= scores.STRONG).to_numpy()
        outlier = _outliers(group)
        row = {
            "scenario": scenario,
            "duration": duration,
            "method": method,
            "trials": len(group),
            "trials_strong": int(strong.sum()),
        }
        for suffix, split in (("", strong), ("_weak", ~strong)):
            used = split & ~outlier
            for name in PARAMETERS:
                bound = group[f"{name}_bound"].to_numpy()
                error = _errors(group, name)
                row[name + suffix] = scores.rms_ratio(error[used], bound[used])
            row["outliers" + suffix] = (
                float(outlier[split].mean()) if split.any() else float("nan")
            )
        for name in PARAMETERS:
            stderr = group[f"{name}_stderr"].to_numpy()
            row[f"{name}_68"] = scores.coverage(_errors(group, name), stderr, 0.68)
            row[f"{name}_95"] = scores.interval_coverage(
                name,
                group[name].to_numpy(),
                group[f"{name}_true"].to_numpy(),
                group[[f"{name}_low", f"{name}_high"]].to_numpy(),
            )
        row["ms"] = 1e3 * group["seconds"].iloc[0]
        row["ms_alone"] = 1e3 * group["seconds_alone"].iloc[0]
        row["training_s"] = group["training_seconds"].iloc[0]
        table.append(row)
    return pd.DataFrame(table)


def compare(rows: pd.DataFrame, reference: str = "gls_scipy") -> pd.DataFrame:
    """RMS error of every method over that of a reference, with 95 % intervals.

    Paired: only strong trials that are outliers of neither, and a bootstrap that draws
    both methods' errors together.

    Args:
        rows: What `run_benchmark` returned.
        reference: Name of a method among the rows.

    Returns:
        Columns `scenario`, `duration`, `method`, `parameter`, `ratio`, `low`, `high`.

    Raises:
        SeppriorError: The reference is not among the methods of every cell.
    """
    table = []
    for key, group in rows.groupby(CELL, sort=False):
        scenario, duration = cast(tuple[str, float], key)
        methods = {
            name: part.sort_values("trial")
            for name, part in group.groupby("method", sort=False)
        }
        if reference not in methods:
            raise SeppriorError(
                f"reference method {reference!r} was not run on {scenario}"
                f"{duration:g}: expected one of {', '.join(map(str, methods))}"
            )
        base = methods[reference]
        strong = (base["amplitude_true"] >= scores.STRONG).to_numpy()
        for method, part in methods.items():
            if method == reference:
                continue
            used = strong & ~_outliers(base) & ~_outliers(part)
            for name in PARAMETERS:
                ratio = scores.paired_ratio(
                    _errors(part, name)[used],
                    _errors(base, name)[used],
                    base[f"{name}_bound"].to_numpy()[used],
                )
                table.append(
                    {
                        "scenario": scenario,
                        "duration": duration,
                        "method": method,
                        "parameter": name,
                        "ratio": ratio.value,
                        "low": ratio.low,
                        "high": ratio.high,
                    }
                )
    return pd.DataFrame(table)


def to_markdown(table: pd.DataFrame) -> str:
    """A table in Markdown; numbers with two decimals, those that are missing blank."""

    def text(value: object) -> str:
        if isinstance(value, float | np.floating):
            if np.isnan(value):
                return ""
            return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
        return str(value).replace("|", "\\|")

    header = [str(column) for column in table.columns]
    lines = [header, ["---"] * len(header)]
    lines += [[text(value) for value in row] for row in table.itertuples(index=False)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _errors(group: pd.DataFrame, name: str) -> Array:
    return scores.errors(name, group[name].to_numpy(), group[f"{name}_true"].to_numpy())


def _outliers(group: pd.DataFrame) -> NDArray[np.bool_]:
    duration = float(group["duration"].iloc[0])
    return scores.is_outlier(_errors(group, "frequency"), duration)
