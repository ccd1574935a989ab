"""A benchmark run as one self-contained HTML page, for screen and for print."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd

from sepprior import __version__
from sepprior.benchmark import figures
from sepprior.benchmark.scenarios import Cell, make_trials
from sepprior.benchmark.tables import CELL, compare
from sepprior.plotting.style import GREY, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --grey: #7d8590; --page: #ffffff;
  --line: #d8dee4; --soft: #f6f8fa; --good: #d3f0dc; --bad: #fbdcd3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --grey: #8b949e;
  --page: #0d1117; --line: #30363d; --soft: #161b22; --good: #14401f; --bad: #53221a; }}
@media print { :root { --ink: #000; --grey: #666; --page: #fff; --line: #ccc;
  --soft: #f4f4f4; --good: #d3f0dc; --bad: #fbdcd3; } body { font-size: 9pt; }
  nav { display: none; } main { max-width: none; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; }
  .wide { overflow: visible; } table { font-size: 6.5pt; } }
@page { size: A4 landscape; margin: 12mm; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
main { max-width: 1180px; margin: 0 auto; padding: 1.5rem; }
h1 { margin: 0 0 .3rem; font-size: 1.8rem; } h2 { margin: 2.2rem 0 .4rem; }
p { max-width: 78ch; } code { font-size: .88em; }
pre { background: var(--soft); padding: .7rem 1rem; border-radius: 6px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
nav a { margin-right: 1.1em; } a { color: inherit; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; margin: .6rem 0; }
th, td { padding: .22rem .5rem; border-bottom: 1px solid var(--line); text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--page); }
td.text { text-align: left; white-space: normal; }
td.good { background: var(--good); } td.bad { background: var(--bad); }
figure { margin: .8rem 0; } figure svg { width: 100%; height: auto; display: block; }
"""


