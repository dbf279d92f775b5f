"""The one training loop, of modules and of baselines: AdamW over a task's batches, cosine by epoch.

A card is never waited for within an epoch: images are read ahead, copies are begun and not waited for, losses are added
up where they are.
"""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from intarsia.backbones.backbone import Backbone
from intarsia.backbones.forward import Pixels, read_ahead
from intarsia.data.augmentation import Augmentation, augment
from intarsia.errors import DivergenceError, InputError
from intarsia.numerics import autocast, products_in, wide
from intarsia.parallel.processes import current
from intarsia.progress import Progress, silent
from intarsia.training.schedule import Batch, batches
from intarsia.training.settings import Settings

CXX = ("g++", "clang++", "c++")


class Loss(NamedTuple):
    """The loss of a batch, scalars with a graph."""

    task: Tensor
    """What is reported: the mean over the batch's images."""
    penalty: Tensor | None = None
    """What is minimised beside it."""


def _nothing(_: object) -> None:
    pass


def train(
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    images: Pixels,
    labels: Tensor,
    generator: torch.Generator,
    loss: Callable[[Batch, Tensor], Loss],
    *,
    name: str,
    progress: Progress = silent,
    complaint: Callable[[str], str] | None = None,
    losses: list[float] | None = None,
    first: int = 0,
    before_step: Callable[[Batch], None] = _nothing,
    after_step: Callable[[Batch], None] = _nothing,
    after_epoch: Callable[[int], None] = _nothing,
) -> list[float]:
    """Train the optimizer's parameters on a task, in place.

    Args:
        optimizer: of all that is trained.
        settings: say how many epochs, images per step, and the learning rate.
        images: uint8 (N, C, R, R) of the task.
        labels: (N,) of them.
        generator: of the batches' order.
        loss: of a batch and its images, uint8 (B, C, R, R), on the CPU.
        name: of the task.
        progress: told how far the work is.
        complaint: what is wrong -> how that is told, with what to do; a smaller learning rate if None.
        losses: sums over the images of each epoch, as far as they are known; filled in place.
        first: the epoch to begin with, from 0.
        before_step: done after the backward pass, before the optimizer's step.
        after_step: done after it.
        after_epoch: done after an epoch; told how many there were.

    Returns:
        The sum of the task's loss over its images, by epoch. It is added up on the device and looked at once per epoch.

    Raises:
        DivergenceError: a loss is not finite; the message names task and epoch.
    """
    losses = [0.0] * settings.epochs if losses is None else losses
    total: Tensor | None = None
    device = next(p.device for group in optimizer.param_groups for p in group["params"])
    order = batches(settings, labels, generator, first)
    # the next epoch's order is drawn after what this one's last batch draws
    ahead = read_ahead(images, order, lambda batch: batch.index, device, ends=lambda batch: batch.ends_epoch)
    with closing(ahead), products_in(settings.precision, device):
        for batch, own in ahead:
            batch.set_rate(optimizer)
            found = loss(batch, own)
            summed = wide(found.task.detach()) * len(batch.index)
            total = summed if total is None else total + summed
            optimizer.zero_grad(set_to_none=True)
            (found.task if found.penalty is None else found.task + found.penalty).backward()
            before_step(batch)
            optimizer.step()
            after_step(batch)
            if batch.ends_epoch:
                losses[batch.epoch], total = float(total), None
                if not math.isfinite(losses[batch.epoch]):
                    what = f"the loss is {losses[batch.epoch]} in epoch {batch.epoch + 1}"
                    told = f"task {name!r}: {what} (lr {settings.lr:g}): use a smaller learning rate"
                    raise DivergenceError(complaint(what) if complaint else told)
                after_epoch(batch.epoch + 1)
                progress(f"{name}: training", batch.epoch + 1, settings.epochs)
    return losses


def adamw(settings: Settings, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW as the settings say; on a card one kernel for all parameters.

    On a CPU that kernel mixes up the numbers of tensors whose strides differ, and says nothing.
    """
    trained = list(parameters)
    card = trained[0].is_cuda
    return torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay, fused=card, foreach=not card)


def network_to_train(backbone: Backbone, settings: Settings) -> Callable[[Tensor], Tensor]:
    """Normalised images (B, C, size, size) -> features (B, D), by the backbone's network, its adapters attached.

    Compiled, in another precision, in parts, its blocks' activations computed again, as the settings say. Of the parts'
    activations one part's are held at a time: each is computed again as the gradients of its features are known, so
    that any loss of all features has its exact gradient. That costs a forward pass more. Where several processes work
    together, each passes its part of the batch through the network, and all get all features.

    Raises:
        InputError: there is nothing to compile with, or there are no blocks.
    """
    network, device, here = backbone.model, backbone.device, current()
    blocks = _blocks(backbone, settings)
    if settings.compile:
        if device.type == "cpu" and not any(map(shutil.which, CXX)):
            raise InputError(
                f"--training.compile on a CPU needs a C++ compiler: none of {', '.join(CXX)} found; install one"
            )
        torch.compiler.reset()  # what was compiled for the last task's adapters is of no use, and would count as a try
        network = cast(nn.Module, torch.compile(network))

    def whole(images: Tensor) -> Tensor:
        with _forgetting(blocks if torch.is_grad_enabled() else ()):
            return network(images)

    def features(images: Tensor) -> Tensor:
        rows = here.rows(len(images))  # its part of the batch; of none, one image without any weight
        parts = images[rows if rows.start < rows.stop else slice(0, 1)].chunk(settings.accumulate)
        run = partial(_again, whole) if torch.is_grad_enabled() and len(parts) > 1 else whole
        with autocast(settings.precision, device):
            found = [run(part) for part in parts]
        own = found[0] if len(found) == 1 else torch.cat(found)
        return here.joined(own[: rows.stop - rows.start], rows, len(images))

    return features


def _blocks(backbone: Backbone, settings: Settings) -> Sequence[nn.Module]:
    """Whose activations are not kept."""
    if not settings.grad_checkpointing:
        return ()
    if settings.compile:
        raise InputError("--grad-checkpointing and --training.compile together: leave one out")
    if not (blocks := backbone.blocks()):
        raise InputError(
            f"--grad-checkpointing: {backbone.name} has no list of blocks with trainable weights whose activations "
            "could be computed again: leave it out, and use --accumulate to save memory"
        )
    return blocks


def _again(network: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """What a network says; what its backward pass needs is computed again. Nothing in it is random."""
    return checkpoint(network, *inputs, use_reentrant=False, preserve_rng_state=False, **options)


@contextmanager
def _forgetting(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Of these modules, only inputs are kept of a forward pass in the block."""
    try:
        for block in blocks:
            block.forward = partial(_again, block.forward)
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def training_batch(
    images: Tensor, backbone: Backbone, augmentation: Augmentation, generator: torch.Generator
) -> Tensor:
    """(B, C, size, size) on the backbone's device: uint8 images (B, C, R, R), augmented and normalised there."""
    return augment(images.to(backbone.device, non_blocking=True), augmentation, backbone.preprocessing, generator)
