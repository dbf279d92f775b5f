"""The one training loop, of modules and of baselines: AdamW over a task's batches, cosine by epoch."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from intarsia.backbones.backbone import Backbone
from intarsia.data.augmentation import Augmentation, augment
from intarsia.errors import DivergenceError, InputError
from intarsia.numerics import wide
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
    images: int,
    generator: torch.Generator,
    loss: Callable[[Batch], Loss],
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
        images: N of the task.
        generator: of the batches' order.
        loss: of a batch.
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
    for batch in batches(settings, images, generator, first):
        batch.set_rate(optimizer)
        found = loss(batch)
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
    """AdamW as the settings say."""
    return torch.optim.AdamW(list(parameters), lr=settings.lr, weight_decay=settings.weight_decay, foreach=True)


def network_to_train(backbone: Backbone, settings: Settings) -> nn.Module:
    """The backbone's network, its adapters attached, compiled if that is asked for.

    Raises:
        InputError: there is nothing to compile with.
    """
    if not settings.compile:
        return backbone.model
    if backbone.device.type == "cpu" and not any(map(shutil.which, CXX)):
        raise InputError(
            f"--training.compile on a CPU needs a C++ compiler: none of {', '.join(CXX)} found; install one"
        )
    torch.compiler.reset()  # what was compiled for the last task's adapters is of no use, and would count as a try
    return cast(nn.Module, torch.compile(backbone.model))


@contextmanager
def arithmetic(settings: Settings, device: torch.device) -> Iterator[None]:
    """The forward pass of a training step in ``settings.dtype``: products in it, weights and sums in float32."""
    with ExitStack() as stack:
        if settings.dtype == "bfloat16":
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
            if device.type == "cpu":  # whose fused attention is slower backward in bfloat16 than all else together
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def training_batch(
    images: Tensor, backbone: Backbone, augmentation: Augmentation, generator: torch.Generator
) -> Tensor:
    """(B, C, size, size) on the backbone's device: uint8 images (B, C, R, R), augmented and normalised."""
    return augment(images.to(backbone.device), augmentation, backbone.preprocessing, generator)