def report(
    rows: pd.DataFrame,
    table: pd.DataFrame,
    cells: Mapping[str, Cell],
    *,
    seed: int,
    missing: Sequence[tuple[str, str, str]],
    how: Mapping[str, str],
    command: str,
    reference: str,
) -> str:
    """The page.

    Args:
        rows: The rows of a run.
        table: Their `summary`.
        cells: The cells by the name of their scenario and their duration, joined by a
            blank, to draw examples from.
        seed: Key of the trials.
        missing: Cell, method and reason of what was not run.
        how: What each classical method does.
        command: The command that made the run.
        reference: Method that the others are held against.
    """
    colours = figures.shown_methods(rows, list(how))
    priors = [name for name in colours if name not in how]
    most = int(table["trials"].to_numpy().max())
    parts = [
        "<h1>sepprior benchmark</h1>",
        f"<p>Version {__version__}, {most} trials per cell, made with</p>",
        f"<pre>{html.escape(command)}</pre>",
        "<nav>" + "".join(f'<a href="#{k}">{v}</a>' for k, v in _SECTIONS) + "</nav>",
        _heading("accuracy"),
        "<p>RMS error over the Cramér-Rao bound of Gaussian noise with the same "
        "spectrum, amplitude / frequency, strong signals without outliers. Green: "
        f"better than <code>{reference}</code> in the same trials, red: worse (95 % "
        "paired bootstrap of the amplitude error).</p>",
        _accuracy(rows, table, reference),
        *_learned(table),
        "<p>Share of outliers (frequency off by more than 0.5 / T), strong / weak, "
        "with their 95 % intervals:</p>",
        _grid(table, ("outliers", "outliers_weak"), {}, intervals=True),
        _heading("threshold"),
        "<p>All trials, outliers included. Where the frequency is lost the curve "
        "leaves the bound.</p>",
        _svg(figures.error_figure(rows, colours, "frequency"), "f"),
        _svg(figures.error_figure(rows, colours, "amplitude"), "a"),
        _heading("coverage"),
        "<p>Share of the intervals of the frequency that hold the truth, against the "
        "level they state. Above the diagonal error bars are too wide, below it too "
        "narrow; the band is the scatter of a correct method.</p>",
        _svg(figures.coverage_figure(rows, colours, "frequency"), "c"),
        "<p>Coverage of the 68 % intervals, amplitude / frequency / phase / bias. Red: "
        "at least one is surely not 68 %, its own 95 % interval being beside that.</p>",
        _coverage(table, tuple(f"{name}_68" for name in figures.PARAMETERS), 0.68),
        _heading("detection"),
        "<p>Share of the signals told from noise alone at 1 % false alarms.</p>",
        _svg(figures.detection_figure(rows, colours), "d"),
        _heading("speed"),
        "<p>Only methods that were run in every cell. To the left and below is better."
        "</p>",
        _svg(figures.speed_figure(table, colours), "s"),
        _heading("examples"),
        *_examples(rows, cells, seed, (priors or list(colours))[0]),
        _heading("methods"),
        _plain_table(
            pd.DataFrame(
                [
                    (name, how[name])
                    for name in dict.fromkeys(table["method"])
                    if name in how
                ],
                columns=["method", "what it does"],
            )
        ),
    ]
    if missing:
        parts += [
            "<h2>Not run</h2>",
            _plain_table(
                pd.DataFrame(list(missing), columns=["cell", "method", "reason"])
            ),
        ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>sepprior benchmark</title><style>{STYLE}</style></head>"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


_SECTIONS = (
    ("accuracy", "Accuracy"),
    ("threshold", "Error against amplitude"),
    ("coverage", "Coverage"),
    ("detection", "Detection"),
    ("speed", "Accuracy against time"),
    ("examples", "Examples"),
    ("methods", "Methods"),
)


def _heading(key: str) -> str:
    return f'<h2 id="{key}">{dict(_SECTIONS)[key]}</h2>'


def _accuracy(rows: pd.DataFrame, table: pd.DataFrame, reference: str) -> str:
    """The table of errors, with what is surely better or worse than the reference."""
    marks: dict[tuple[str, str, float], str] = {}
    groups = [
        group
        for _, group in rows.groupby(CELL, sort=False)
        if reference in set(group["method"])
    ]
    if groups:
        for row in compare(pd.concat(groups), reference).to_dict("records"):
            if row["parameter"] == "amplitude":
                key = (row["method"], row["scenario"], row["duration"])
                if row["high"] < 1:
                    marks[key] = "good"
                elif row["low"] > 1:
                    marks[key] = "bad"
    return _grid(table, ("amplitude", "frequency"), marks)


def _learned(table: pd.DataFrame) -> list[str]:
    """What learned scores promise, where there are any."""
    columns = ("amplitude_learned", "frequency_learned")
    known = table.dropna(subset=list(columns))
    if known.empty:
        return []
    return [
        "<p>What the score that a prior has learned promises, over the same bound:</p>",
        _grid(known, columns, {}),
    ]


def _coverage(table: pd.DataFrame, columns: tuple[str, ...], level: float) -> str:
    """The table of coverages, with the methods whose error bars do not hold."""
    marks: dict[tuple[str, str, float], str] = {}
    for row in table.to_dict("records"):
        if any(row[f"{c}_from"] > level or row[f"{c}_to"] < level for c in columns):
            marks[row["method"], row["scenario"], row["duration"]] = "bad"
    return _grid(table, columns, marks)


def _grid(
    table: pd.DataFrame,
    columns: tuple[str, ...],
    marks: Mapping[tuple[str, str, float], str],
    *,
    intervals: bool = False,
) -> str:
    """A row per method and a column per cell; the intervals below their values."""
    cells = cast(
        list[tuple[str, float]],
        list(dict.fromkeys(zip(table["scenario"], table["duration"], strict=True))),
    )
    indexed = {
        (row["method"], row["scenario"], row["duration"]): row
        for row in table.to_dict("records")
    }
    head = "".join(f"<th>{html.escape(s)}<br>{d:.3g} s</th>" for s, d in cells)
    lines = [f"<tr><th>method</th>{head}</tr>"]
    for method in dict.fromkeys(table["method"]):
        fields = []
        for scenario, duration in cells:
            key = (method, scenario, duration)
            row = indexed.get(key)
            text = "" if row is None else "/".join(_short(row[c]) for c in columns)
            if row is not None and intervals:
                ends = [
                    f"{_short(row[f'{c}_from'])}-{_short(row[f'{c}_to'])}"
                    for c in columns
                ]
                text += f"<br><small>{' / '.join(ends)}</small>"
            fields.append(f'<td class="{marks.get(key, "")}">{text}</td>')
        lines.append(f"<tr><td>{html.escape(method)}</td>{''.join(fields)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _short(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


def _plain_table(table: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(str(c))}</th>" for c in table.columns)
    lines = [
        "<tr>"
        + "".join(f'<td class="text">{html.escape(str(v))}</td>' for v in row)
        + "</tr>"
        for row in table.itertuples(index=False)
    ]
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _examples(
    rows: pd.DataFrame, cells: Mapping[str, Cell], seed: int, method: str
) -> list[str]:
    parts = [
        "<p>The first measurement of each cell with a medium amplitude, as "
        f"<code>{html.escape(method)}</code> separates it.</p>"
    ]
    for number, (key, group) in enumerate(rows.groupby(CELL, sort=False)):
        scenario, duration = cast(tuple[str, float], key)
        this = cells[f"{scenario} {duration:g}"]
        n = 1 + int(group["trial"].to_numpy().max())
        trials = make_trials(this.scenario, duration, n, seed)
        figure = figures.example_figure(trials, group, method)
        if figure is not None:
            parts.append(_svg(figure, f"e{number}"))
    return parts


def _svg(figure: Figure, key: str) -> str:
    """A figure as inline SVG whose ink follows the theme of the page.

    Args:
        figure: The figure.
        key: Makes the identifiers within the picture differ from those of the others.
    """
    import matplotlib

    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": key, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in ((INK, "var(--ink)"), (GREY, "var(--grey)")):
        text = text.replace(colour.lower(), variable).replace(colour, variable)
    for before in (' id="', "url(#", 'href="#'):
        text = text.replace(before, f"{before}{key}-")
    text = text.replace("font-family: 'DejaVu Sans'", "font-family: inherit")
    return f"<figure>{text}</figure>"
