"""How a backbone wants its images: size, channels, mean and standard deviation.

Convention: kept images are uint8 `(N, C, R, R)` with R = `resize`; a network's inputs are float32 `(B, C, S, S)` with
S = `size`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from intarsia.errors import InputError

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Preprocessing:
    """How a backbone wants its images."""

    size: int
    """Side of the square the network sees."""
    resize: int
    """Shorter side to which images are resized, and side of the central square that is kept of them, as uint8."""
    channels: int
    """1 (grey) or 3 (red, green, blue)."""
    mean: tuple[float, ...]
    """Of each channel, of values in 0..1; subtracted."""
    std: tuple[float, ...]
    """Of each channel, of values in 0..1; divided by."""
    interpolation: Interpolation = "bicubic"
    """How an image is resized."""

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
        if self.interpolation not in get_args(Interpolation):
            known = ", ".join(get_args(Interpolation))
            raise InputError(f"Preprocessing: interpolation is {self.interpolation!r}: expected one of {known}.")

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
        mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (unit(cropped) - mean) / std

    def record(self) -> dict[str, Any]:
        """What `from_record` makes the same preprocessing of; fit for JSON."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `record`."""
        known = {field.name for field in fields(cls)}
        if not known - {"interpolation"} <= set(record) <= known:
            raise InputError(f"Preprocessing record with {sorted(record)}: expected {sorted(known)}.")
        values = dict(record)
        values["mean"], values["std"] = tuple(values["mean"]), tuple(values["std"])
        return cls(**values)


def unit(images: Tensor) -> Tensor:
    """uint8 to 0..1; floats are there already."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _centre_crop(images: Tensor, size: int) -> Tensor:
    top, left = (margin(side, size) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def margin(side: int, size: int) -> int:
    """Where a centre crop to ``size`` starts along a side."""
    return round((side - size) / 2)
