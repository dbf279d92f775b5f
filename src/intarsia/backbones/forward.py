"""The one batched forward: uint8 images -> normalised batches on a device -> what a network says of them.

Images are read one batch ahead, in order, on a thread of their own: while a card computes, or where reading takes time.
"""

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from intarsia.backbones.preprocessing import Preprocessing
from intarsia.progress import Progress, silent

BATCH = 64
"""Images per forward pass where nothing is trained."""
Key = TypeVar("Key")


class Pixels(Protocol):
    """uint8 images (N, C, R, R) that are read batch by batch: a tensor is one, and what lies in a file can be."""

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, index: Any, /) -> Tensor:
        """Of a position (C, R, R); of a slice, of positions (B,) or of booleans (N,): (B, C, R, R)."""
        ...


def read_ahead(
    images: Pixels,
    keys: Iterable[Key],
    index: Callable[[Key], Any],
    device: torch.device,
    *,
    ends: Callable[[Key], bool] = lambda _: False,
) -> Generator[tuple[Key, Tensor], None, None]:
    """Batches of uint8 images on the CPU, pinned if they go to a card; the next is read while one is used.

    Close it (``contextlib.closing``) where its user may fail: then no thread is left.

    Args:
        images: as a stream holds them.
        keys: one a batch; asked for the next while one is used, but after one that ``ends``.
        index: key -> positions, as ``images`` takes them.
        device: where the batches go.
        ends: after this key nothing is read ahead: what comes next is not known before it is done.

    Yields:
        Each key, and its images (B, C, R, R).

    Raises:
        Exception: what reading raises, when that batch is asked for.
    """
    pinned = device.type == "cuda"

    def read(key: Key) -> Tensor:
        batch = images[index(key)]
        return batch.pin_memory() if pinned else batch

    if isinstance(images, Tensor) and not pinned:
        yield from ((key, read(key)) for key in keys)
        return
    rest = iter(keys)
    with ThreadPoolExecutor(1, "intarsia-reader") as reader:

        def begin() -> tuple[Key, Future[Tensor]] | None:
            return next(((key, reader.submit(read, key)) for key in rest), None)

        waiting = begin()
        while waiting is not None:
            key, batch = waiting[0], waiting[1].result()
            waiting = None if ends(key) else begin()
            yield key, batch
            waiting = waiting or begin()


def normalized(
    images: Pixels,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    progress: Progress = silent,
    phase: str = "images",
) -> Generator[Tensor, None, None]:
    """Batches (B, C, size, size), float32, on a device, of uint8 images (N, C, R, R), in order.

    Args:
        images: as a stream holds them.
        preprocessing: of the network they are for.
        device: where the batches are made.
        progress: told of ``phase`` how many of the N images are done.
        phase: what the batches are for.
    """
    done = 0
    starts = range(0, len(images), BATCH)
    with closing(read_ahead(images, starts, lambda start: slice(start, start + BATCH), device)) as batches:
        for _, batch in batches:
            yield preprocessing.normalize(batch.to(device, non_blocking=True))
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
    with closing(normalized(images, preprocessing, device, progress=progress, phase=phase)) as batches:
        found = [network(x).to("cpu", non_blocking=True) for x in batches]
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the copies are begun, not done
    return torch.cat(found)
