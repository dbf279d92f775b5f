"""Settings images changed a little, at random, batch by batch, on tensors.

Convention: as in `decoding`; all randomness comes from a generator on the CPU.
"""

import math
from typing import cast, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.backbones.preprocessing import Preprocessing, unit
from intarsia.data.choices import Augmentation
from intarsia.errors import InputError

TURNED = 1 / 3
"""Share of the sketches in a batch that are turned and scaled."""


def augment(images: Tensor, kind: Augmentation, preprocessing: Preprocessing, generator: torch.Generator) -> Tensor:
    """Change each image of a training batch a little, at random, and normalise.

    Args:
        images: uint8 (B, C, R, R), on any device: the work is done there.
        kind: `none`: only normalise. `sketch`: shift by up to 2/28 of the side, in whole pixels; a third of them also
            scale by 0.9..1.1 and rotate by up to 10 degrees, to the nearest pixel, for interpolation softens thin
            strokes and fine grain beyond what the change is worth; the image's median where nothing comes in. `photo`:
            crop 8..100 % of the area at a ratio of 3/4..4/3, resize, mirror half of them. `crop`: the same, none
            mirrored, for classes that a mirror would exchange (left and right, letters).
        preprocessing: Of the backbone.
        generator: Of all randomness, on the CPU: the same state gives the same batch, on any device.

    Returns:
        Tensor: float32 (B, C, size, size), normalised, on the images' device.
    """
    if kind == "none":
        return preprocessing.normalize(images)
    if kind == "sketch":
        theta, sampling = _jitter(len(images), preprocessing.size, images.shape[-1], generator), ("nearest", "zeros")
    else:
        check_augmentation(kind)
        theta = _random_resized_crop(len(images), generator, mirrored=kind == "photo")
        sampling = ("bilinear", "border")
    shape = [*images.shape[:2], preprocessing.size, preprocessing.size]
    grid = F.affine_grid(theta.to(images.device, non_blocking=True), shape, align_corners=False)
    mode, padding = sampling
    ground = _ground(images) if padding == "zeros" else 0.0
    moved = F.grid_sample(unit(images) - ground, grid, mode, padding, align_corners=False) + ground
    return preprocessing.normalize(moved)


def check_augmentation(kind: str) -> Augmentation:
    """A kind of augmentation that there is.

    Raises:
        InputError: there is none of that name.
    """
    if kind not in get_args(Augmentation):
        raise InputError(f"There is no augmentation {kind!r}: expected one of {', '.join(get_args(Augmentation))}.")
    return cast(Augmentation, kind)


def sample_sheet(
    images: Tensor, kind: Augmentation, preprocessing: Preprocessing, generator: torch.Generator, each: int = 7
) -> Tensor:
    """What an augmentation does, to be looked at: a row for each image, first as it is, then augmented.

    Args:
        images: uint8 (N, C, R, R), as a stream holds them.
        kind: as for `augment`.
        preprocessing: of the backbone.
        generator: of all randomness.
        each: how often each is augmented.

    Returns:
        uint8 (C, N * size, (1 + each) * size).
    """
    columns = [augment(images, "none", preprocessing, generator)]
    columns += [augment(images, kind, preprocessing, generator) for _ in range(each)]
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    rows = torch.cat([(column * std + mean).mul(255).round().clamp(0, 255).byte() for column in columns], 3)
    return torch.cat([*rows], 1)


def _ground(images: Tensor) -> Tensor:
    """What a drawing lies on, in 0..1, (B, C, 1, 1): its median, so that an edge which comes in does not show."""
    return unit(images).flatten(2).median(2).values[..., None, None]


def _jitter(count: int, size: int, side: int, generator: torch.Generator) -> Tensor:
    """Output (size) to input (side) coordinates, (B, 2, 3): all shifted by whole pixels, some turned and scaled."""
    degrees, scale, x, y, some = torch.rand(5, count, generator=generator)
    turned = some < TURNED
    angle = torch.where(turned, math.radians(10) * (2 * degrees - 1), 0.0)
    zoom = size / side / torch.where(turned, 1 + 0.1 * (2 * scale - 1), 1.0)
    reach = max(1, round(2 * side / 28))
    x, y = (((2 * reach + 1) * shift).floor().sub(reach) * 2 / side for shift in (x, y))  # a side is 2 long
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    return torch.stack([torch.stack([cos, -sin, x], 1), torch.stack([sin, cos, y], 1)], 1)


def _random_resized_crop(count: int, generator: torch.Generator, *, mirrored: bool, tries: int = 10) -> Tensor:
    """Output to input coordinates, (B, 2, 3), of a crop of random area, ratio and place, half mirrored or none.

    As torchvision's RandomResizedCrop: of ten draws of area and ratio the first that lies inside the image, else the
    whole image.
    """
    area = 0.08 + (1 - 0.08) * torch.rand(count, tries, generator=generator)
    ratio = torch.exp(math.log(4 / 3) * (torch.rand(count, tries, generator=generator) * 2 - 1))
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    inside = (width <= 1) & (height <= 1)
    first = inside.int().argmax(1, keepdim=True)  # argmax takes the first of equals
    whole = ~inside.any(1)
    width, height = (side.gather(1, first).squeeze(1).masked_fill(whole, 1.0) for side in (width, height))
    x, y, mirror = torch.rand(3, count, generator=generator)
    x, y = (1 - width) * (2 * x - 1), (1 - height) * (2 * y - 1)
    zero, across = torch.zeros(count), torch.where((mirror < 0.5) & mirrored, -width, width)
    return torch.stack([torch.stack([across, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
