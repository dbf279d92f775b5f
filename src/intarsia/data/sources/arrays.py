"""Images in memory."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from intarsia.data.choices import Augmentation
from intarsia.data.image_set import ImageSet, Labelled
from intarsia.data.sources.source import Side, Source
from intarsia.data.splits import Split


def of_arrays(
    name: str,
    classes: tuple[str, ...],
    themes: Split | None,
    augmentation: Augmentation,
    parts: Mapping[Side, Labelled],
) -> Source:
    """A source of images in memory: training and test images, with labels among ``classes``."""

    def gather(side: Side, kinds: Sequence[str], limit: int | None) -> ImageSet:
        images, labels = parts[side]
        chosen = [(labels == classes.index(kind)).nonzero().squeeze(1)[:limit] for kind in kinds]
        return ImageSet.of_arrays(images[torch.cat(chosen)], labels_of(map(len, chosen)))

    return Source(name, classes, themes, augmentation, gather)


def labels_of(counts: Iterable[int]) -> Tensor:
    """0 as often as the first count says, then 1, and so on."""
    repeats = torch.tensor(list(counts))
    return torch.arange(len(repeats)).repeat_interleave(repeats)
