"""What there is before tasks are made of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from intarsia.data.choices import Augmentation
from intarsia.data.image_set import ImageSet
from intarsia.data.splits import Split

Side = Literal["train", "test"]
SIDES: tuple[Side, Side] = ("train", "test")


@dataclass(frozen=True)
class Asked:
    """What is asked of a source beside where it is.

    Args:
        test_fraction: share of each class that is held out to test; None where there are test images.
        seed: of which ones.
        skip_broken: leave out what cannot be read, in place of stopping.
    """

    test_fraction: float | None = None
    seed: int = 0
    skip_broken: bool = False


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
    notes: list[str] = field(default_factory=list)
    """What was left out or taken in another way than it stands, in words; it grows as images are gathered."""
