"""Where images come from, and which classes make a task: what a stream is loaded by."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intarsia.backbones.locations import absolute
from intarsia.data.choices import DEFAULT_STREAM, Augmentation
from intarsia.data.splits import Order
from intarsia.errors import InputError

if TYPE_CHECKING:
    from intarsia.data.stream import TaskStream
    from intarsia.pool import Pool


@dataclass(frozen=True)
class Source:
    """Where images come from, and which classes make a task; what is None is left as it comes."""

    data: str | None = None
    """chalk or sketches (built in), folder:<dir>, csv:<file> or hf:<data set or dir>: see docs/data.md. If not given:
    chalk; of a pool, what it was learned from."""
    tasks: int | None = None
    """Split the classes into so many tasks."""
    split: Path | None = None
    """A JSON file: task -> list of its classes."""
    max_per_class: int | None = None
    """Most training and test images of a class."""
    only: tuple[str, ...] = ()
    """Tasks to use, by name; if not given, all."""
    order: Order | None = None
    """Order of the classes: as named (fixed), or drawn by the seed (shuffled)."""
    test_fraction: float | None = None
    """Share of each class kept for testing, where there are no test images; chosen by what is in an image's file."""
    augment: Augmentation | None = None
    """How training images are changed at random, if not as the source says; crop is photo without the mirror."""
    skip_broken: bool | None = None
    """Leave out images that cannot be read, and list them; else the first one stops the run before it learns."""
    bits: int | None = None
    """Of grey values of more than 8 bits; if not given, as many as hold the largest of all training images."""
    cache: str | None = None
    """Where decoded images are kept: auto (memory, then a file that is gone at the end), a folder to keep them, off."""

    @property
    def chooses(self) -> bool:
        """Whether anything is said but where decoded images are kept."""
        return replace(self, cache=None) != Source()

    def absolute(self) -> "Source":
        """With all paths absolute."""
        kept = self.cache if self.cache in (None, "auto", "off") else str(Path(self.cache).resolve())
        split = None if self.split is None else self.split.resolve()
        return replace(self, data=None if self.data is None else absolute(self.data), split=split, cache=kept)

    def load(self, seed: int) -> "TaskStream":
        """The stream; the default one if none is named."""
        from intarsia.data.stream import TaskStream

        stream = TaskStream.load(
            self.data or DEFAULT_STREAM,
            tasks=self.tasks,
            split=self.split,
            order=self.order or "fixed",
            seed=seed,
            test_fraction=self.test_fraction,
            max_per_class=self.max_per_class,
            augment=self.augment,
            skip_broken=self.skip_broken,
            bits=self.bits,
            cache=self.cache,
        )
        return stream.subset(self.only) if self.only else stream

    def of(self, pool: "Pool") -> "TaskStream":
        """The stream named here, or the one the pool was learned from."""
        from intarsia.evaluation.metrics import recorded_stream

        if self.data is None:
            if self.chooses:
                raise InputError(
                    "flags that choose classes and images (--tasks, --split, --max-per-class, --only, --source.*) go "
                    "with --data: without it, what the pool was learned from is used"
                )
            return recorded_stream(pool, self.cache)
        return self.load(int(pool.index.settings.get("seed", 0)))


def builtin() -> list[dict[str, Any]]:
    """What needs no download: each data set, and the backbone, with source, licence and how it was changed."""
    from intarsia.backbones.libraries import builtin as backbone
    from intarsia.data.sources import builtin as data

    return [*data.describe(), backbone.describe()]
