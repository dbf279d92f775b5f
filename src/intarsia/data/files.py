"""What an image is read from: a file, or a row of a table; which formats are read, and the hashes of the bytes.

Bytes are hashed once: who keeps a ``FileHashes`` finds them again by path, size and time of the last change.
"""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from PIL import Image, JpegImagePlugin, features

from intarsia.errors import InputError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_EXTRA = {
    ".avif": ("AVIF", "a Pillow with AVIF (11.3 or later): pip install --upgrade Pillow"),
    ".heic": ("HEIF", "pillow-heif: pip install pillow-heif"),
    ".heif": ("HEIF", "pillow-heif: pip install pillow-heif"),
}
"""Suffixes of what not every Pillow reads -> the format, and what it needs."""


# Only these decoders ever see a user's bytes: Pillow knows more, some of which start other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


LIMIT = 89_478_485
"""Pixels of an image that is decoded whole: Pillow's own limit, a quarter of a gigabyte of colours."""
_LARGEST_JPEG = 16
"""A JPEG may have so many times as many: it is decoded at an eighth of its sides, in strips (a progressive one is not
decoded in strips, so it may have twice as many)."""


@dataclass(frozen=True)
class Row:
    """An image in a table, such as a data set of a hub.

    Args:
        name: for messages; no other row has it.
        read_bytes: gives its file's bytes.
    """

    name: str
    read_bytes: Callable[[], bytes] = field(compare=False, repr=False)

    def __str__(self) -> str:
        """As messages name it."""
        return self.name


ImageFile = Path | Row
"""What an image is read from."""


class FileHashes:
    """SHA-256 of files, each read once for as long as its size and its time of change stay the same.

    Args:
        known: what ``record`` gave before.
    """

    def __init__(self, known: dict[str, list[object]] | None = None) -> None:
        self._known = dict(known or {})
        self._rows: dict[Row, str] = {}

    def record(self) -> dict[str, list[object]]:
        """As JSON: path -> size, time of change in nanoseconds, hash. Rows of tables are left out."""
        return dict(self._known)

    def of(self, file: ImageFile) -> str:
        """The hash of a file's bytes.

        Raises:
            InputError: it cannot be read.
        """
        if isinstance(file, Row):
            if file not in self._rows:
                self._rows[file] = hashlib.sha256(file.read_bytes()).hexdigest()
            return self._rows[file]
        key = str(file.resolve())
        try:
            seen = file.stat()
            size, changed, found = self._known.get(key, (None, None, None))
            if (size, changed) != (seen.st_size, seen.st_mtime_ns):
                found = hashlib.sha256(file.read_bytes()).hexdigest()
                self._known[key] = [seen.st_size, seen.st_mtime_ns, found]
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror or error}): restore it, or allow it") from error
        return str(found)


def is_image(path: str | Path) -> bool:
    """Whether a file is an image, by its suffix in any case."""
    suffix = Path(path).suffix.lower()
    return suffix in _SUFFIXES or suffix in _EXTRA


@cache
def formats() -> tuple[str, ...]:
    """Those that are read here, as Pillow calls them."""
    found = _FORMATS
    if features.check("avif"):
        found += ("AVIF",)
    if find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

        register_heif_opener()
        found += ("HEIF",)
    return found


def needed(file: ImageFile) -> str:
    """What is missing here to read a file of its suffix, in words; nothing if nothing is."""
    kind, needs = _EXTRA.get(Path(str(file)).suffix.lower(), ("", ""))
    return f"is {kind}, which needs {needs}" if kind and kind not in formats() else ""


@contextmanager
def opened(file: ImageFile) -> Iterator[Image.Image]:
    """An image whose header was read, whatever it says of its size."""
    if isinstance(file, Path):
        _check_file(file)
    with file.open("rb") if isinstance(file, Path) else io.BytesIO(file.read_bytes()) as stream:
        try:
            image = Image.open(stream, formats=formats())
        except Image.DecompressionBombError:  # twice the limit and more
            image = _large(stream, file)
        with image:
            yield image


def _large(stream: IO[bytes], file: ImageFile) -> Image.Image:
    """A JPEG, read past Pillow's refusal of so many pixels, for it can be decoded in part."""
    stream.seek(0)
    if stream.read(2) != b"\xff\xd8":
        raise InputError(
            f"'{file}' has more than {2 * LIMIT:,} pixels, too large to decode safely: expected at most {LIMIT:,} in "
            "its format. Make it smaller, or save it as a baseline JPEG."
        )
    stream.seek(0)
    return JpegImagePlugin.JpegImageFile(stream)


def reduce(image: Image.Image, side: int, *, always: bool) -> None:
    """Let a JPEG of too many pixels be decoded at half, a quarter or an eighth of its sides, no smaller than wanted."""
    pixels = image.width * image.height
    most = LIMIT * (2 if image.info.get("progressive") else _LARGEST_JPEG)
    if image.format in ("JPEG", "MPO") and (always or LIMIT < pixels <= most):
        image.draft(None, (side, side))


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"'{path}': there is no such image file.")
    if path.stat().st_size == 0:
        raise InputError(f"'{path}' is empty (0 bytes): expected an image. Replace or remove it.")
