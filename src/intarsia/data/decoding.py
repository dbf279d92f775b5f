"""Pixels: from an image file to what a network wants.

A file is decoded once to a small uint8 square and kept; each batch of such squares is augmented (`augmentation`) and
normalised on the way into the network. Without augmentation the two steps are the usual evaluation transform (resize,
crop, normalise) to the pixel.

Convention: kept images are uint8 `(N, C, R, R)` with R = `resize`; a network's inputs are float32 `(B, C, S, S)` with
S = `size`.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from intarsia.backbones.preprocessing import Preprocessing
from intarsia.errors import InputError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


# Only these decoders ever see a user's bytes: Pillow knows more, some of which start other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


_WHITE = (255, 255, 255, 255)


OBLONG = 4
"""Beyond so many times its shorter side, an image's longer one is not resized as a whole."""


def is_image(path: str | Path) -> bool:
    """Whether a file is an image, by its suffix in any case."""
    return Path(path).suffix.lower() in _SUFFIXES


def decode(path: str | Path, preprocessing: Preprocessing) -> Tensor:
    """Read one image file.

    Any mode is brought to grey or red-green-blue: transparent pixels are laid on white, as on a web page; 16-bit grey
    is scaled to 8 bits; the camera's orientation is applied; of an animation the first frame is taken.

    Args:
        path: A png, jpg, bmp, gif, webp, tiff, ppm or pgm file.
        preprocessing: The size and channels to bring it to.

    Returns:
        Tensor: uint8 (C, resize, resize).

    Raises:
        InputError: The file, which the message names, is missing, empty, broken, not an image, or too large to be
            decoded safely.
    """
    with _quiet():
        return torch.from_numpy(_decode(Path(path), preprocessing))


def decode_all(
    paths: Sequence[str | Path], preprocessing: Preprocessing, advance: Callable[[int], None] = lambda count: None
) -> Tensor:
    """Read many image files, on as many threads as torch uses.

    Args:
        paths: The files.
        preprocessing: As for `decode`.
        advance: Called with 1 after each file, for a progress bar.

    Returns:
        Tensor: uint8 (N, C, resize, resize), in the order of the files.

    Raises:
        InputError: As `decode`, for the first file that cannot be read.
    """
    side = preprocessing.resize
    images = torch.empty(len(paths), preprocessing.channels, side, side, dtype=torch.uint8)
    with _quiet(), ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for index, image in enumerate(threads.map(lambda path: _decode(Path(path), preprocessing), paths)):
            images[index] = torch.from_numpy(image)
            advance(1)
    return images


@contextmanager
def _quiet() -> Iterator[None]:
    """Odd metadata beside good pixels is no matter; too many pixels are. Of the whole process: set around threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def fit(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Bring images that are already in memory to the size and channels of a backbone.

    Args:
        images: uint8 (N, C, H, W), C 1 or 3.
        preprocessing: The size and channels to bring them to.

    Returns:
        Tensor: uint8 (N, channels, resize, resize); the same tensor if it already fits.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise InputError(
            f"Images of shape {tuple(images.shape)} and type {images.dtype}: expected uint8 (N, C, H, W) with C 1 or 3 "
            "and at least one pixel."
        )
    if images.shape[1] != preprocessing.channels:
        images = _grey(images) if preprocessing.channels == 1 else images.expand(-1, 3, -1, -1)
    if images.shape[2:] == (preprocessing.resize, preprocessing.resize):
        return images
    # In chunks, so that the long ends of oblong images are never all in memory at the size that is about to be cropped.
    return torch.cat([_resized(chunk, preprocessing) for chunk in images.split(256)])


def _grey(images: Tensor) -> Tensor:
    """Luma (ITU-R 601) with Pillow's own integer arithmetic, so that files and tensors agree."""
    red, green, blue = images.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(torch.uint8).unsqueeze(1)


def _resized(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resized, and the square that is kept."""
    side = preprocessing.resize
    height, width = preprocessing.resized(*images.shape[2:])
    if preprocessing.interpolation == "nearest":
        resized = F.interpolate(images, (height, width), mode="nearest-exact")
    else:
        resized = F.interpolate(images, (height, width), mode=preprocessing.interpolation, antialias=True)
    top, left = preprocessing.start(height), preprocessing.start(width)
    inside = resized[:, :, max(top, 0) : top + side, max(left, 0) : left + side]
    if inside.shape[2:] == (side, side):
        return inside
    square = images.new_tensor(preprocessing.fill).view(1, -1, 1, 1).repeat(len(images), 1, side, side)
    square[:, :, max(-top, 0) :, max(-left, 0) :][:, :, : inside.shape[2], : inside.shape[3]] = inside
    return square


def _decode(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """The file as uint8 (C, resize, resize); whatever Pillow raises becomes an `InputError` that names the file."""
    try:
        _check_file(path)
        with Image.open(path, formats=_FORMATS) as image:
            square = _square(_plain(ImageOps.exif_transpose(image), preprocessing.channels), preprocessing)
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        kinds = ", ".join(_FORMATS)
        raise InputError(f"'{path}' is not an image: expected one of {kinds}. Replace or remove it.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS} pixels"
        raise InputError(f"'{path}' has more than {limit}: too large to decode safely. Make it smaller.") from error
    except PermissionError as error:
        raise InputError(f"'{path}' cannot be read: permission denied.") from error
    except Exception as error:  # broken bytes make Pillow's decoders raise almost anything
        raise InputError(
            f"'{path}' cannot be decoded ({error}): expected a whole image. Replace or remove it."
        ) from error
    return np.array(square).reshape(preprocessing.resize, preprocessing.resize, -1).transpose(2, 0, 1)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"'{path}': there is no such image file.")
    if path.stat().st_size == 0:
        raise InputError(f"'{path}' is empty (0 bytes): expected an image. Replace or remove it.")


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """An image of any mode as `L` or `RGB`."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits: integers are taken as 16-bit, floats as 0..1. Pillow's own conversion clips them."""
    values, top = np.asarray(image).astype(np.float64), (1.0 if image.mode == "F" else 65535.0)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):
        raise ValueError(f"mode {image.mode} with values from {low:g} to {high:g}, expected 0 to {top:g}")
    return Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))


def _square(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resized, and the square that is kept."""
    side, resample = preprocessing.resize, Image.Resampling[preprocessing.interpolation.upper()]
    height, width = preprocessing.resized(image.height, image.width)
    left, top = preprocessing.start(width), preprocessing.start(height)
    if max(height, width) > OBLONG * side:  # resized and cropped in one, equal but for rounding: spares the long ends
        across, down = image.width / width, image.height / height
        right, bottom = min((left + side) * across, image.width), min((top + side) * down, image.height)
        return image.resize((side, side), resample, box=(left * across, top * down, right, bottom))
    square = Image.new(image.mode, (side, side), preprocessing.fill if image.mode == "RGB" else preprocessing.fill[0])
    square.paste(image.resize((width, height), resample), (-left, -top))
    return square
