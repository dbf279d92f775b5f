"""What the images of a stream are, as hashes: two streams of equal hashes give equal numbers; and equal images."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from intarsia.backbones.backbone import Backbone
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.files import FileHashes, ImageFile
from intarsia.data.image_set import ImageSet
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.numerics import digest
from intarsia.progress import Progress, silent


def fingerprint(
    stream: TaskStream, preprocessing: Preprocessing, files: FileHashes | None = None, progress: Progress = silent
) -> dict[str, str]:
    """Task -> hash of its classes, and of the images and labels it is trained and tested on.

    Args:
        stream: whose.
        preprocessing: of the backbone; images in memory are hashed as it keeps them.
        files: what is known of the files' hashes; taken further.
        progress: told how many of all files are hashed.

    Raises:
        InputError: a file cannot be read.
    """
    files = files or FileHashes()
    total = sum(len(side) for task in stream for side in (task.train, task.test) if side.files is not None)
    done, found = 0, dict[str, str]()
    for task in stream:
        hashed = hashlib.sha256(json.dumps([task.name, task.classes, stream.augmentation]).encode())
        for side in (task.train, task.test):
            hashed.update(_images(side, preprocessing, files).encode() + _labels(side.labels))
            if side.files is not None:
                done += len(side)
                progress("hashing files", done, total)
        found[task.name] = hashed.hexdigest()[:16]
    return found


def _images(images: ImageSet, preprocessing: Preprocessing, files: FileHashes) -> str:
    if images.files is None:
        return digest({"images": images.tensor(preprocessing)})
    return _joined([str(images.bits or ""), *(files.of(file) for file in images.files)])


def _joined(hashes: Sequence[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _labels(labels: Tensor) -> bytes:
    return json.dumps(labels.tolist()).encode()


def notes_on(stream: TaskStream, backbone: Backbone) -> list[str]:
    """What is to be known of weights and images before anything is learned, in words.

    Whether the weights were cast; which images were left out, pictures that are there twice, and where decoded images
    go if they do not stay in memory.
    """
    cast = f"{backbone.name}: its weights are {backbone.cast_from}, and are cast to float32"
    sets = [images for task in stream for images in (task.train, task.test) if images.files is not None]
    where = sets[0].storage.told(sum(map(len, sets)), backbone.preprocessing) if sets else ""
    notes = [*stream.notes, *repeated(stream), *([where] if where else [])]
    return [*([cast] if backbone.cast_from else []), *(f"{stream.name}: {note}" for note in notes)]


def repeated(stream: TaskStream) -> list[str]:
    """How many pictures, equal byte by byte, are in two classes, and how many in training and in test, in words."""
    places: dict[str, list[tuple[str, str, ImageFile]]] = {}
    for task in stream:
        for side, images in (("train", task.train), ("test", task.test)):
            for label, file in zip(images.labels.tolist(), images.files or (), strict=False):
                places.setdefault(_size(file), []).append((task.classes[label], side, file))
    hashes, equal = FileHashes(), dict[str, list[tuple[str, str, ImageFile]]]()
    for alike in places.values():
        for place in alike if len(alike) > 1 else ():
            with suppress(InputError):  # which decoding says
                equal.setdefault(hashes.of(place[2]), []).append(place)
    told = []
    for what, which in (("in training and in test", 1), ("in two classes or more", 0)):
        found = [group for group in equal.values() if len({place[which] for place in group}) > 1]
        if found:
            first = next(p for p in found[0] if p[which] != found[0][0][which])
            told.append(
                f"{len(found)} picture{'s are' if len(found) > 1 else ' is'} {what}, for example '{found[0][0][2]}' "
                f"({found[0][0][0]}) and '{first[2]}' ({first[0]}): remove one of each, or accuracy says less"
            )
    return told


def _size(file: ImageFile) -> str:
    """What equal files have in common and is quick to know: the size; of a row of a table, nothing."""
    with suppress(OSError):
        return str(file.stat().st_size) if isinstance(file, Path) else ""
    return str(file)
