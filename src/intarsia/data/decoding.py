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
from intarsia.data.files import LIMIT, ImageFile, formats, needed, opened, reduce
from intarsia.errors import InputError

DEPTHS = (8, 10, 12, 14, 16, 20, 24, 31)
"""Bits that a grey value of more than 8 may have."""


_WHITE = (255, 255, 255, 255)


OBLONG = 4
"""Beyond so many times its shorter side, an image's longer one is not resized as a whole."""


def decode(file: str | ImageFile, preprocessing: Preprocessing, bits: int | None = None) -> Tensor:
    """Read one image.

    Any mode is brought to grey or red-green-blue: transparent pixels are laid on white, as on a web page; grey of more
    than 8 bits is scaled to 8; the camera's orientation is applied; of an animation the first frame is taken.

    Args:
        file: A png, jpg, bmp, gif, webp, tiff, ppm or pgm file, avif and heic where Pillow reads them; or such a file's
            bytes in a table.
        preprocessing: The size and channels to bring it to.
        bits: Of a grey value, where it has more than 8: 2**bits - 1 is white. If None, the fewest of 8, 10, 12, 14, 16
            that hold the image's largest.

    Returns:
        Tensor: uint8 (C, resize, resize).

    Raises:
        InputError: The file, which the message names, is missing, empty, broken, not an image, or too large to be
            decoded safely.
    """
    with _quiet():
        return torch.from_numpy(_decode(_named(file), preprocessing, bits))


def decode_all(
    files: Sequence[str | ImageFile],
    preprocessing: Preprocessing,
    advance: Callable[[int], None] = lambda count: None,
    bits: int | None = None,
) -> Tensor:
    """Read many images, on as many threads as torch uses.

    Args:
        files: The files.
        preprocessing: As for `decode`.
        advance: Called with 1 after each file, for a progress bar.
        bits: As for `decode`.

    Returns:
        Tensor: uint8 (N, C, resize, resize), in the order of the files.

    Raises:
        InputError: As `decode`, for the first file that cannot be read.
    """
    side = preprocessing.resize
    images = torch.empty(len(files), preprocessing.channels, side, side, dtype=torch.uint8)
    for index, image in enumerate(decoded(files, preprocessing, bits)):
        images[index] = torch.from_numpy(image)
        advance(1)
    return images


def decoded(files: Sequence[str | ImageFile], preprocessing: Preprocessing, bits: int | None) -> Iterator[np.ndarray]:
    """Images uint8 (C, resize, resize) one after another, decoded ahead on as many threads as torch uses."""
    ahead = 4 * torch.get_num_threads()
    with _quiet(), ThreadPoolExecutor(torch.get_num_threads()) as threads:
        waiting = [threads.submit(_decode, _named(file), preprocessing, bits) for file in files[:ahead]]
        for number in range(len(files)):
            image = waiting[number % ahead].result()
            if number + ahead < len(files):
                waiting[number % ahead] = threads.submit(_decode, _named(files[number + ahead]), preprocessing, bits)
            yield image


def what_is_wrong(files: Sequence[ImageFile]) -> dict[ImageFile, str]:
    """The files that cannot be read, each with why; those of JPEG are decoded at an eighth of their sides."""
    tiny = Preprocessing(size=8, resize=8, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="nearest")

    def tried(file: ImageFile) -> str | None:
        try:
            _decode(file, tiny, None, reduced=True)
        except InputError as error:
            return str(error)
        return None

    with _quiet(), ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return {file: why for file, why in zip(files, threads.map(tried, files), strict=True) if why is not None}


def depth(files: Sequence[ImageFile], samples: Sequence[ImageFile]) -> int | None:
    """Bits that hold every grey value of more than 8 bits in some files; None if no sample has such values.

    Args:
        files: All of them; what cannot be read is left for `decode` to complain of.
        samples: Those whose headers are looked at; only if one is deep, all files are read.
    """

    def largest(file: ImageFile, read: bool = True) -> int:
        try:
            with opened(file) as image:
                return 0 if image.mode[0] != "I" else int(np.asarray(image).max()) if read else 1
        except Exception:  # what is wrong with it comes out when it is decoded
            return 0

    with _quiet(), ThreadPoolExecutor(torch.get_num_threads()) as threads:
        if not any(threads.map(lambda file: largest(file, read=False), samples)):
            return None
        found = max(threads.map(largest, files), default=0)
    return _fewest(found)


def _fewest(largest: int) -> int:
    """Bits that hold a value."""
    return next((bits for bits in DEPTHS if largest < 2**bits), DEPTHS[-1])


def _named(file: str | ImageFile) -> ImageFile:
    return Path(file) if isinstance(file, str) else file


@contextmanager
def _quiet() -> Iterator[None]:
    """Odd metadata beside good pixels is no matter; too many pixels are. Of the whole process: set around threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
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


def _decode(
    file: ImageFile, preprocessing: Preprocessing, bits: int | None = None, *, reduced: bool = False
) -> np.ndarray:
    """The file as uint8 (C, resize, resize); whatever Pillow raises becomes an `InputError` that names the file."""
    try:
        with opened(file) as image:
            reduce(image, preprocessing.resize, always=reduced)
            if image.width * image.height > LIMIT:
                raise InputError(
                    f"'{file}' has {image.width} x {image.height} pixels, too large to decode safely: expected at most "
                    f"{LIMIT:,} in its format. Make it smaller, or save it as a baseline JPEG."
                )
            square = _square(_plain(ImageOps.exif_transpose(image), preprocessing.channels, bits), preprocessing)
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        if needs := needed(file):
            raise InputError(f"'{file}' {needs}. Install it, or convert the file.") from error
        kinds = ", ".join(formats())
        raise InputError(f"'{file}' is not an image: expected one of {kinds}. Replace or remove it.") from error
    except PermissionError as error:
        raise InputError(f"'{file}' cannot be read: permission denied.") from error
    except Exception as error:  # broken bytes make Pillow's decoders raise almost anything
        raise InputError(
            f"'{file}' cannot be decoded ({error}): expected a whole image. Replace or remove it."
        ) from error
    return np.array(square).reshape(preprocessing.resize, preprocessing.resize, -1).transpose(2, 0, 1)


def _plain(image: Image.Image, channels: int, bits: int | None) -> Image.Image:
    """An image of any mode as `L` or `RGB`."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image, bits)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _eight_bit(image: Image.Image, bits: int | None) -> Image.Image:
    """Grey of more than 8 bits: integers have so many bits, floats are 0..1. Pillow's own conversion clips them."""
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    top = 1.0 if image.mode == "F" else 2.0 ** (bits or _fewest(int(high))) - 1
    if not (low >= 0 and high <= top):
        told = f"0 to {top:g}{'; --source.bits says of how many bits they are' if bits else ''}"
        raise ValueError(f"mode {image.mode} with values from {low:g} to {high:g}, expected {told}")
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
