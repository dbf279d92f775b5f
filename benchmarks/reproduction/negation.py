"""Unlearning by negation at equal control accuracy: how far the target's accuracy falls while the others keep theirs.

    python benchmarks/reproduction/negation.py --pools runs/diagonal runs/kfac --out negation.jsonl

The model is the mean of all modules less ``scale`` times the target's task vector, all heads kept. A line of JSON per
pool and target: accuracy on the target's test images and on those of all other tasks (control) at each scale, and the
target's where control has a share ``--keep`` of the mean's, linear between scales. Nothing is chosen by these images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import tyro
from results import Ledger

from intarsia import Pool, TaskStream
from intarsia.evaluation.metrics import target_and_control
from intarsia.machine import machine
from workbench import opened


@dataclass(frozen=True)
class Negation:
    """Which pools."""

    pools: tuple[Path, ...]
    """Folders."""
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    """Factors of the negated task vector, rising."""
    keep: float = 0.95
    """Share of the control accuracy of the mean that is kept."""
    targets: int = 0
    """Only the first so many tasks as targets; 0 for all."""
    threads: int = 1
    """Threads of torch."""
    out: Path = Path("negation.jsonl")
    """Lines are added; what is there is not measured again."""


def at_control(points: Sequence[tuple[float, float, float]], keep: float) -> tuple[float, float] | None:
    """Scale and target accuracy where control is ``keep`` times that at the first point.

    Args:
        points: scale, target accuracy and control accuracy, scales rising.
        keep: share of the first point's control accuracy.

    Returns:
        Linear between the two points around it; None if control stays above.
    """
    wanted = keep * points[0][2]
    for (s0, t0, c0), (s1, t1, c1) in pairwise(points):
        if c1 < wanted:
            part = (c0 - wanted) / (c0 - c1)
            return s0 + part * (s1 - s0), t0 + part * (t1 - t0)
    return None


def negated(pool: Pool, stream: TaskStream, target: str, asked: Negation) -> dict[str, Any]:
    """Scales as far as control has fallen enough, and what holds where it has."""
    points: list[tuple[float, float, float]] = []
    for scale in (0.0, *asked.scales):
        model = pool.unlearn(target, mode="negate", scale=scale) if scale else pool.mean()
        own, others = target_and_control(model, stream, target)
        assert own is not None
        assert others is not None
        points.append((scale, own, others))
        if found := at_control(points, asked.keep):
            return {"points": points, "scale": found[0], "target_accuracy": found[1]}
    return {"points": points, "scale": None, "target_accuracy": None}


def main() -> None:
    """Run it."""
    asked = tyro.cli(Negation, description=__doc__)
    torch.set_num_threads(asked.threads)
    ledger = Ledger(asked.out, machine(torch.device("cpu")))
    for pool, stream in opened(asked.pools):
        for target in pool.tasks[: asked.targets or None]:
            run = {"pool": pool.path.name, "stream": stream.name, "target": target, "keep": asked.keep}
            ledger.once(run, partial(negated, pool, stream, target, asked))


if __name__ == "__main__":
    main()
