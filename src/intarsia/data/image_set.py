"""Labelled images, decoded when they are first asked for.

Convention: images are uint8 `(N, C, H, W)`, decoded `(N, C, R, R)`; labels are positions among the classes asked for.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intarsia.backbones.forward import Pixels
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.decoding import fit
from intarsia.data.files import ImageFile
from intarsia.data.pixels import Advance, Storage, chosen, decodes, joined
from intarsia.errors import InputError

Made = Callable[[Preprocessing, Advance], Pixels]
CHECKED = 256
"""Images that are decoded at a time only to see whether they can be."""


class ImageSet:
    """Labelled images: `labels` int64 (N,), and for files their `files`. Decoded when first asked for, then kept.

    Args:
        labels: (N,), positions among some classes.
        source: makes the decoded images.
        files: what they are read from; None for images in memory.
        parts: sets that these images are of.
    """

    def __init__(
        self,
        labels: Tensor,
        source: Made | None,
        files: tuple[ImageFile, ...] | None = None,
        parts: Sequence["ImageSet"] = (),
    ) -> None:
        self.labels, self.files = labels, files
        self.storage, self.bits = Storage(), None
        self._source, self._parts = source or self._from_files, tuple(parts)
        self._decoded: dict[Hashable, Pixels] = {}

    @classmethod
    def of_files(
        cls, files: Sequence[ImageFile], labels: Tensor, storage: Storage | None = None, bits: int | None = None
    ) -> "ImageSet":
        """Images that lie in files, or in rows of tables.

        Args:
            files: N of them.
            labels: (N,).
            storage: where they are kept when they are decoded.
            bits: of grey values of more than 8; see `decode`.
        """
        made = cls(labels, None, tuple(files))
        made.use(storage or Storage(), bits)
        return made

    @classmethod
    def of_arrays(cls, images: Tensor, labels: Tensor) -> "ImageSet":
        """Images in memory: uint8 (N, C, H, W)."""

        def source(preprocessing: Preprocessing, advance: Advance) -> Tensor:
            advance(len(images))
            return fit(images, preprocessing)

        return cls(labels, source)

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        """What another process is sent: not what was decoded, it decodes by itself."""
        return {**self.__dict__, "_decoded": {}}

    def use(self, storage: Storage, bits: int | None = None) -> None:
        """Keep what is decoded from now on there; ``bits`` says how files of more than 8 are read, if it is known."""
        self.storage, self.bits = storage, self.bits if bits is None else bits
        for part in self._parts:
            part.use(storage, bits)

    def pixels(self, preprocessing: Preprocessing, advance: Advance = lambda count: None) -> Pixels:
        """The images as a backbone keeps them, uint8 (N, C, resize, resize), to be read batch by batch.

        Those of files are decoded once per preprocessing, and kept where ``storage`` says.

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

    def tensor(self, preprocessing: Preprocessing, advance: Advance = lambda count: None) -> Tensor:
        """The same, all of them in memory: (N, C, resize, resize)."""
        found = self.pixels(preprocessing, advance)
        return found if isinstance(found, Tensor) else found[:]

    def check(self, preprocessing: Preprocessing, advance: Advance) -> None:
        """Decode all images now, be it only to see whether they can be.

        Raises:
            InputError: As `pixels`.
        """
        found = self.pixels(preprocessing, lambda count: None if self._later() else advance(count))
        for start in range(0, len(found), CHECKED) if decodes(found) else ():
            advance(len(found[start : start + CHECKED]))

    def _later(self) -> bool:
        return self.storage.where == "off" and self.files is not None

    def _from_files(self, preprocessing: Preprocessing, advance: Advance) -> Pixels:
        assert self.files is not None
        return self.storage.pixels(self.files, preprocessing, self.bits, advance)

    def select(self, index: Tensor) -> "ImageSet":
        """Some of the images, by position; files are decoded by this set, once for all selections of it."""

        def source(preprocessing: Preprocessing, advance: Advance) -> Pixels:
            found = chosen(self.pixels(preprocessing), index)
            advance(len(index))
            return found

        files = None if self.files is None else tuple(self.files[position] for position in index.tolist())
        made = ImageSet(self.labels[index], source, files, [self])
        made.storage, made.bits = self.storage, self.bits
        return made

    @classmethod
    def join(cls, sets: Sequence["ImageSet"], labels: Tensor) -> "ImageSet":
        """All images of several sets, one set after another, under new labels."""

        def source(preprocessing: Preprocessing, advance: Advance) -> Pixels:
            return joined([images.pixels(preprocessing, advance) for images in sets])

        files = [file for images in sets for file in images.files or ()]
        made = cls(labels, source, tuple(files) if len(files) == len(labels) else None, sets)
        made.storage, made.bits = sets[0].storage, sets[0].bits
        return made


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
