"""What the images of a stream are, as hashes: two streams of equal hashes give equal numbers.

A file's bytes are hashed once: who keeps a ``FileHashes`` finds them again by path, size and time of the last change.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.image_set import ImageSet
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.numerics import digest
from intarsia.progress import Progress, silent


class FileHashes:
    """SHA-256 of files, each read once for as long as its size and its time of change stay the same.

    Args:
        known: what ``record`` gave before.
    """

    def __init__(self, known: dict[str, list[object]] | None = None) -> None:
        self._known = dict(known or {})

    def record(self) -> dict[str, list[object]]:
        """As JSON: path -> size, time of change in nanoseconds, hash."""
        return dict(self._known)

    def of(self, path: Path) -> str:
        """The hash of a file's bytes.

        Raises:
            InputError: it cannot be read.
        """
        key = str(path.resolve())
        try:
            seen = path.stat()
            size, changed, found = self._known.get(key, (None, None, None))
            if (size, changed) != (seen.st_size, seen.st_mtime_ns):
                found = hashlib.sha256(path.read_bytes()).hexdigest()
                self._known[key] = [seen.st_size, seen.st_mtime_ns, found]
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror or error}): restore it, or allow it") from error
        return str(found)


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
    total = sum(len(side) for task in stream for side in (task.train, task.test) if side.paths is not None)
    done, found = 0, dict[str, str]()
    for task in stream:
        hashed = hashlib.sha256(json.dumps([task.name, task.classes, stream.augmentation]).encode())
        for side in (task.train, task.test):
            hashed.update(_images(side, preprocessing, files).encode() + _labels(side.labels))
            if side.paths is not None:
                done += len(side)
                progress("hashing files", done, total)
        found[task.name] = hashed.hexdigest()[:16]
    return found


def _images(images: ImageSet, preprocessing: Preprocessing, files: FileHashes) -> str:
    if images.paths is None:
        return digest({"images": images.tensor(preprocessing)})
    return _joined([files.of(path) for path in images.paths])


def _joined(hashes: Sequence[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _labels(labels: Tensor) -> bytes:
    return json.dumps(labels.tolist()).encode()
