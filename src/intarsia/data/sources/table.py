"""The sources that a stream can be loaded from, by name."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from intarsia.data.image_set import ImageSet, Labelled
from intarsia.data.sources import builtin
from intarsia.data.sources.arrays import labels_of, of_arrays
from intarsia.data.sources.folder import ImageFolder, Side
from intarsia.data.sources.source import Source
from intarsia.errors import InputError


def open_source(spec: str, test_fraction: float | None, seed: int) -> Source:
    """The source that ``TaskStream.load`` is told of.

    Raises:
        InputError: there is none of that name, or a test fraction is missing or too much.
    """
    kind, colon, directory = spec.partition(":")
    if kind == "folder" and directory:
        return _of_folder(ImageFolder.open(Path(directory).expanduser(), test_fraction, seed))
    if colon or kind not in builtin.names:
        known = ", ".join([*builtin.names, "folder:<dir>"])
        raise InputError(f"There is no stream {spec!r}: expected one of {known}.")
    if test_fraction is not None:
        raise InputError(f"A test fraction of {test_fraction} is given, but {spec!r} has test images. Leave it out.")
    drawings, count = builtin.load_builtin(kind), builtin.TRAIN_PER_CLASS
    parts: dict[Side, Labelled] = {
        "train": _flat(drawings.images[:, :count]),
        "test": _flat(drawings.images[:, count:]),
    }
    return of_arrays(kind, drawings.classes, drawings.themes, "sketch", parts)


def _flat(images: Tensor) -> Labelled:
    """(classes, drawings, H, W) to (N, 1, H, W) and its labels."""
    return images.flatten(0, 1).unsqueeze(1), torch.arange(len(images)).repeat_interleave(images.shape[1])


def _of_folder(folder: ImageFolder) -> Source:
    """A source of images in memory: training and test images, with labels among ``classes``."""

    def gather(side: Side, kinds: Sequence[str], limit: int | None) -> ImageSet:
        chosen = [folder.files(side, kind)[:limit] for kind in kinds]
        return ImageSet.of_files([file for files in chosen for file in files], labels_of(map(len, chosen)))

    return Source(folder.name, folder.classes, None, "photo", gather)
