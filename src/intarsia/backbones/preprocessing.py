"""How a backbone wants its images: size, channels, mean and standard deviation.

Convention: kept images are uint8 `(N, C, R, R)` with R = `resize`; a network's inputs are float32 `(B, C, S, S)` with
S = `size`.
"""

from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from intarsia.errors import InputError

Interpolation = Literal["nearest", "bilinear", "bicubic"]


Crop = Literal["center", "squash", "border"]


@dataclass(frozen=True)
class Preprocessing:
    """How a backbone wants its images."""

    size: int
    """Side of the square the network sees."""
    resize: int
    """Side of the square that is kept of an image, as uint8; see ``crop``."""
    channels: int
    """1 (grey) or 3 (red, green, blue)."""
    mean: tuple[float, ...]
    """Of each channel, of values in 0..1; subtracted."""
    std: tuple[float, ...]
    """Of each channel, of values in 0..1; divided by."""
    interpolation: Interpolation = "bicubic"
    """How an image is resized."""
    crop: Crop = "center"
    """How it becomes a square: `center`: its shorter side is resized to `resize`, and the middle is kept; `squash`:
    both sides are; `border`: its longer side is, and the rest is filled with the mean colour."""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.resize:
            raise InputError(f"Preprocessing: size {self.size} and resize {self.resize}: expected 1 <= size <= resize.")
        if self.channels not in (1, 3):
            raise InputError(f"Preprocessing: {self.channels} channels: expected 1 (grey) or 3 (colour).")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise InputError(
                    f"Preprocessing: {name} has {len(values)} values: expected {self.channels}, one a channel."
                )
        if not all(std > 0 for std in self.std):
            raise InputError(f"Preprocessing: std is {self.std}: expected numbers above 0.")
        for name, known in (("interpolation", Interpolation), ("crop", Crop)):
            if (value := getattr(self, name)) not in get_args(known):
                raise InputError(f"Preprocessing: {name} is {value!r}: expected one of {', '.join(get_args(known))}.")

    @property
    def fill(self) -> tuple[int, ...]:
        """What a kept square has where the image does not reach, by channel, 0..255: the mean colour."""
        return tuple(round(255 * mean) for mean in self.mean)

    def kept(self) -> Hashable:
        """All that the kept pixels depend on; how they are normalised comes later."""
        fill = self.fill if self.crop == "border" else None
        return self.size, self.resize, self.channels, self.interpolation, self.crop, fill

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The size (height, width) that an image of such a size is resized to."""
        if self.crop == "squash":
            return self.resize, self.resize
        if self.crop == "border":
            ratio = max(height, width) / self.resize
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        shorter = min(height, width)
        return self.resize * height // shorter, self.resize * width // shorter

    def start(self, side: int) -> int:
        """Where, along a side of the resized image, the kept square starts; below zero where it is filled first.

        Such that the later crop to `size` lies where one crop of the resized image would.
        """
        inner = margin(side, self.size) if side >= self.size else -((self.size - side) // 2)
        return inner - margin(self.resize, self.size)

    def normalize(self, images: Tensor) -> Tensor:
        """Crop a batch to the network's size and normalise it.

        Args:
            images: (B, C, H, W), uint8 or float in 0..1, at least `size` high and wide.

        Returns:
            Tensor: float32 (B, C, size, size), on the images' device.
        """
        height, width = images.shape[-2:]
        if images.shape[1] != self.channels or min(height, width) < self.size:
            raise InputError(
                f"Images of shape {tuple(images.shape)}: expected (B, {self.channels}, H, W) with H and W at least "
                f"{self.size}. Bring them there with `fit`."
            )
        cropped = _centre_crop(images, self.size)
        mean, std = (_on(tuple(values), images.device) for values in (self.mean, self.std))
        return (unit(cropped) - mean) / std

    def record(self) -> dict[str, Any]:
        """What `from_record` makes the same preprocessing of; fit for JSON."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `record`."""
        known = {field.name for field in fields(cls)}
        if not known - {"interpolation", "crop"} <= set(record) <= known:
            raise InputError(f"Preprocessing record with {sorted(record)}: expected {sorted(known)}.")
        values = dict(record)
        values["mean"], values["std"] = tuple(values["mean"]), tuple(values["std"])
        return cls(**values)


def unit(images: Tensor) -> Tensor:
    """uint8 to 0..1; floats are there already."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


@cache
def _on(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A number a channel, (C, 1, 1), copied to a device once: each copy would wait for all that the device does."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def _centre_crop(images: Tensor, size: int) -> Tensor:
    top, left = (margin(side, size) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def margin(side: int, size: int) -> int:
    """Where a centre crop to ``size`` starts along a side."""
    return round((side - size) / 2)
