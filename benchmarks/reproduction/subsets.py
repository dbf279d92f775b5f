"""Random subsets of a pool's modules, composed by every rule: accuracy on the test images of the subset's classes.

    python benchmarks/reproduction/subsets.py --pools runs/compare/ita-0 runs/compare/iel-0 --out subsets.jsonl

A line of JSON per pool, subset and rule, at the scale that the rule takes by itself. Subsets are drawn with a seed, the
same for every pool of these tasks. Beside the rules: the frozen backbone with heads for the subset's classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, get_args

import torch
import tyro
from results import Ledger

from intarsia import Pool, TaskStream, evaluate
from intarsia.machine import machine
from intarsia.merging.choices import Rule
from intarsia.merging.model import ComposedModel
from intarsia.pool import merged
from workbench import opened

RULES: tuple[Rule, ...] = tuple(rule for rule in get_args(Rule) if rule not in ("sum", "fisher"))
"""``sum`` is the mean at another scale; ``fisher`` needs every task's own."""


@dataclass(frozen=True)
class Subsets:
    """Which pools, and how many subsets."""

    pools: tuple[Path, ...]
    """Folders."""
    sizes: tuple[int, ...] = (2, 5, 8)
    """Modules of a subset."""
    draws: int = 5
    """Subsets of each size."""
    seed: int = 0
    """Of the draws."""
    threads: int = 1
    """Threads of torch."""
    out: Path = Path("subsets.jsonl")
    """Lines are added; what is there is not measured again."""


def drawn(tasks: tuple[str, ...], asked: Subsets) -> Iterator[tuple[str, ...]]:
    """Subsets, each in the pool's order, none twice."""
    chance = Random(asked.seed)
    for size in asked.sizes:
        seen = set[tuple[str, ...]]()
        while len(seen) < asked.draws:
            chosen = tuple(sorted(chance.sample(range(len(tasks)), size)))
            subset = tuple(tasks[place] for place in chosen)
            if subset not in seen:
                seen.add(subset)
                yield subset


def models(pool: Pool, subset: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], ComposedModel]]]:
    """What is compared: its name, and how it is made."""
    yield "frozen", partial(pool.frozen, subset)
    yield "mean", partial(pool.specialize, subset)
    for rule in RULES:
        yield rule, partial(merged, pool, rule, subset)


def measured(make: Callable[[], ComposedModel], stream: TaskStream) -> dict[str, Any]:
    """Accuracy on the test images of the model's tasks."""
    found = evaluate(make(), stream, history=False)
    return {"final_accuracy": found.final_accuracy, "task_il_accuracy": found.task_il_accuracy}


def main() -> None:
    """Run it."""
    asked = tyro.cli(Subsets, description=__doc__)
    torch.set_num_threads(asked.threads)
    ledger = Ledger(asked.out, machine(torch.device("cpu")))
    for pool, stream in opened(asked.pools):
        for subset in drawn(pool.tasks, asked):
            for name, make in models(pool, subset):
                run = {"pool": pool.path.name, "stream": stream.name, "tasks": list(subset), "rule": name}
                ledger.once(run, partial(measured, make, stream))


if __name__ == "__main__":
    main()
