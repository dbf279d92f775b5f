"""How far what was written is from what it is of: both asked about the same images, before it counts as written."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch import Tensor

from intarsia.backbones.preprocessing import Preprocessing
from intarsia.errors import InputError
from intarsia.merging.model import ComposedModel

IMAGES = 3
WORST = 1e-4
"""Of the largest logit: rounding in float32 stays below a tenth of it; what is above is another network."""


@dataclass(frozen=True)
class Difference:
    """The largest differences found.

    Args:
        logits: on the same normalised images, as a part of the largest logit, or of 1 where that is less.
        probabilities: of image files, each prepared as the format says; None where it says nothing that runs.
        same_labels: the most probable class of every file is the same; None likewise.
    """

    logits: float
    probabilities: float | None = None
    same_labels: bool | None = None

    def record(self) -> dict[str, float | bool | None]:
        """As JSON."""
        return asdict(self)


def noise(preprocessing: Preprocessing, count: int = IMAGES) -> Tensor:
    """Normalised images (count, C, size, size) of noise."""
    shape = (count, preprocessing.channels, preprocessing.resize, preprocessing.resize)
    drawn = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(7), dtype=torch.uint8)
    return preprocessing.normalize(drawn)


def logit_difference(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Largest difference of two networks' logits, as a part of the largest of ours, or of 1."""
    with torch.no_grad():
        expected = ours(images)
        found = torch.cat([theirs(images[:1]), theirs(images[1:])])  # of one image, and of several
    if found.shape != expected.shape:
        raise InputError(f"what was written gives {tuple(found.shape)} logits, expected {tuple(expected.shape)}")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1))


def refuse_other(difference: float, what: str) -> None:
    """Refuse what is another network than ours.

    Raises:
        InputError: with the difference.
    """
    if not difference <= WORST:
        raise InputError(
            f"{what}: its logits are {difference:.2g} of the largest from ours, expected {WORST:g} at most: nothing "
            "was written; use another --format, and tell the makers of intarsia"
        )


def probability_difference(
    model: ComposedModel, answers: Callable[[Sequence[Path]], Tensor], colour: bool = True
) -> tuple[float, bool]:
    """Largest difference of probabilities (N, C) of pictures in files, and whether all labels are the same.

    Args:
        model: ours.
        answers: image files -> probabilities, through the format's own preprocessing.
        colour: the pictures have colours.
    """
    with TemporaryDirectory() as folder:
        paths = [_picture(Path(folder) / f"{i}.png", i, colour) for i in range(IMAGES)]
        ours, theirs = model.probabilities(paths), answers(paths)
    same = bool((ours.argmax(1) == theirs.argmax(1)).all())
    return float((ours - theirs).abs().max()), same


def _picture(path: Path, seed: int, colour: bool) -> Path:
    """A smooth picture of no special shape."""
    drawn = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    image = Image.fromarray(drawn.numpy()).resize((251, 180), Image.Resampling.BICUBIC)
    (image if colour else image.convert("L")).save(path)
    return path
