"""Tables and plots show the numbers they are given."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from longwave.evaluation.kinds import Loss, Share
from longwave.evaluation.results import Curve, Grid
from longwave.evaluation.statistics import Interval
from longwave.report.plots import LABEL_GAP, PAPER, curve_figure, save, spread
from longwave.report.tables import curve_table, grid_table, tasks_table
from longwave.report.views import Maps

LOSS, SHARE = Loss("Perplexity", "perplexity", "ppl"), Share("Passkey retrieval", "passkeys retrieved", "rate")
LENGTHS = (128, 256, 512)


def curve(label: str, values: list[float], runs: int = 1, half: float = 0.1) -> Curve:
    return Curve(label, LENGTHS, tuple(Interval(v, v - half, v + half) for v in values), runs)


def render(table: object) -> list[str]:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return [" ".join(line.split()) for line in console.export_text().splitlines() if line.strip()]


def test_perplexity_table() -> None:
    lines = render(curve_table([curve("ntk", [3.14159, 12.3456, 1234.5]), curve("clex", [3, 4, 5], runs=3)], LOSS, 128))
    assert lines[0] == "1x 2x 4x"
    assert lines[1] == "method 128 256 512"
    assert "ntk 3.14 ±0.10 12.3 ±0.1 1,234 ±0.10" in lines
    assert "clex (3 runs) 3.00 ±0.10 4.00 ±0.10 5.00 ±0.10" in lines


def test_a_single_window_has_no_half_width() -> None:
    assert "ntk 3.00 4.00 5.00" in render(curve_table([curve("ntk", [3, 4, 5], half=0)], LOSS, 128))


def test_rows_of_other_lengths_leave_a_gap_in_a_table() -> None:
    short = Curve("yarn", (128, 512), (Interval(2, 2, 2), Interval(9, 9, 9)))
    lines = render(curve_table([short, curve("ntk", [3, 4, 5], half=0)], LOSS, 128))
    assert lines[1] == "method 128 256 512"
    assert "yarn 2.00 – 9.00" in lines


def trained_on(length: int | None, label: str, half: float = 0.1) -> Curve:
    return replace(curve(label, [3.0, 4.0, 5.0], half=half), trained=length)


def test_a_table_names_the_longest_window_and_marks_what_lies_beyond() -> None:
    rows = [trained_on(256, "tuned"), trained_on(128, "ntk", half=0), trained_on(None, "old"), trained_on(512, "long")]
    lines = render(curve_table(rows, LOSS, 128))
    assert "tuned ≤2x 3.00 ±0.10 4.00 ±0.10 5.00*±0.10" in lines
    assert "ntk ≤1x 3.00 4.00* 5.00*" in lines
    assert "old ≤? 3.00 ±0.10 4.00 ±0.10 5.00 ±0.10" in lines
    assert "long ≤4x 3.00 ±0.10 4.00 ±0.10 5.00 ±0.10" in lines
    assert "≤4x: longest window trained on; * beyond it: extrapolation" in " ".join(lines)
    assert not any("extrapolation" in line for line in render(curve_table([curve("old", [3, 4, 5])], LOSS, 128)))


def test_a_grid_marks_the_lengths_beyond() -> None:
    grid = Grid("needle", (128, 256), (0.0, 1.0), ((1.0, 0.5), (1.0, 0.5)), trained=128)
    lines = render(grid_table(grid, 128))
    assert lines[0] == "needle ≤1x"
    assert lines[1] == "1x 2x*"
    assert "extrapolation" in Maps([grid], SHARE, 128).legend
    assert Maps([replace(grid, trained=None)], SHARE, 128).legend == ""


def test_tasks_name_the_longest_window() -> None:
    row = {"task": "niah", "metric": "acc", "value": 0.5, "samples": 4}
    assert "longest window trained on: 1,024 tokens" in " ".join(render(tasks_table([{**row, "trained_length": 1024}])))
    assert "longest window trained on: unknown" in " ".join(render(tasks_table([{**row, "trained_length": None}])))
    assert not any("window" in line for line in render(tasks_table([row])))


@pytest.mark.parametrize(("trained", "hollow"), [(128, 2), (256, 1), (512, 0), (None, 0)])
def test_a_plot_has_hollow_signs_beyond_the_longest_window(trained: int | None, hollow: int) -> None:
    figure = curve_figure([trained_on(trained, "row"), trained_on(512, "other")], LOSS, original_length=128)
    (axes,) = figure.axes
    signs = [line for line in axes.lines if line.get_markerfacecolor() == PAPER]
    assert sum(len(line.get_xdata()) for line in signs) == hollow
    assert all(length > 128 for line in signs for length in line.get_xdata())
    said = [text.get_text() for text in figure.texts]
    unknown = " (not known: row)" if trained is None else ""
    assert said == [f"hollow: longer than the longest window that the row was trained on{unknown}"]


def test_a_plot_of_older_records_says_nothing_of_windows() -> None:
    figure = curve_figure([curve("row", [3, 4, 5])], LOSS, original_length=128)
    assert figure.texts == [] and all(line.get_markerfacecolor() != PAPER for line in figure.axes[0].lines)


def test_passkey_table() -> None:
    lines = render(curve_table([curve("ntk", [0.9, 0.5, 0.1])], SHARE, 128))
    assert "ntk 90 % 80–100 50 % 40–60 10 % 0–20" in lines


@pytest.mark.parametrize("count", [1, 4, 16])
@pytest.mark.parametrize("scale", [1.001, 1.3, 50, 1e6])
def test_plots_of_any_range_and_number_of_rows(tmp_path: Path, count: int, scale: float) -> None:
    curves = [curve(f"method {i}", [3, 3 * scale, 3 + i * scale], runs=1 + i % 3) for i in range(count)]
    path = save(curve_figure(curves, LOSS, original_length=128, title="Title", subtitle="about"), tmp_path / "p.png")
    with Image.open(path) as picture:
        assert picture.size == (1200, 720)
        assert min(picture.convert("L").getextrema()) < 60  # there is ink


def test_passkey_plot_and_trained_length_that_was_not_measured(tmp_path: Path) -> None:
    path = save(curve_figure([curve("ntk", [1.0, 0.5, 0.0], half=0.0)], SHARE, original_length=64), tmp_path / "p.svg")
    text = path.read_text()
    assert "<svg" in text


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20).map(sorted))
def test_labels_never_overlap_and_keep_their_order(wanted: list[float]) -> None:
    places = spread(wanted, LABEL_GAP)
    assert all(b - a > LABEL_GAP * 0.999 for a, b in pairwise(places))
    assert sum(places) == pytest.approx(sum(wanted))


def test_labels_that_fit_stay_where_they_are() -> None:
    assert spread([0.1, 0.3, 0.9], 0.05) == pytest.approx([0.1, 0.3, 0.9])
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
