"""How the cost of a task grows: over tasks learned before, classes, width and depth; as a table, JSON and a figure.

    python benchmarks/performance/phases.py --scale --figure docs/scale.png
    python benchmarks/performance/scale.py --rounds 1 --json                # the same, with its own flags

Every phase is given as a multiple of F, one plain forward pass of the bare backbone over the task's images, measured in
the same round: a line that stays level costs what the backbone costs, however large the thing it is drawn over.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from picture import picture
from rich.console import Console
from rich.table import Table
from scene import Scene, network

from intarsia import IEL, ITA, Backbone, LoRA, evaluate
from intarsia.training.fine_tuning import Configuration, fine_tune
from intarsia.training.settings import Settings
from intarsia.training.task import prepare
from watch import Stopwatch, Told, forward, normalised

PHASES = ("features", "statistics", "heads", "fisher", "ITA step", "IEL step", "drift", "composition", "evaluation")
COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#999999", "#000000", "#F0E442")
"""Okabe and Ito's, told apart by the colour-blind."""
MARKS = "osD^vP*Xh"


@dataclass(frozen=True)
class Point:
    """One place at which the cost of a task is measured.

    Args:
        tasks: T, this task included.
        classes: of every task.
        width: of the backbone; 0 for the built-in one.
        depth: of the backbone.
    """

    tasks: int = 2
    classes: int = 10
    width: int = 0
    depth: int = 0

    def backbone(self) -> Backbone:
        """The built-in one, or one of random weights."""
        return network("vit_tiny", width=self.width, depth=self.depth) if self.width else network("vit_sketch")


SWEEPS: dict[str, tuple[Point, ...]] = {
    "tasks": tuple(Point(tasks=t) for t in (2, 10, 50)),
    "classes": tuple(Point(classes=c) for c in (10, 100, 1000)),
    "width": tuple(Point(width=w, depth=6) for w in (64, 128, 256)),
    "depth": tuple(Point(width=128, depth=d) for d in (3, 6, 12)),
}
AXES = {"tasks": "tasks T", "classes": "classes of a task", "width": "width of the backbone", "depth": "its depth"}


@dataclass(frozen=True)
class Scale:
    """What to sweep."""

    sweeps: tuple[str, ...] = tuple(SWEEPS)
    """Over what: tasks, classes, width, depth."""
    images: int = 500
    """Of the task; with more classes at least two of each."""
    batch: int = 64
    """Batch size of everything."""
    rounds: int = 3
    """Times everything is measured; medians are given."""
    figure: Path | None = None
    """Write a picture here (PNG)."""
    json: bool = False
    """Print JSON at the end."""
    rows: Path | None = None
    """Add every point, as it is known, to this file, a line of JSON each."""


def cost(point: Point, chosen: Scale) -> dict[str, float]:
    """Phase -> its cost in F, the median over rounds; and the seconds of F."""
    backbone = point.backbone()
    training = Settings(epochs=1, batch_size=chosen.batch, normalize_fisher=True)
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene.of(
            backbone, Path(folder) / "pool", tasks_in_all=point.tasks, classes=point.classes, images=chosen.images
        )
        task = scene.stream[0]
        images = normalised(backbone, task.train.tensor(backbone.preprocessing), chosen.batch)
        tests = [t.test.tensor(backbone.preprocessing) for t in scene.test]
        test = normalised(backbone, torch.cat(tests), chosen.batch)
        ratios: dict[str, list[float]] = {}
        for _ in range(chosen.rounds):
            watch = Stopwatch()
            watch.time("F", lambda: forward(backbone, images))
            before = scene.state()
            prepared, state = prepare(backbone, task, before, training)
            for phase in ("features", "statistics", "heads", "fisher"):
                watch.add(phase, prepared.seconds[phase])
            for name, regularizer in (("ITA step", ITA(0.1)), ("IEL step", IEL(1.0))):
                configuration = Configuration(LoRA(16), regularizer, training, scene.stream.augmentation)
                seconds = fine_tune(backbone, prepared, state, before.fisher, configuration).seconds
                watch.add(name, seconds["training"])
            watch.add("drift", seconds["drift"])
            model = watch.time("composition", scene.pool.mean)
            watch.time("F test", lambda: forward(backbone, test))
            watch.time("evaluation", lambda model=model: evaluate(model, scene.test, history=False))
            found = watch.medians()
            for phase in PHASES:
                floor = found["F test" if phase == "evaluation" else "F"]
                ratios.setdefault(phase, []).append(found[phase] / floor)
            ratios.setdefault("seconds of F", []).append(found["F"])
    return {name: median(values) for name, values in ratios.items()}


def sweep(chosen: Scale, told: Told) -> Iterator[tuple[str, int, dict[str, float]]]:
    """(over what, where, cost) of every point asked for."""
    for over in chosen.sweeps:
        for point in SWEEPS[over]:
            told.step(f"{over} {getattr(point, over)}")
            found = cost(point, chosen)
            told.row({"over": over, "at": getattr(point, over), **found})
            yield over, getattr(point, over), found


def draw(found: Sequence[tuple[str, int, Mapping[str, float]]], path: Path) -> None:
    """A panel a sweep, both axes logarithmic."""
    overs = list(dict.fromkeys(over for over, _, _ in found))
    layout: dict[str, Any] = {"ncols": len(overs), "figsize": (3.2 * len(overs), 3.6), "sharey": True, "squeeze": False}
    with picture(path, **layout) as (figure, axes):
        for axis, over in zip(axes[0], overs, strict=True):
            here = [(at, costs) for o, at, costs in found if o == over]
            for phase, colour, mark in zip(PHASES, COLOURS, MARKS, strict=True):
                points = [at for at, _ in here], [costs[phase] for _, costs in here]
                axis.plot(*points, color=colour, marker=mark, markersize=5, linewidth=1.3, label=phase)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.set_xticks([at for at, _ in here], [str(at) for at, _ in here])
            axis.minorticks_off()
            axis.grid(alpha=0.25)
            axis.set_xlabel(AXES[over])
        axes[0][0].set_ylabel("cost of a phase, in F")
        handles = axes[0][0].get_legend_handles_labels()
        figure.legend(*handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def show(found: Sequence[tuple[str, int, Mapping[str, float]]]) -> None:
    """As a table."""
    grid = Table("over", "at", *PHASES, "F (s)", title="Cost of a task's phases, in F")
    for over, at, costs in found:
        grid.add_row(over, str(at), *[f"{costs[p]:.2f}" for p in PHASES], f"{costs['seconds of F']:.3f}")
    Console(width=160).print(grid)


def main(chosen: Scale) -> None:
    """Measure, print, draw."""
    found = list(sweep(chosen, Told(chosen.rows)))
    if chosen.figure:
        draw(found, chosen.figure)
    if chosen.json:
        rows: list[dict[str, Any]] = [{"over": over, "at": at, **costs} for over, at, costs in found]
        print(json.dumps({"scale": rows}))
    else:
        show(found)


if __name__ == "__main__":
    main(tyro.cli(Scale, description=__doc__))
