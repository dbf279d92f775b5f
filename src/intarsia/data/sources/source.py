"""What there is before tasks are made of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from intarsia.data.augmentation import Augmentation
from intarsia.data.image_set import ImageSet
from intarsia.data.splits import Split

Side = Literal["train", "test"]
SIDES: tuple[Side, Side] = ("train", "test")


@dataclass(frozen=True)
class Source:
    """What there is before tasks are made of it."""

    name: str
    classes: tuple[str, ...]
    themes: Split | None
    """Tasks which the source itself suggests."""
    augmentation: Augmentation
    gather: Callable[[Side, Sequence[str], int | None], ImageSet]
    """The images of some classes, at most so many of each; labels are positions among those classes."""
