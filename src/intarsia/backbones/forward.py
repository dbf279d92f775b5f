"""The one batched forward: uint8 images -> normalised batches on a device -> what a network says of them."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from intarsia.backbones.preprocessing import Preprocessing
from intarsia.progress import Progress, silent

BATCH = 64
"""Images per forward pass where nothing is trained."""


class Pixels(Protocol):
    """uint8 images (N, C, R, R) that are read batch by batch: a tensor is one, and what lies in a file can be."""

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, index: Any, /) -> Tensor:
        """Of a position (C, R, R); of a slice, of positions (B,) or of booleans (N,): (B, C, R, R)."""
        ...


def normalized(
    images: Pixels,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    progress: Progress = silent,
    phase: str = "images",
) -> Iterator[Tensor]:
    """Batches (B, C, size, size), float32, on a device, of uint8 images (N, C, R, R), in order.

    Args:
        images: as a stream holds them.
        preprocessing: of the network they are for.
        device: where the batches are made.
        progress: told of ``phase`` how many of the N images are done.
        phase: what the batches are for.
    """
    done = 0
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        yield preprocessing.normalize(batch.to(device))
        done += len(batch)
        progress(phase, done, len(images))


@torch.no_grad()
def outputs(
    network: Callable[[Tensor], Tensor],
    images: Pixels,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    progress: Progress = silent,
    phase: str = "images",
) -> Tensor:
    """What a network says of uint8 images (N, C, R, R): (N, ...), on the CPU; see ``normalized``."""
    batches = normalized(images, preprocessing, device, progress=progress, phase=phase)
    return torch.cat([network(x).cpu() for x in batches])
