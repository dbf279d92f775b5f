"""What the images of a stream are, as hashes: two streams of equal hashes give equal numbers."""

import hashlib
import json
from collections.abc import Sequence

from torch import Tensor

from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.files import FileHashes
from intarsia.data.image_set import ImageSet
from intarsia.data.stream import TaskStream
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
