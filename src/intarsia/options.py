"""Options that several verbs share: where images come from, which modules are composed, on what device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from intarsia import composition
from intarsia.composed_model import ComposedModel
from intarsia.composition import Recipe
from intarsia.errors import InputError
from intarsia.evaluation import recorded_stream
from intarsia.merging import Rule, merged
from intarsia.pool import Pool
from intarsia.stream import TaskStream

Json = Annotated[bool, tyro.conf.arg(name="json", help="Print JSON instead of a table.")]


@dataclass(frozen=True)
class Source:
    """Where images come from, and which classes make a task."""

    data: str | None = None
    """sketches or chalk (built in), or folder:<dir> with train/<class>/* and test/<class>/*, or <class>/*."""
    tasks: int | None = None
    """Split the classes into so many tasks."""
    split: Path | None = None
    """A JSON file: task -> list of its classes."""
    order: Literal["natural", "seeded"] = "natural"
    """Order of the classes: as named, or drawn by the seed."""
    test_fraction: float | None = None
    """Share of each class kept for testing, where the folder has no train/ and test/."""
    max_per_class: int | None = None
    """Use at most so many training and test images of a class."""
    only: tuple[str, ...] = ()
    """Names of the tasks to use; all if none is named."""

    def load(self, default: str, seed: int) -> TaskStream:
        """The stream."""
        stream = TaskStream.load(
            self.data or default,
            tasks=self.tasks,
            split=self.split,
            order=self.order,
            seed=seed,
            test_fraction=self.test_fraction,
            max_per_class=self.max_per_class,
        )
        return stream.subset(self.only) if self.only else stream

    def of(self, pool: Pool) -> TaskStream:
        """The stream named here, or the one the pool was learned from."""
        if self.data is None:
            if self != Source():
                raise InputError(
                    "options that choose classes and images (--tasks, --split, --order, --test-fraction, "
                    "--max-per-class, --only) go with --data: without it, what the pool was learned from is used"
                )
            return recorded_stream(pool)
        return self.load(self.data, int(pool.index.settings.get("seed", 0)))


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
            return composition.weighted(tasks, parse_weights(self.weights))
        keep = self.keep
        if self.drop:
            unknown = [t for t in self.drop if t not in tasks]
            if unknown:
                raise InputError(f"unknown task {unknown[0]!r}: the pool has {', '.join(tasks)}")
            keep = tuple(t for t in tasks if t not in self.drop)
            if not keep:
                raise InputError(f"--drop names all tasks of the pool, {', '.join(tasks)}: keep one or more")
        return composition.specialize(tasks, keep) if self.keep or self.drop else composition.mean(tasks)


def open_pool(path: Path, device: str) -> Pool:
    """A pool whose backbone is on a device."""
    pool = Pool.open(path)
    pool.backbone.to(on_device(device))
    return pool


def on_device(name: str) -> torch.device:
    """The device called ``name``; the best there is for ``auto``."""
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise InputError(f"unknown device {name!r}: expected auto, cpu, cuda or mps") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


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
