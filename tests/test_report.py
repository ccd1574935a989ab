"""The report of a benchmark run: complete, self-contained, with the right marks."""

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from sepprior.benchmark import WITHOUT_PRIOR, cell, run_benchmark, summary
from sepprior.benchmark.figures import (
    coverage_figure,
    detection_figure,
    error_figure,
    shown_methods,
    speed_figure,
)
from sepprior.benchmark.report import report

VOID = {"meta", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """Collects identifiers and references, and checks that tags are closed."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references = [], [], []

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href"):
                self.references.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def rows():
    methods = ["gls_scipy", "oracle", "curve_fit"]
    return run_benchmark(["telegraph", "pump"], methods, (10.0,), trials=40)


@pytest.fixture(scope="module")
def page(rows):
    return report(
        rows,
        summary(rows),
        {f"{name} 10": cell(name, 10.0) for name in ("telegraph", "pump")},
        seed=0,
        missing=[("pump10", "celerite2", "celerite2 is not installed")],
        how={name: each.how for name, each in WITHOUT_PRIOR.items()},
        command="sepprior benchmark --scenario '<telegraph>'",
        reference="gls_scipy",
    )


def test_page_is_whole_and_needs_nothing_else(page):
    parsed = Page()
    parsed.feed(page)
    parsed.close()
    assert not parsed.open
    assert len(set(parsed.ids)) == len(parsed.ids)
    for reference in parsed.references:
        assert reference.startswith("#") and reference[1:] in parsed.ids
    for address in re.findall(r"url\(([^)]*)\)", page):
        assert address[1:] in parsed.ids
    assert "<script" not in page and "@import" not in page
    assert "&lt;telegraph&gt;" in page and "<telegraph>" not in page
    assert "celerite2 is not installed" in page
    assert page.count("<svg") == 5 + 2  # five figures, an example of each cell


def test_ink_follows_the_theme(page):
    assert "prefers-color-scheme: dark" in page and "var(--ink)" in page
    body = page[page.index("<body") :]
    assert "#333333" not in body and "#8c8c8c" not in body.lower()


def test_marks_say_what_is_surely_better_or_worse(page):
    """In `telegraph` the oracle is 6 times better; in `pump` curve_fit is worse."""
    table = page[page.index('id="accuracy"') : page.index("Share of outliers")]
    lines = {
        line.split("<td>")[1].split("<")[0]: re.findall(r'class="(\w*)"', line)
        for line in table.split("</tr>")
        if "<td>" in line
    }
    assert lines["gls_scipy"] == ["", ""]
    assert lines["oracle"][0] == "good"
    assert lines["curve_fit"][1] == "bad"


def test_shares_stand_with_their_intervals(page):
    table = page[page.index("Share of outliers") : page.index('id="threshold"')]
    for text in re.findall(r"<td class=\"\">(.*?)</td>", table):
        shares, ends = text.removesuffix("</small>").split("<br><small>")
        for share, pair in zip(shares.split("/"), ends.split(" / "), strict=True):
            low, high = map(float, pair.split("-"))
            assert low <= float(share) <= high and high - low > 0.05  # of 40 trials
    table = page[page.index("Coverage of the 68 %") : page.index('id="detection"')]
    lines = {line.split("<")[0]: line for line in table.split("<tr><td>")[1:]}
    # Least squares that takes noise with memory for white is sure of too much.
    assert 'class="bad"' in lines["curve_fit"]
    assert 'class="bad"' not in lines["oracle"]


def test_curves_show_the_numbers(rows):
    colours = shown_methods(rows, list(WITHOUT_PRIOR))
    assert list(colours) == ["gls_scipy", "oracle", "curve_fit"]
    figure = error_figure(rows, colours, "amplitude")
    curve = figure.axes[0].lines[1].get_ydata()  # the oracle in telegraph
    assert np.all(np.asarray(curve) < 0.5)
    figure = coverage_figure(rows, {"oracle": "k"}, "frequency")
    covered = np.asarray(figure.axes[0].lines[0].get_ydata())
    assert covered[0] == 0 and np.all(np.diff(covered) >= 0)
    # 40 trials: 4 standard errors of a rate of one half.
    assert covered[50] == pytest.approx(0.5, abs=0.32)


def test_few_trials_leave_the_panels_empty(rows):
    few = rows[rows["trial"] < 5]
    colours = shown_methods(few, list(WITHOUT_PRIOR))
    for figure in (
        error_figure(few, colours, "frequency"),
        detection_figure(few, colours),
        speed_figure(summary(few), colours),
    ):
        figure.canvas.draw()


def page_of(rows):
    """The page of a run of which nothing is missing."""
    return report(
        rows,
        summary(pd.DataFrame(rows)),
        {f"{name} 10": cell(name, 10.0) for name in ("telegraph", "pump")},
        seed=0,
        missing=[],
        how={name: each.how for name, each in WITHOUT_PRIOR.items()},
        command="sepprior benchmark",
        reference="gls_scipy",
    )


def test_page_of_a_method_that_the_figures_do_not_show_elsewhere(rows):
    alone = rows[rows["method"] == "oracle"].assign(method="esprit")
    assert list(shown_methods(alone, list(WITHOUT_PRIOR))) == ["esprit"]
    text = page_of(alone)
    assert "esprit" in text


def test_names_of_methods_that_are_alike_do_not_overlap():
    names = ["one", "another", "a third", "far away"]
    table = pd.DataFrame({"method": names, "scenario": "white", "duration": 1.0})
    table = table.assign(ms=[10.0, 10.1, 10.2, 1000.0], amplitude=0.5, frequency=0.5)
    figure = speed_figure(table, {})
    figure.draw_without_rendering()
    texts = figure.axes[0].texts
    assert {text.get_text() for text in texts} == set(names)
    # Of the words, without the line that leads to the point.
    boxes = [Text.get_window_extent(text) for text in texts]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_narrow_intervals_fall_below_the_diagonal(rows):
    half = rows[rows["method"] == "oracle"].copy()
    half["frequency_stderr"] /= 4
    figure = coverage_figure(half, {"oracle": "k"}, "frequency")
    covered = np.asarray(figure.axes[0].lines[0].get_ydata())
    assert covered[68] < 0.45


def test_page_of_a_run_without_the_reference(rows):
    alone = rows[rows["method"] == "oracle"]
    text = page_of(alone)
    assert 'class="good"' not in text and "Not run" not in text
