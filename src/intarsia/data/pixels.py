"""Decoded images: in memory while there is room, else in a file, or decoded each time they are asked for.

A file of decoded images is read in the rows that a batch needs, not mapped into memory: so the memory that the process
holds does not grow with the number of images.

Convention: images are uint8 `(N, C, R, R)`, in a file one after another.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import IO, Any

import PIL
import torch
from filelock import FileLock
from torch import Tensor

from intarsia.backbones.forward import Pixels
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.decoding import decode_all, decoded
from intarsia.data.files import FileHashes, ImageFile
from intarsia.errors import InputError

ROOM = 512 * 2**20
"""Bytes of decoded images that stay in memory."""
Advance = Callable[[int], None]


class Lazy:
    """Images that are read when they are asked for; indexed like a tensor along its first dimension.

    Args:
        count: N.
        read: positions -> uint8 (B, C, R, R).
        decodes: reading decodes, each time.
    """

    def __init__(self, count: int, read: Callable[[Sequence[int]], Tensor], *, decodes: bool = False) -> None:
        self._count, self._read, self.decodes = count, read, decodes

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Tensor:
        """By a position, a slice, or a tensor of positions or of booleans."""
        if isinstance(index, int):
            return self._read([range(self._count)[index]])[0]
        if isinstance(index, slice):
            return self._read(range(self._count)[index])
        index = torch.as_tensor(index)
        rows = index.nonzero().squeeze(1) if index.dtype == torch.bool else index % max(1, self._count)
        return self._read(rows.tolist())


def chosen(pixels: Pixels, index: Tensor) -> Pixels:
    """Some images, by position: a copy where they are in memory, else read when they are asked for."""
    if isinstance(pixels, Tensor):
        return pixels[index]
    rows = index.tolist()
    return Lazy(len(rows), lambda which: pixels[torch.tensor([rows[i] for i in which])], decodes=decodes(pixels))


def joined(parts: Sequence[Pixels]) -> Pixels:
    """The images of several sets, one set after another."""
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat([part[:] for part in parts])
    starts = [0, *accumulate(map(len, parts))]

    def read(rows: Sequence[int]) -> Tensor:
        owners = [bisect_right(starts, row) - 1 for row in rows]
        found: dict[int, Tensor] = {}
        for number in set(owners):
            places = [place for place, owner in enumerate(owners) if owner == number]
            images = parts[number][torch.tensor([rows[place] - starts[number] for place in places])]
            found.update(zip(places, images, strict=True))
        return torch.stack([found[place] for place in range(len(rows))])

    return Lazy(starts[-1], read, decodes=any(map(decodes, parts)))


def decodes(pixels: Pixels) -> bool:
    """Whether images are decoded each time they are asked for."""
    return isinstance(pixels, Lazy) and pixels.decodes


class Storage:
    """Where the decoded images of a stream are kept.

    Args:
        where: ``auto``: in memory up to ``room``, and what is more in files of the user's cache folder, which are gone
            when the process ends. A folder: in its files, which a later run finds again. ``off``: nowhere; images are
            decoded each time they are asked for.
        room: bytes that stay in memory.
    """

    def __init__(self, where: str | Path = "auto", room: int = ROOM) -> None:
        self.where, self.room = where, room
        self._used = 0
        self._hashes = FileHashes()

    def pixels(
        self, files: Sequence[ImageFile], preprocessing: Preprocessing, bits: int | None, advance: Advance
    ) -> Pixels:
        """Images, decoded now (``off``: later).

        Raises:
            InputError: an image cannot be read, or there is no room for them on the disk.
        """
        size = len(files) * bytes_of(preprocessing)
        if self.where == "off":
            return Lazy(
                len(files),
                lambda rows: decode_all([files[row] for row in rows], preprocessing, bits=bits),
                decodes=True,
            )
        if self.where == "auto":
            if self._used + size <= self.room:
                self._used += size
                return decode_all(files, preprocessing, advance, bits)
            with _writable(cache_folder(), size, len(files)) as folder:
                file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed with its last reader
                _fill(file, files, preprocessing, bits, advance)
            return _in_file(file, len(files), preprocessing)
        name = self._key(files, preprocessing, bits)
        with _writable(Path(self.where).expanduser(), 0, len(files)) as folder, FileLock(folder / f"{name}.lock"):
            path = folder / f"{name}.images"
            if path.is_file() and path.stat().st_size == size:
                advance(len(files))
            else:
                with _writable(folder, size, len(files)):
                    part = path.with_suffix(".part")
                    try:
                        with part.open("wb") as file:
                            _fill(file, files, preprocessing, bits, advance)
                        part.replace(path)
                    finally:
                        part.unlink(missing_ok=True)
        return _in_file(path.open("rb", buffering=0), len(files), preprocessing)

    def told(self, images: int, preprocessing: Preprocessing) -> str:
        """Where so many images will go, in words; nothing if all stay in memory."""
        size = images * bytes_of(preprocessing)
        if self.where == "off":
            return f"{images:,} images are decoded again each time they are needed (--cache off)"
        if self.where != "auto":
            return f"{images:,} images decode to {_gib(size)}, kept in {self.where} for later runs"
        if size <= self.room:
            return ""
        return (
            f"{images:,} images decode to {_gib(size)}: what does not fit in {_gib(self.room)} of memory goes into "
            f"{cache_folder()} until the end (--cache names another folder; off: decoded again each time)"
        )

    def _key(self, files: Sequence[ImageFile], preprocessing: Preprocessing, bits: int | None) -> str:
        """What decoded images depend on."""
        found = hashlib.sha256(repr((1, PIL.__version__, preprocessing.kept(), bits)).encode())
        for file in files:
            if isinstance(file, Path) and file.exists():
                seen = file.stat()
                found.update(repr((str(file.resolve()), seen.st_size, seen.st_mtime_ns)).encode(errors="replace"))
            elif not isinstance(file, Path):
                found.update(self._hashes.of(file).encode())
        return found.hexdigest()[:32]


def bytes_of(preprocessing: Preprocessing) -> int:
    """Of one decoded image."""
    return preprocessing.channels * preprocessing.resize**2


def cache_folder() -> Path:
    """The user's folder for what can be made again: ``intarsia`` in XDG_CACHE_HOME, LOCALAPPDATA or ~/.cache."""
    named = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    return Path(named or "~/.cache").expanduser() / "intarsia"


