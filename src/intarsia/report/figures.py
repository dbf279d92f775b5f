"""Figures: readable on a phone, and by the colour-blind (Okabe and Ito's colours, and a shape besides).

Each takes what was measured and returns a matplotlib figure; nothing is measured here.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from intarsia.evaluation.landscape import GapPath, LossPath
from intarsia.evaluation.metrics import Evaluation
from intarsia.evaluation.theorem import Diagnosis

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F", "#8B6C42", "#5D3A9B")


MARKERS = "osD^vP*Xh<"


WIDTH, HEIGHT = 4.6, 3.2


DPI = 160


TEXT = 9
"""Points; a phone, 390 pixels wide, shows a figure of ``WIDTH`` at 1.08 pixels per point."""


SMALLEST = 7
"""Points of the numbers in a grid; where they would have to be smaller, its colours alone are drawn."""


LONG = 12
"""Names of more letters are cut on an axis."""


LINE = 62
"""Letters that a figure is wide."""


def accuracy_matrix(found: Evaluation) -> Figure:
    """Accuracy on every task after every task, in percent, as a lower triangle."""
    tasks, rows = found.tasks, found.accuracy_matrix
    grid = np.full((len(rows), len(tasks)), np.nan)
    for i, row in enumerate(rows):
        grid[i, : len(row)] = row
    figure, axes = _figure(height=HEIGHT + 0.5)
    image = axes.imshow(grid, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    _numbers(axes, rows, "{:.0f}", lambda value: value < 60)
    _name(axes, tasks)
    axes.set_yticks(range(len(rows)), list(map(_short, tasks[len(tasks) - len(rows) :])), size=TEXT)
    axes.set_ylabel("after learning")
    axes.set_xlabel("accuracy on")
    figure.colorbar(image, label="%")
    return figure


def accuracy_by_task(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Accuracy on the classes seen, after each task, method by method; one measured once is a point at the end."""
    figure, axes = _figure()
    longest = max(map(len, curves.values()))
    styles = list(zip(COLOURS, MARKERS, strict=True))
    for place, (name, curve) in enumerate(curves.items()):
        (colour, marker), again = styles[place % len(styles)], place >= len(styles)
        places = range(1, len(curve) + 1) if len(curve) > 1 else [longest]
        (line,) = axes.plot(places, curve, color=colour, marker=marker, markersize=4, label=name)
        if again:  # colours and shapes come a second time, hollow and dashed
            line.set(linestyle="--", markerfacecolor="w")
    axes.set_xticks(range(1, longest + 1))
    axes.set_xlabel("tasks learned")
    axes.set_ylabel("accuracy on classes seen, %")
    _legend(figure, *axes.get_legend_handles_labels())
    return figure


def alignment(found: Mapping[str, Diagnosis]) -> Figure:
    """Cosines between task vectors, pool by pool, and of each with the composed one (the paper's Fig. 2)."""
    figure = Figure(figsize=(WIDTH * len(found), HEIGHT), layout="constrained")
    for place, (name, diagnosis) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(1, len(found), place)
        grid = np.array([*diagnosis.cosines, diagnosis.cosine_to_composed])
        image = axes.imshow(grid, vmin=-1, vmax=1, cmap="PuOr", aspect="auto")
        _numbers(axes, grid.tolist(), "{:.2f}", lambda value: abs(value) > 0.7)
        _name(axes, diagnosis.tasks)
        axes.set_yticks(range(len(grid)), [*map(_short, diagnosis.tasks), "composed"], size=TEXT)
        axes.set_title(name)
        figure.colorbar(image, label="cosine")
    return figure


def times(costs: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Seconds a task in set-up and in training, method by method (the paper's Fig. 3): means over tasks."""
    figure, axes = _figure(height=0.6 + 0.3 * max(4, len(costs)))
    names = list(costs)
    set_up, training = (np.array([np.mean([c[part] for c in costs[n]]) for n in names]) for part in (0, 1))
    axes.barh(names, set_up, color=COLOURS[1], hatch="//", edgecolor="w", label="set-up")
    axes.barh(names, training, left=set_up, color=COLOURS[0], label="training")
    axes.invert_yaxis()
    axes.set_xlabel("seconds per task")
    _legend(figure, *axes.get_legend_handles_labels())
    return figure


def losses(paths: Mapping[str, Sequence[LossPath]]) -> Figure:
    """The loss along lines of weights beside the second-order picture at theta0 (what the paper's Fig. 1 draws).

    Args:
        paths: pool -> its lines; the same lines in each.
    """
    names = [path.name for path in next(iter(paths.values()))]
    figure = Figure(figsize=(WIDTH * len(names), HEIGHT), layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), place + 1)
        for (pool, lines), colour, marker in zip(paths.items(), COLOURS, MARKERS, strict=False):
            line, label = lines[place], f"{pool} measured".strip()
            axes.plot(line.at, line.loss, color=colour, marker=marker, markersize=4, label=label)
            axes.plot(line.at, line.whole, color=colour, linestyle="--", label=f"{pool} whole Fisher".strip())
            axes.plot(line.at, line.diagonal, color=colour, linestyle=":", label=f"{pool} diagonal".strip())
        axes.set_ylim(*_limits([lines[place] for lines in paths.values()]))
        axes.set_xlabel(name)
        axes.set_ylabel("loss, nats")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    _legend(figure, handles, labels, columns=len(paths))
    return figure


def _limits(paths: Sequence[LossPath]) -> tuple[float, float]:
    """Of the losses measured, and of what is predicted as far as these reach again: it may go anywhere."""
    measured = [loss for path in paths for loss in path.loss]
    predicted = [loss for path in paths for loss in (*path.diagonal, *path.whole)]
    lowest, highest = min(measured), max(measured)
    reach = highest - lowest or 0.1 * abs(highest) or 0.1  # a line that is level has room too
    below, above = max(min(predicted), lowest - reach), min(max(predicted), highest + reach)
    return min(lowest, below) - 0.1 * reach, max(highest, above) + 0.1 * reach


def gaps(found: Mapping[str, GapPath]) -> Figure:
    """Jensen's gap over the square of the vectors' scale, pool by pool: level while second order says it all."""
    figure = Figure(figsize=(0.7 * WIDTH * max(len(found), 1.4), HEIGHT), layout="constrained")
    for place, (name, path) in enumerate(found.items(), start=1):
        axes = figure.add_subplot(1, len(found), place)
        squares = np.square(path.scales)
        axes.plot(path.scales, path.measured / squares, color=COLOURS[0], marker="o", markersize=4, label="measured")
        axes.plot(path.scales, path.whole / squares, color=COLOURS[1], linestyle="--", label="whole Fisher")
        axes.plot(path.scales, path.diagonal / squares, color=COLOURS[2], linestyle=":", label="diagonal Fisher")
        axes.set_xscale("log", base=2)
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.0, low), 1.3 * high if high > 0 else 1.0)
        axes.set_title(name)
        axes.set_xlabel("scale of the task vectors")
        axes.set_ylabel("gap / scale², nats")
        axes.legend(fontsize=TEXT, frameon=False, loc="upper left")
    return figure


