"""Tables of the scores, from the rows of a benchmark run."""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sepprior.benchmark import scores
from sepprior.benchmark.noise import Array
from sepprior.benchmark.settings import PARAMETERS
from sepprior.errors import SeppriorError

CELL = ["scenario", "duration"]
FALSE_ALARMS = 0.01
"""Rate of false alarms at which detection is compared."""
DETECTION_SPLIT = 0.5
"""Detection is tabulated for amplitudes below this share of a strong one."""


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores of every method in every cell, one row each.

    Columns, with one of each kind per parameter:
        `amplitude`, ...: RMS error over the bound in the strong trials, and the ends of
        its 95 % bootstrap interval in `amplitude_from`, `amplitude_to`.
        `amplitude_weak`, ...: the same in the weak trials.
        `outliers`, `outliers_weak`: share of the strong and weak trials whose frequency
        is off by more than 0.5 / T. They are left out of the RMS errors.
        `amplitude_68`, `amplitude_95`, ...: coverage of the 68 % and 95 % intervals,
        over all trials with a signal.
        `outliers_from`, `outliers_to`, `amplitude_68_from`, ...: ends of the 95 %
        interval of each of these shares (Clopper and Pearson).
        `amplitude_learned`, ...: RMS in the strong trials of the standard
        deviation that the score a prior has learned promises, over the bound.
        `detected`: share of the trials with an amplitude below half of a strong one
        that are told from noise at 1 % false alarms.
        `false_alarms`: share of the trials without a signal for which the method
        itself states a false-alarm probability below 1 %.
        `ms`, `ms_alone`, `training_s`: times per measurement in a batch and on its own
        (ms), and of the training (s).

    Args:
        rows: What `run_benchmark` returned.
    """
    table = []
    for key, group in rows.groupby([*CELL, "method"], sort=False):
        scenario, duration, method = cast(tuple[str, float, str], key)
        noise, group = split(group)
        strong = is_strong(group)
        outlier = outliers(group)
        row = {
            "scenario": scenario,
            "duration": duration,
            "method": method,
            "trials": len(group),
            "trials_strong": int(strong.sum()),
        }
        for suffix, part in (("", strong), ("_weak", ~strong)):
            used = part & ~outlier
            ratios = np.stack([over_bound(group, name)[used] for name in PARAMETERS])
            ends = scores.rms_intervals(ratios**2)
            for name, ratio, (low, high) in zip(PARAMETERS, ratios, ends, strict=True):
                row[name + suffix] = scores.rms_ratio(ratio, np.ones(ratio.size))
                row[f"{name}{suffix}_from"] = float(low)
                row[f"{name}{suffix}_to"] = float(high)
            if not suffix:
                for name in PARAMETERS:
                    both = [f"{name}_learned", f"{name}_bound"]
                    learned, bound = group.loc[strong, both].to_numpy(dtype=float).T
                    row[f"{name}_learned"] = scores.rms_ratio(learned, bound)
            lost = float(outlier[part].mean()) if part.any() else float("nan")
            row |= _rate("outliers" + suffix, lost, int(part.sum()))
        for name in PARAMETERS:
            stderr = group[f"{name}_stderr"].to_numpy()
            inside = scores.coverage(errors(group, name), stderr, 0.68)
            row |= _rate(f"{name}_68", inside, len(group))
            inside = scores.interval_coverage(
                name,
                group[name].to_numpy(),
                group[f"{name}_true"].to_numpy(),
                group[[f"{name}_low", f"{name}_high"]].to_numpy(),
            )
            row |= _rate(f"{name}_95", inside, len(group))
        row |= _detection(group, noise)
        row["ms"] = 1e3 * group["seconds"].iloc[0]
        row["ms_alone"] = 1e3 * group["seconds_alone"].iloc[0]
        row["training_s"] = group["training_seconds"].iloc[0]
        table.append(row)
    return pd.DataFrame(table)


def _rate(name: str, share: float, trials: int) -> dict[str, float]:
    """A share of the trials and the ends of its 95 % interval, as columns."""
    hits = round(share * trials) if trials else 0
    low, high = scores.rate_interval(hits, trials)
    return {name: share, f"{name}_from": low, f"{name}_to": high}


def _detection(group: pd.DataFrame, noise: pd.DataFrame) -> dict[str, float]:
    faint = relative_amplitude(group) < DETECTION_SPLIT
    nothing = {"detected": float("nan"), "false_alarms": float("nan")}
    if noise.empty or not faint.any():
        return nothing
    found = scores.detected(
        group["detection"].to_numpy(), noise["detection"].to_numpy(), FALSE_ALARMS
    )
    stated = noise["false_alarm"].to_numpy()
    stated = stated[~np.isnan(stated)]
    alarms = float(np.mean(stated < FALSE_ALARMS)) if len(stated) else float("nan")
    return {"detected": float(found[faint].mean()), "false_alarms": alarms}


def compare(rows: pd.DataFrame, reference: str = "gls_scipy") -> pd.DataFrame:
    """RMS error of every method over that of a reference, with 95 % intervals.

    Paired: only strong trials that both were given and that are outliers of neither,
    and a bootstrap that draws both methods' errors together.

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
            name: split(part)[1].sort_values("trial")
            for name, part in group.groupby("method", sort=False)
        }
        if reference not in methods:
            raise SeppriorError(
                f"reference method {reference!r} was not run on {scenario}"
                f"{duration:g}: expected one of {', '.join(map(str, methods))}"
            )
        for method, part in methods.items():
            if method == reference:
                continue
            # Trial i is the same for both; a slow method has fewer of them.
            n = min(len(part), len(methods[reference]))
            part, base = part.iloc[:n], methods[reference].iloc[:n]
            used = is_strong(base) & ~outliers(base) & ~outliers(part)
            for name in PARAMETERS:
                ratio = scores.paired_ratio(
                    errors(part, name)[used],
                    errors(base, name)[used],
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


def grid(
    table: pd.DataFrame, columns: tuple[str, ...], *, intervals: bool = False
) -> pd.DataFrame:
    """The summary with a method per row and a cell per column, such as "1.02/0.98".

    Args:
        table: From `summary`.
        columns: Columns of the summary to put into each field.
        intervals: Put the ends of its 95 % interval behind each, "0.62 (0.57-0.67)".
    """
    texts = []
    for column in columns:
        text = table[column].map("{:.2f}".format)
        if intervals:
            low, high = (table[f"{column}_{end}"] for end in ("from", "to"))
            ends = low.map(" ({:.2f}-".format) + high.map("{:.2f})".format)
            text = text.where(table[column].isna(), text + ends)
        texts.append(text)
    fields = pd.concat(texts, axis=1).agg("/".join, axis=1).str.replace("nan", "-")
    cells = [
        f"{scenario} {duration:g} s"
        for scenario, duration in zip(table["scenario"], table["duration"], strict=True)
    ]
    flat = pd.DataFrame({"method": table["method"], "cell": cells, "field": fields})
    wide = flat.pivot(index="method", columns="cell", values="field").fillna("")
    wide = wide.loc[list(dict.fromkeys(flat["method"])), list(dict.fromkeys(cells))]
    return wide.reset_index().rename_axis(columns=None)


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


# --- parts of the rows --------------------------------------------------------------


def over_bound(rows: pd.DataFrame, name: str) -> Array:
    """Error of a parameter over its bound, (n,)."""
    return errors(rows, name) / rows[f"{name}_bound"].to_numpy()


def split(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of noise alone, and those with a signal."""
    signal = (rows["amplitude_true"] > 0).to_numpy()
    return rows.loc[~signal], rows.loc[signal]


def relative_amplitude(rows: pd.DataFrame) -> Array:
    """True amplitude in units of the smallest strong one, (n,)."""
    return (rows["amplitude_true"] / rows["amplitude_strong"]).to_numpy()


def is_strong(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are of strong trials, (n,)."""
    return relative_amplitude(rows) >= 1


def errors(rows: pd.DataFrame, name: str) -> Array:
    """Errors of a parameter, (n,)."""
    return scores.errors(name, rows[name].to_numpy(), rows[f"{name}_true"].to_numpy())


def outliers(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows found another peak, (n,)."""
    return scores.is_outlier(errors(rows, "frequency"), float(rows["duration"].iloc[0]))