@contextmanager
def _writable(folder: Path, size: int, images: int) -> Iterator[Path]:
    """A folder with room for so many bytes, made if it is not there; what is wrong with it in words."""
    remedy = "name another folder with --cache, or decode them each time with --cache off"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if size > free:
            raise InputError(
                f"{images:,} decoded images need {_gib(size)} in {folder}, which has {_gib(free)}: {remedy}"
            )
        yield folder
    except OSError as error:
        raise InputError(
            f"{folder} cannot keep {images:,} decoded images ({error.strerror or error}): {remedy}"
        ) from error


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**27 else f"{size / 2**20:.1f} MiB"


def _fill(
    file: IO[bytes], files: Sequence[ImageFile], preprocessing: Preprocessing, bits: int | None, advance: Advance
) -> None:
    """Write decoded images one after another; the file is closed if one cannot be read or written."""
    try:
        for image in decoded(files, preprocessing, bits):
            file.write(image.tobytes())
            advance(1)
        file.flush()
    except BaseException:
        file.close()
        raise


def _in_file(file: IO[bytes], count: int, preprocessing: Preprocessing) -> Lazy:
    """Images of a file, one after another; it is closed with the last that knows of it."""
    shape, size, one_reader = (preprocessing.channels, *[preprocessing.resize] * 2), bytes_of(preprocessing), Lock()

    def read(rows: Sequence[int]) -> Tensor:
        images = torch.empty(len(rows), *shape, dtype=torch.uint8)
        with one_reader:
            for image, row in zip(images.numpy(), rows, strict=True):
                file.seek(row * size)
                if file.readinto(memoryview(image).cast("B")) != size:  # pyright: ignore[reportAttributeAccessIssue]
                    raise InputError(f"decoded images in {file.name} are cut off: remove the file, they are made again")
        return images

    made = Lazy(count, read)
    weakref.finalize(made, file.close)
    return made
