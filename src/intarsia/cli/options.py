"""Options that several verbs share: where images come from, which modules are composed, on what device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from intarsia.errors import InputError
from intarsia.machine import on_device
from intarsia.merging import recipe as recipes
from intarsia.merging.model import ComposedModel
from intarsia.merging.recipe import Recipe
from intarsia.merging.rules import Rule
from intarsia.pool import Pool, merged

Json = Annotated[bool, tyro.conf.arg(name="json", help="Print JSON instead of a table.")]


@dataclass(frozen=True)
class Selection:
    """Which modules are composed; the mean of all if nothing is named."""

    keep: tuple[str, ...] = ()
    """Specialize to these tasks."""
    drop: tuple[str, ...] = ()
    """Compose all tasks but these."""
    weights: str | None = None
    """Coefficients that sum to 1: a=.7,b=.3."""
    rule: Literal["mean"] | Rule = "mean"
    """What all modules are merged by: their mean, or a rule of others (fisher: a pool learned with --keep-fishers)."""

    def compose(self, pool: Pool) -> ComposedModel:
        """The model asked for."""
        recipe = self.of(pool)
        if self.rule == "mean":
            return pool.compose(recipe)
        if self.keep or self.drop or self.weights:
            raise InputError(f"--rule {self.rule} merges all modules: leave --keep, --drop and --weights out")
        return merged(pool, self.rule)

    def of(self, pool: Pool) -> Recipe:
        """What is asked for."""
        tasks = pool.learned()
        given = [f"--{name}" for name in ("keep", "drop", "weights") if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} together: expected one of them")
        if self.weights:
            return recipes.weighted(tasks, parse_weights(self.weights))
        keep = self.keep
        if self.drop:
            unknown = [t for t in self.drop if t not in tasks]
            if unknown:
                raise InputError(f"unknown task {unknown[0]!r}: the pool has {', '.join(tasks)}")
            keep = tuple(t for t in tasks if t not in self.drop)
            if not keep:
                raise InputError(f"--drop names all tasks of the pool, {', '.join(tasks)}: keep one or more")
        return recipes.specialize(tasks, keep) if self.keep or self.drop else recipes.mean(tasks)


def open_pool(path: Path, device: str) -> Pool:
    """A pool whose backbone is on a device."""
    pool = Pool.open(path)
    pool.backbone.to(on_device(device))
    return pool


def parse_weights(text: str) -> dict[str, float]:
    """``a=.7,b=.3`` -> {"a": 0.7, "b": 0.3}.

    Raises:
        InputError: a part is not name=number, or a name comes twice.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = None
        if not equals or not name or value is None or name in weights:
            raise InputError(f"weights {text!r}: {part!r} is not a new name=number; write for example birds=.7,cars=.3")
        weights[name] = value
    return weights
