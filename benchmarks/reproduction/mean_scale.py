"""The scale of the mean: what a pool's modules are worth in the mean of their vectors times s, for some s.

    intarsia compare --data chalk --validation 0.2 --methods ita ita-full --out runs/held-out
    python benchmarks/reproduction/mean_scale.py --pools runs/held-out/ita-0 runs/held-out/ita-full-0 --out scales.jsonl

Modules that were trained alone do not depend on s, so none is learned again: where classes lie in the scaled means is
measured anew, as it would be while learning. A line of JSON per pool and scale: accuracy with classes that are carried
from task to task, with those of all training images (what the features allow), and of specialists of pairs of tasks.
Use pools that were learned with ``--validation``: their test images are held-out training images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from drift_maps import features_of, held_labels
from results import Ledger
from torch import Tensor, nn

from intarsia import Pool, TaskStream
from intarsia.class_stats.gaussians import Gaussians
from intarsia.class_stats.prototypes import ClassPrototypes, in_mean
from intarsia.evaluation.metrics import evaluate
from intarsia.heads.discriminant import discriminant
from intarsia.machine import machine
from intarsia.merging.merge import merge
from intarsia.merging.recipe import mean, specialize
from workbench import opened


@dataclass(frozen=True)
class Scales:
    """Which pools, and scales."""

    pools: tuple[Path, ...]
    """Folders."""
    scales: tuple[float, ...] = (1.0, 1.5, 2.0)
    """Factors of the mean."""
    threads: int = 1
    """Threads of torch."""
    out: Path = Path("scales.jsonl")
    """Lines are added; what is there is not measured again."""


def accuracy(classes: Sequence[Gaussians], held: Sequence[Tensor], stream: TaskStream) -> float:
    """Of the discriminant of the classes, in percent, on features of the stream's test images."""
    right = discriminant(Gaussians.join(classes))(torch.cat([*held])).argmax(1) == held_labels(stream)
    return 100 * float(right.double().mean())


def scaled(pool: Pool, stream: TaskStream, scale: float) -> dict[str, Any]:
    """What holds at one scale."""
    theta0, tasks, modules = pool.backbone, pool.tasks, [*pool.values()]

    def network(count: int) -> nn.Module:
        return merge(theta0, pool.adapter, modules, mean(tasks[:count], scale).weights if count else {})

    def classes_of(features: Tensor, place: int) -> Gaussians:
        return Gaussians.of(features, stream[place].train.labels, len(stream[place].classes))

    known, networks = list[ClassPrototypes](), [network(0)]
    for place, task in enumerate(stream):
        networks = [*networks[-2:], network(place + 1)]
        *earlier, before, after = (features_of(theta0, one, [task.train])[0] for one in networks)
        looked_back = earlier[0] if place > 1 else None
        known.append(ClassPrototypes.of(before, after, task.train.labels, len(task.classes), earlier=looked_back))
    last = networks[-1]
    held = features_of(theta0, last, [task.test for task in stream])
    seen = features_of(theta0, last, [task.train for task in stream])
    pairs = [specialize(tasks, pair, mean_scale=scale) for pair in zip(tasks[::2], tasks[1::2], strict=False)]
    found = [evaluate(pool.compose(pair), stream, history=False).final_accuracy for pair in pairs]
    return {
        "carried": accuracy(in_mean(known), held, stream),
        "real_classes": accuracy([classes_of(features, place) for place, features in enumerate(seen)], held, stream),
        "pairs": sum(found) / len(found) if found else None,
    }


def main() -> None:
    """Run it."""
    asked = tyro.cli(Scales, description=__doc__)
    torch.set_num_threads(asked.threads)
    ledger = Ledger(asked.out, machine(torch.device("cpu")))
    for pool, stream in opened(asked.pools):
        for scale in asked.scales:
            run = {"pool": pool.path.name, "stream": stream.name, "tasks": len(pool.tasks), "scale": scale}
            ledger.once(run, partial(scaled, pool, stream, scale))


if __name__ == "__main__":
    main()
