"""Where images come from, and which classes make a task: what a stream is loaded by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.evaluation.metrics import recorded_stream
from intarsia.pool import Pool

DEFAULT = "sketches"
"""The stream that ``compare`` takes if none is named."""


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
