"""The one batched forward: uint8 images -> normalised batches on a device -> what a network says of them."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from intarsia.backbones.preprocessing import Preprocessing
from intarsia.progress import Progress, silent

BATCH = 64
"""Images per forward pass where nothing is trained."""


def normalized(
    images: Tensor,
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
    for batch in images.split(BATCH):
        yield preprocessing.normalize(batch.to(device))
        done += len(batch)
        progress(phase, done, len(images))


@torch.no_grad()
def outputs(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    progress: Progress = silent,
    phase: str = "images",
) -> Tensor:
    """What a network says of uint8 images (N, C, R, R): (N, ...), on the CPU; see ``normalized``."""
    batches = normalized(images, preprocessing, device, progress=progress, phase=phase)
    return torch.cat([network(x).cpu() for x in batches])
