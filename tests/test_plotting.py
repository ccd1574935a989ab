from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sepprior.comparison import Measure
from sepprior.errors import SeppriorError
from sepprior.fidelity import Fidelity
from sepprior.plotting import envelope, plot_fidelity, plot_separation
from sepprior.plotting.style import extremes
from sepprior.result import Parameter, Separation

PNG = b"\x89PNG\r\n\x1a\n"


def separation(
    n_samples: int, *, frequency: float = 3.0, coherent: bool = True
) -> Separation:
    """A sinusoid at 100 Hz sample rate, with a gap of a tenth in the middle."""
    rng = np.random.default_rng(1)
    time = np.arange(n_samples) / 100
    signal = 1 + np.sin(2 * np.pi * frequency * time)
    noise = rng.standard_normal(n_samples)
    noise[n_samples // 2 : n_samples // 2 + n_samples // 10] = np.nan
    grid = np.linspace(0.5, 20, 50 + n_samples // 4)
    duration = n_samples / 100
    return Separation(
        parameters={
            "amplitude": Parameter(1.0, 0.1, (0.8, 1.2)),
            "frequency": Parameter(frequency, 0.01, (2.98, 3.02), "Hz"),
        },
        covariance=np.eye(2),
        sample_rate=100.0,
        measurement=signal + noise,
        signal=signal,
        coherent=0.3 + (np.cos(time) if coherent else 0.0 * time),
        whitened=noise,
        signal_band=np.full(n_samples, 0.1),
        spectrum_frequency=grid,
        spectrum_loglik=30 * np.sinc((grid - frequency) * duration) ** 2,
        baselines={
            "gls": {
                "amplitude": Parameter(1.1, 0.2, (0.7, 1.5)),
                "frequency": Parameter(frequency - 0.02, 0.02, (2.94, 3.02), "Hz"),
            }
        },
        status="converged",
        diagnostics={"detected": True, "method": "specgan"},
        prior_info={},
    )


def panel(figure, title: str):
    return next(a for a in figure.axes if a.get_title("left").startswith(title))


@pytest.mark.parametrize(
    ("y", "bins"),
    [
        (np.sin(np.arange(10_001)), 100),
        (np.random.default_rng(0).standard_normal(4_321), 50),
        (np.arange(300.0), 100),
    ],
)
def test_envelope_keeps_the_extremes_of_every_run(y, bins):
    x = np.arange(len(y)) / 7
    short_x, short_y = envelope(x, y, bins=bins)
    assert len(short_y) <= 2 * bins
    assert np.all(np.diff(short_x) >= 0)
    width = -(-len(y) // bins)
    for start in range(0, len(y), width):
        run = slice(start, start + width)
        inside = (short_x >= x[run][0]) & (short_x <= x[run][-1])
        assert short_y[inside].min() == y[run].min()
        assert short_y[inside].max() == y[run].max()


def test_envelope_of_a_single_spike_and_of_gaps():
    y = np.zeros(100_000)
    y[77_777] = 9.0
    y[5_000:15_000] = np.nan
    x, short = envelope(np.arange(100_000), y, bins=200)
    assert x[np.nanargmax(short)] == 77_777
    assert np.isnan(short[(x > 5_500) & (x < 14_500)]).all()
    assert np.isfinite(short[x > 15_500]).all()


def test_a_long_curve_is_worked_out_in_pieces(monkeypatch):
    y = np.random.default_rng(0).standard_normal(4_321)
    whole = extremes(lambda part: y[part], len(y), bins=50)
    asked = []

    def piece(part):
        asked.append(part)
        return y[part]

    monkeypatch.setattr("sepprior.plotting.style._SAMPLES_AT_ONCE", 1000)
    again = extremes(piece, len(y), bins=50)
    assert len(asked) == 5
    for now, then in zip(again, whole, strict=True):
        np.testing.assert_array_equal(now, then)


def test_short_curves_are_left_alone():
    x, y = np.arange(50), np.arange(50.0)
    assert envelope(x, y, bins=25)[1] is y


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n_samples", [16, 200_000])
def test_labelled_panels(n_samples, tmp_path):
    backend = matplotlib.get_backend(auto_select=False)
    path = tmp_path / "figure.png"
    figure = plot_separation(separation(n_samples), path)
    assert path.read_bytes()[:8] == PNG
    assert panel(figure, "Measurement").get_ylabel() == "data units"
    assert panel(figure, "Noise").get_xlabel() == "time (s)"
    assert panel(figure, "Likelihood").get_xlabel() == "frequency (Hz)"
    assert panel(figure, "What is left").get_xlabel() == "standard deviations"
    assert figure.get_suptitle() == (
        "Signal detected; error bars 2 times smaller than least squares"
    )
    written = figure.texts[-1].get_text()
    assert "amplitude 1.00 ± 0.10" in written and "status: converged" in written
    assert all(len(line.get_xdata()) <= 3_000 for a in figure.axes for line in a.lines)
    assert matplotlib.get_backend(auto_select=False) == backend


def test_long_records_get_a_close_up_and_short_ones_do_not():
    def close_ups(n_samples: int, frequency: float) -> int:
        figure = plot_separation(separation(n_samples, frequency=frequency))
        return sum(a.get_title("left") == "Close-up" for a in figure.axes)

    assert close_ups(100, 1.5) == 0
    assert close_ups(5_000, 3.0) == 2


def test_close_up_avoids_the_gap():
    result = separation(5_000)
    figure = plot_separation(result)
    axes = next(a for a in figure.axes if a.get_title("left") == "Close-up")
    measured = axes.lines[0]
    assert measured.get_label() == "measurement"
    assert np.isfinite(measured.get_ydata()).all()


def test_band_holds_95_percent():
    figure = plot_separation(separation(100))
    (band,) = panel(figure, "Measurement").collections
    height = np.ptp(band.get_paths()[0].vertices[:, 1]) - 2.0
    # 100 samples at 3 Hz do not quite touch both extremes of the sinusoid.
    np.testing.assert_allclose(height, 0.392, atol=0.02)


def test_error_bars_stand_beside_those_of_least_squares():
    figure = plot_separation(separation(100), truth={"frequency": 3.01, "other": 1.0})
    bars = panel(figure, "Answer")
    assert [t.get_text() for t in bars.get_yticklabels()] == ["amplitude", "frequency"]
    # Of each parameter the answer and least squares, in errors of the latter, then
    # the truth that is known.
    points = [float(c.lines[0].get_xdata()[0]) for c in bars.containers]
    np.testing.assert_allclose(points, [0.0, 0.5, 0.0, -1.0, 0.5])
    spans = [np.ptp(c.lines[2][0].get_segments()[0][:, 0]) for c in bars.containers[:4]]
    np.testing.assert_allclose(spans, [1.0, 2.0, 1.0, 2.0])
    labels = bars.get_legend_handles_labels()[1]
    assert labels == ["answer", "least squares"]


def test_coherent_part_is_drawn_only_if_there_is_one():
    with_part = panel(plot_separation(separation(100)), "Noise")
    assert len(with_part.lines) == 2
    coherent = with_part.lines[1].get_ydata()
    expected = 0.3 + np.cos(np.arange(100) / 100)
    measured = np.isfinite(coherent)
    np.testing.assert_allclose(coherent[measured], expected[measured])
    without = plot_separation(separation(100, coherent=False))
    assert len(panel(without, "Noise").lines) == 1


def test_fitted_frequency_is_marked():
    axes = panel(plot_separation(separation(300)), "Likelihood")
    marks = [line for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert [line.get_xdata()[0] for line in marks] == [3.0]


def test_components_and_missing_errors_are_drawn():
    single = separation(300)
    fits = {
        "frequency_1": Parameter(3.0, float("nan"), (float("nan"),) * 2, "Hz"),
        "frequency_2": Parameter(7.0, 0.1, (6.8, 7.2), "Hz"),
    }
    result = Separation(**{**vars(single), "parameters": fits})
    axes = panel(plot_separation(result), "Likelihood")
    marks = [line for line in axes.lines if len(set(line.get_xdata())) == 1]
    assert [line.get_xdata()[0] for line in marks] == [3.0, 7.0]


def test_a_batch_has_to_be_chosen_from():
    result = separation(100)
    batch = Separation(**{**vars(result), "measurement": np.zeros((3, 100))})
    with pytest.raises(SeppriorError, match=r"batch of 3 .* result.select"):
        plot_separation(batch)


def fidelity(generated_scale: float) -> Fidelity:
    rng = np.random.default_rng(2)
    n_samples, n_bins = 128, 65
    spectrum = np.full(n_bins, 2.0)
    error = abs(generated_scale - 1)
    return Fidelity(
        prior_name="gaussian",
        n_windows=50,
        window=n_samples,
        sample_rate=10.0,
        measures={"sd": Measure("sd / real sd", error, 0.01, 0.05, "too loud")},
        nll=1.0,
        nll_gaussian=1.0,
        nll_gain=0.0,
        nll_gain_stderr=0.0,
        curves={
            "frequency": np.fft.rfftfreq(n_samples, 0.1),
            "psd_real": spectrum,
            "psd_generated": generated_scale**2 * spectrum,
            "psd_floor_ratio": np.ones(n_bins),
            "lag": np.arange(n_bins) / 10,
            "autocorrelation_real": np.ones(n_bins),
            "autocorrelation_generated": np.ones(n_bins),
            "amplitude": np.linspace(-3, 3, 40),
            "amplitude_density_real": np.ones(40),
            "amplitude_density_generated": np.zeros(40),
            "time": np.arange(n_samples) / 10,
            "examples_real": rng.standard_normal((3, n_samples)),
            "examples_generated": generated_scale * rng.standard_normal((3, n_samples)),
        },
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [2.0, 0.0])
def test_fidelity_figure(scale, tmp_path):
    path = tmp_path / "card.png"
    figure = plot_fidelity(fidelity(scale), None if scale else path)
    assert scale or path.read_bytes()[:8] == PNG
    titles = [a.get_title("left") for a in figure.axes]
    for title in (
        "power spectral density",
        "autocorrelation",
        "amplitude distribution",
        "real windows",
        "generated windows",
        "real spectrogram",
        "generated spectrogram",
        "measures",
    ):
        assert title in titles
    ratio = next(a for a in figure.axes if a.get_ylabel() == "ratio (dB)")
    if scale:
        np.testing.assert_allclose(
            ratio.lines[1].get_ydata(), 20 * np.log10(scale), atol=1e-9
        )


@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e4])
def test_a_picture_is_drawn_once_with_nothing_on_top_of_each_other(
    scale, tmp_path, monkeypatch
):
    drawn = []
    draw = Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda *a: drawn.append(1) or draw(*a))
    result = separation(2000)
    for name in ("measurement", "signal", "signal_band", "coherent"):
        scaled = -scale * getattr(result, name)
        object.__setattr__(result, name, scaled)
    figure = plot_separation(result, tmp_path / "figure.png")
    assert len(drawn) == 1 and figure.get_layout_engine() is None
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes.extend(text.get_window_extent(renderer) for text in figure.texts)
    assert all(figure.bbox.count_contains(box.corners()) == 4 for box in boxes)
    assert all(not a.overlaps(b) for a, b in combinations(boxes, 2))
