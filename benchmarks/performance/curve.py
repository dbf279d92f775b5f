"""What each task costs while many are learned: 1,000 classes in 100 tasks on the built-in backbone, with a figure.

    python benchmarks/performance/curve.py --figure docs/curve.png
    python benchmarks/performance/curve.py --tasks 20 --json

Beyond the hundred classes of the drawings come rotations, mirror images, inversions and shifts. Figures are from the
pool's log.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import tyro
from picture import picture
from scene import tasks

from intarsia import Backbone, LoRA, learn
from intarsia.regularizers.records import build_regularizer
from intarsia.store.store import LOG
from intarsia.training.recommended import recommended
from watch import Told

ENDS = 3
"""Tasks whose median stands for the first (from the second on) and for the last."""


@dataclass(frozen=True)
class Curve:
    """How many tasks, of what."""

    tasks: int = 100
    """In all."""
    classes: int = 10
    """Of each."""
    per_class: int = 20
    """Images of a class to train."""
    epochs: int = 1
    """Passes over a task's images."""
    method: Literal["ita", "iel"] = "ita"
    """How modules are learned."""
    figure: Path | None = None
    """Write a picture here (PNG)."""
    json: bool = False
    """Print JSON at the end."""
    rows: Path | None = None
    """Add every task's record, as it is known, to this file, a line of JSON each."""


def log_of(chosen: Curve) -> list[dict[str, Any]]:
    """Learn; a record a task."""
    stream = tasks(0, chosen.tasks, chosen.classes, chosen.per_class)
    strength, training = recommended(chosen.method, "lora")
    told, logged = Told(chosen.rows), list[dict[str, Any]]()

    def look(phase: str, done: int, total: int) -> None:
        """Tell of the tasks that have come into the pool's log since the last look."""
        path = Path(folder) / LOG
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines[len(logged) :]:
            logged.append(json.loads(line))
            told.row(logged[-1])

    with tempfile.TemporaryDirectory() as folder:
        pool = learn(
            Backbone.load(),
            stream,
            out=folder,
            adapter=LoRA(16),
            regularizer=build_regularizer(chosen.method, strength),
            training=replace(training, epochs=chosen.epochs),
            progress=look,
        )
        look("", 1, 1)
        return list(pool.logged().values())


def summary(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds and memory at the first tasks (from the second on) and at the last, and their ratio."""
    seconds = [entry["set_up_seconds"] + entry["training_seconds"] for entry in log]
    first, last = median(seconds[1 : 1 + ENDS]), median(seconds[-ENDS:])
    memory = [entry["peak_memory_mib"] for entry in log]
    return {
        "seconds_at_2": round(first, 3),
        "seconds_at_last": round(last, 3),
        "ratio": round(last / first, 3),
        "memory_at_2_mib": memory[1],
        "memory_at_last_mib": memory[-1],
        "memory_growth": round(100 * (memory[-1] / memory[1] - 1), 2),
    }


def draw(log: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Seconds of each phase, stacked, and peak memory, against the task."""
    numbers = range(1, len(log) + 1)
    phases = list(log[0]["seconds"])
    with picture(path, ncols=2, figsize=(9, 3.4), width_ratios=(2, 1)) as (_, (left, right)):
        left.stackplot(numbers, [[entry["seconds"][p] for entry in log] for p in phases], labels=phases)
        left.set_xlabel("task")
        left.set_ylabel("seconds")
        left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, fontsize="small", frameon=False)
        right.plot(numbers, [entry["peak_memory_mib"] for entry in log], color="#0072B2")
        right.set_ylim(bottom=0)
        right.set_xlabel("task")
        right.set_ylabel("peak memory, MiB")


def main(chosen: Curve) -> None:
    """Learn, print, draw."""
    log = log_of(chosen)
    found = summary(log)
    if chosen.figure:
        draw(log, chosen.figure)
    if chosen.json:
        print(json.dumps({**found, "log": log}))
        return
    for name, value in found.items():
        print(f"{name:>20}  {value}")


if __name__ == "__main__":
    main(tyro.cli(Curve, description=__doc__))
