"""Figures say what was measured: the numbers are read back from what was drawn."""

import io
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from intarsia.evaluation.landscape import GapPath, LossPath
from intarsia.evaluation.metrics import Evaluation
from intarsia.evaluation.theorem import Diagnosis
from intarsia.report import figures

PHONE = 358
"""Pixels that a page leaves a figure on a phone 390 wide."""
FOUND = Evaluation(
    tasks=("animals", "a name of many letters"),
    accuracy_matrix=((90.0,), (70.0, 55.0)),
    final_accuracy=62.5,
    final_forgetting=20.0,
    incremental_accuracy=(90.0, 62.5),
    average_incremental_accuracy=76.2,
    task_il_accuracy=80.0,
    images=40,
)
DIAGNOSIS = Diagnosis(
    tasks=("a", "b"),
    theta0_loss=1.0,
    composed_loss=0.7,
    module_losses=(0.8, 0.8),
    mean_module_loss=0.8,
    true_gap=0.1,
    predicted_gap=0.08,
    predicted_gaps={"diagonal": 0.08, "kfac": 0.09, "whole": 0.1},
    remainder=0.02,
    gradient_norm=0.5,
    gradient_norm_before=0.9,
    vector_norms=(1.0, 1.0),
    cosines=((1.0, 0.2), (0.2, 1.0)),
    cosine_to_composed=(0.77, 0.78),
    images=10,
)


def picture(figure: Figure) -> np.ndarray:
    """The pixels of a figure at half a column's width; it is not blank, and all its text can be read on a phone."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        panels = sum(axes.get_label() != "<colorbar>" for axes in figure.axes)  # a page's figures have one
        pixels = float(text.get_fontsize()) * PHONE / (72 * figure.get_figwidth() / panels)
        assert pixels >= 7.5 or not text.get_text(), (text.get_text(), pixels)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=72)
    pixels = np.asarray(Image.open(buffer).convert("L"))
    assert pixels.std() > 5
    return pixels


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def lines(axes: Axes) -> Mapping[str, tuple[list[float], list[float]]]:
    def numbers(values: object) -> list[float]:
        return [float(v) for v in np.asarray(values)]

    return {str(line.get_label()): (numbers(line.get_xdata()), numbers(line.get_ydata())) for line in axes.lines}


def test_accuracy_matrix_writes_every_accuracy_in_its_place() -> None:
    figure = figures.accuracy_matrix(FOUND)
    axes = figure.axes[0]
    assert [(t.get_position(), t.get_text()) for t in axes.texts] == [((0, 0), "90"), ((0, 1), "70"), ((1, 1), "55")]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["animals", "a name of m…"]
    picture(figure)


def test_curves_of_accuracy_are_those_of_the_methods_and_a_single_measure_is_a_point_at_the_end() -> None:
    curves = {f"m{i}": [90.0 - i, 80.0 - i] for i in range(11)} | {"joint": [70.0]}
    figure = figures.accuracy_by_task(curves)
    drawn = lines(figure.axes[0])
    assert drawn["m3"] == ([1.0, 2.0], [87.0, 77.0])
    assert drawn["joint"] == ([2.0], [70.0])
    drawn_as = figure.axes[0].lines
    looks = {(str(i.get_color()), str(i.get_marker()), i.get_linestyle()) for i in drawn_as}
    assert len(looks) == 12
    assert len({str(i.get_marker()) for i in drawn_as}) == 10
    picture(figure)


def test_alignment_has_the_cosines_and_below_them_those_with_the_composed_vector() -> None:
    figure = figures.alignment({"ITA": DIAGNOSIS, "IEL": DIAGNOSIS})
    assert texts(figure.axes[0]) == ["1.00", "0.20", "0.20", "1.00", "0.77", "0.78"]
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["ITA", "IEL"]
    picture(figure)


def test_times_are_means_over_tasks_stacked() -> None:
    figure = figures.times({"ita": [(1.0, 3.0), (3.0, 5.0)], "tmc": [(0.5, 6.0)]})
    widths = [[bar.get_width() for bar in group] for group in figure.axes[0].containers]  # pyright: ignore
    assert widths == [[2.0, 0.5], [4.0, 6.0]]
    picture(figure)


def test_losses_are_drawn_beside_their_prediction() -> None:
    path = LossPath("to the mean", (0.0, 1.0), (1.0, 0.7), (1.0, 0.6), (1.0, 0.65))
    figure = figures.losses({"ITA": [path], "alpha = 0": [path]})
    drawn = lines(figure.axes[0])
    assert drawn["ITA measured"] == ([0.0, 1.0], [1.0, 0.7])
    assert drawn["alpha = 0 diagonal"] == ([0.0, 1.0], [1.0, 0.6])
    assert drawn["ITA whole Fisher"] == ([0.0, 1.0], [1.0, 0.65])
    low, high = figure.axes[0].get_ylim()
    assert low < 0.6  # the diagonal's end is in the picture
    assert high > 1.0
    picture(figure)
    far = replace(path, diagonal=(1.0, -50.0))
    assert figures.losses({"": [far]}).axes[0].get_ylim()[0] == pytest.approx(0.7 - 0.3 - 0.03)  # what was measured is


def test_gaps_strengths_and_editing_are_points_at_what_was_measured() -> None:
    path = GapPath((0.5, 1.0), (-0.01, 0.4), (0.05, 0.2), (0.1, 0.4))
    figure = figures.gaps({"ITA": path, "alpha = 0": path})
    drawn = lines(figure.axes[1])
    assert drawn["measured"] == ([0.5, 1.0], pytest.approx([-0.04, 0.4]))
    assert drawn["diagonal Fisher"] == ([0.5, 1.0], pytest.approx([0.2, 0.2]))
    assert drawn["whole Fisher"] == ([0.5, 1.0], pytest.approx([0.4, 0.4]))
    picture(figure)
    figure = figures.strengths({"ITA": [(1.0, 50.0), (0.0, 40.0), (0.1, 45.0)]})
    x, y = lines(figure.axes[0])["ITA"]
    assert (x, y) == (pytest.approx([0.01, 0.1, 1.0]), [40.0, 45.0, 50.0])
    picture(figure)
    rows = [{"how": "drop", "target_accuracy": None, "control_accuracy": 60.0}]
    figure = figures.editing({"ITA": rows})
    assert lines(figure.axes[0])["ITA: drop"] == ([60.0], [0.0])
    picture(figure)


def test_numbers_too_small_to_read_are_left_to_the_colours_and_long_legends_get_room() -> None:
    many = tuple(f"task{i:02}" for i in range(40))
    rows = tuple(tuple(50.0 for _ in range(i + 1)) for i in range(40))
    found = replace(FOUND, tasks=many, accuracy_matrix=rows)
    assert texts(figures.accuracy_matrix(found).axes[0]) == []
    assert len(texts(figures.accuracy_matrix(replace(found, tasks=many[:10], accuracy_matrix=rows[:10])).axes[0])) == 55
    wide = figures.accuracy_by_task({f"a method of a rather long name {i}": [50.0, 40.0] for i in range(8)})
    short = figures.accuracy_by_task({f"m{i}": [50.0, 40.0] for i in range(8)})
    for figure in (wide, short):
        picture(figure)
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
        assert figure.axes[0].get_window_extent().height > 0.5 * figures.HEIGHT * figure.dpi
    assert wide.get_figheight() > short.get_figheight()
