"""Labelled images, decoded when they are first asked for.

Convention: images are uint8 `(N, C, H, W)`, decoded `(N, C, R, R)`; labels are positions among the classes asked for.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.decoding import decode_all, fit
from intarsia.errors import InputError

Advance = Callable[[int], None]


class ImageSet:
    """Labelled images: `labels` int64 (N,), and for files their `paths`. Decoded when first asked for, then kept."""

    def __init__(
        self,
        labels: Tensor,
        source: Callable[[Preprocessing, Advance], Tensor],
        paths: tuple[Path, ...] | None = None,
    ) -> None:
        self.labels = labels
        self.paths = paths
        self._source = source
        self._decoded: dict[Hashable, Tensor] = {}

    @classmethod
    def of_files(cls, paths: Sequence[Path], labels: Tensor) -> "ImageSet":
        """Images that lie in files."""
        return cls(labels, partial(decode_all, tuple(paths)), tuple(paths))

    @classmethod
    def of_arrays(cls, images: Tensor, labels: Tensor) -> "ImageSet":
        """Images in memory: uint8 (N, C, H, W)."""

        def source(preprocessing: Preprocessing, advance: Advance) -> Tensor:
            advance(len(images))
            return fit(images, preprocessing)

        return cls(labels, source)

    def __len__(self) -> int:
        return len(self.labels)

    def tensor(self, preprocessing: Preprocessing, advance: Advance = lambda count: None) -> Tensor:
        """The images as a backbone keeps them, uint8 (N, C, resize, resize); decoded once per preprocessing.

        Args:
            preprocessing: Of the backbone.
            advance: Called with numbers of images that are ready, N in all.

        Raises:
            InputError: A file cannot be read; the message names it.
        """
        key = preprocessing.kept()
        if key in self._decoded:
            advance(len(self))
        else:
            self._decoded[key] = self._source(preprocessing, advance)
        return self._decoded[key]

    def select(self, index: Tensor) -> "ImageSet":
        """Some of the images, by position; files are decoded by this set, once for all selections of it."""

        def source(preprocessing: Preprocessing, advance: Advance) -> Tensor:
            chosen = self.tensor(preprocessing)[index]
            advance(len(index))
            return chosen

        paths = None if self.paths is None else tuple(self.paths[position] for position in index.tolist())
        return ImageSet(self.labels[index], source, paths)

    @classmethod
    def join(cls, sets: Sequence["ImageSet"], labels: Tensor) -> "ImageSet":
        """All images of several sets, one set after another, under new labels."""

        def source(preprocessing: Preprocessing, advance: Advance) -> Tensor:
            return torch.cat([images.tensor(preprocessing, advance) for images in sets])

        paths = [path for images in sets for path in images.paths or ()]
        return cls(labels, source, tuple(paths) if len(paths) == len(labels) else None)


Labelled = tuple[Tensor, Tensor]
"""Images uint8 (N, C, H, W) and their labels (N,)."""


def checked(images: Tensor | np.ndarray, labels: Tensor | np.ndarray, classes: Sequence[str], what: str) -> Labelled:
    """Arrays of a Python user as uint8 (N, C, H, W) and int64 (N,)."""
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    images = images.unsqueeze(1) if images.ndim == 3 else images
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        found = f"{tuple(images.shape)} of type {images.dtype}"
        raise InputError(f"The {what} images are {found}: expected uint8 (N, H, W) or (N, C, H, W) with C 1 or 3.")
    if labels.is_floating_point() or labels.shape != images.shape[:1]:
        found = f"{tuple(labels.shape)} of type {labels.dtype}"
        raise InputError(f"The {what} labels are {found}: expected {len(images)} integers, one an image.")
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(classes)):
        found = f"from {labels.min()} to {labels.max()}"
        raise InputError(
            f"The {what} labels run {found}: expected 0 to {len(classes) - 1}, positions among the classes."
        )
    return images, labels.long()
