"""Tasks: a name, the classes it teaches, and their images; made of a source."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from intarsia.data.decoding import depth
from intarsia.data.files import ImageFile, Row
from intarsia.data.image_set import ImageSet
from intarsia.data.pixels import Storage
from intarsia.data.sources.source import SIDES, Side, Source
from intarsia.data.splits import Split
from intarsia.errors import InputError

DEEP = (".png", ".tif", ".tiff", ".pgm")
"""Suffixes of formats whose grey values can have more than 8 bits."""


@dataclass(frozen=True)
class Task:
    """A name, the classes it teaches, and their images."""

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet


def tasks_of(source: Source, groups: Split, limit: int | None, storage: Storage, bits: int | None) -> list[Task]:
    """Tasks with the images of a source.

    Args:
        source: has them.
        groups: task -> classes.
        limit: images of a class at most, on each side.
        storage: where they are kept when they are decoded.
        bits: of grey values of more than 8; if None, as many as hold the largest of all training images.

    Raises:
        InputError: a class has no image on a side.
    """
    tasks = []
    for name, kinds in groups.items():
        train, test = (source.gather(side, kinds, limit) for side in SIDES)
        _check_counts(source.name, kinds, train, "train")
        _check_counts(source.name, kinds, test, "test")
        tasks.append(Task(name, tuple(kinds), train, test))
    if bits is None and (bits := _depth(tasks)) is not None:
        source.notes.append(
            f"grey values of more than 8 bits are read as {bits}-bit ones: {2**bits - 1:,} is white (--source.bits)"
        )
    for task in tasks:
        for images in (task.train, task.test):
            images.use(storage, bits)
    return tasks


def _depth(tasks: Sequence[Task]) -> int | None:
    """Bits that hold all training images' grey values, if the first image of a class has more than 8."""
    files, firsts = list[ImageFile](), list[ImageFile]()
    for task in tasks:
        which = task.train.files or ()
        may_be = [isinstance(file, Row) or file.suffix.lower() in DEEP for file in which]
        files += [file for file, deep in zip(which, may_be, strict=True) if deep]
        starts = {label: place for place, label in reversed([*enumerate(task.train.labels.tolist())])}
        firsts += [which[place] for place in starts.values() if which and may_be[place]]
    return depth(files, firsts)


def _check_counts(name: str, kinds: Sequence[str], images: ImageSet, side: Side) -> None:
    for kind, count in zip(kinds, torch.bincount(images.labels, minlength=len(kinds)).tolist(), strict=True):
        if not count:
            raise InputError(
                f"Class {kind!r} of {name!r} has no image to {side}: expected at least one. Add some or leave it out."
            )