def strengths(curves: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Final accuracy against the regularizer's strength, alpha or beta, on a logarithmic axis; 0 stands at the left."""
    figure, axes = _figure()
    positive = [s for points in curves.values() for s, _ in points if s > 0]
    left = min(positive) / 10
    styles = zip(cycle(COLOURS), cycle(MARKERS), strict=False)
    for (name, points), (colour, marker) in zip(curves.items(), styles, strict=False):
        x, y = zip(*sorted((s or left, accuracy) for s, accuracy in points), strict=True)
        axes.plot(x, y, color=colour, marker=marker, markersize=4, label=name)
    axes.set_xscale("log")
    axes.set_xlabel(f"strength (0 drawn at {left:g})")
    axes.set_ylabel("final accuracy, %")
    axes.legend(fontsize=TEXT, frameon=False)
    return figure


def editing(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Specialization and unlearning: accuracy on the target against that on the others, one point a task.

    Classes that a composition does not answer with count as 0.

    Args:
        rows: method -> rows with ``how``, ``target_accuracy`` and ``control_accuracy``.
    """
    figure, axes = _figure()
    hows = list(dict.fromkeys(row["how"] for method in rows.values() for row in method))
    for (method, found), marker in zip(rows.items(), MARKERS, strict=False):
        for how, colour in zip(hows, cycle(COLOURS), strict=False):
            points = [(r["control_accuracy"] or 0, r["target_accuracy"] or 0) for r in found if r["how"] == how]
            if points:
                x, y = zip(*points, strict=True)
                label = f"{method}: {how}" if method else how
                axes.plot(x, y, marker, color=colour, markersize=4, linestyle="none", label=label)
    axes.set_xlabel("accuracy on the other tasks, %")
    axes.set_ylabel("accuracy on the target, %")
    keys = [Line2D([], [], color=c, marker="s", linestyle="none") for c, _ in zip(cycle(COLOURS), hows, strict=False)]
    names = list(hows)
    if len(rows) > 1:  # the shape says which method
        keys += [Line2D([], [], color="grey", marker=m, linestyle="none") for m, _ in zip(MARKERS, rows, strict=False)]
        names += list(rows)
    _legend(figure, keys, names)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _figure(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _numbers(
    axes: Axes, rows: Sequence[Sequence[float]], form: str, on_dark: Callable[[float], bool], width: float = WIDTH
) -> None:
    """Write the numbers of a grid into its cells, if they can be read there."""
    longest = max(len(form.format(value)) for row in rows for value in row)
    size = min(TEXT, 72 * 0.7 * width / max(map(len, rows)) / (0.65 * longest))
    if size >= SMALLEST:
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                colour = "w" if on_dark(value) else "k"
                axes.text(j, i, form.format(value), ha="center", va="center", size=size, color=colour)


def _legend(figure: Figure, keys: Sequence[Artist], names: Sequence[str], columns: int | None = None) -> None:
    """Above the axes, in as many columns as its names leave room for; the figure grows by its lines."""
    fit = int(figure.get_figwidth() / WIDTH * LINE) // (max(map(len, names)) + 7)
    columns = max(1, min(fit, columns or 4, len(names)))
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(names) // columns))
    figure.legend(keys, names, loc="outside upper center", ncols=columns, fontsize=TEXT, frameon=False)


def _name(axes: Axes, tasks: Sequence[str]) -> None:
    axes.set_xticks(range(len(tasks)), list(map(_short, tasks)), rotation=45, ha="right", size=TEXT)


def _short(name: str) -> str:
    return name if len(name) <= LONG else f"{name[: LONG - 1]}…"
