"""One run of learning: everything that stays the same over its tasks, and its sources of randomness."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.data.augmentation import augment
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.progress import Progress, silent
from intarsia.regularizers.iel import IEL
from intarsia.regularizers.ita import ITA
from intarsia.training.checkpoint import Checkpoint
from intarsia.training.settings import Settings

FEATURE_BATCH = 64


CXX = ("g++", "clang++", "c++")


@dataclass(frozen=True)
class Run:
    """What every step of every task is given.

    Args:
        backbone: theta0.
        adapter: what a task vector is made of.
        regularizer: ITA or IEL, and its strength.
        training: everything else.
        stream: the tasks.
        progress: told how far the work is.
        checkpoint: where a task's training is kept at every epoch border; nowhere if None.
    """

    backbone: Backbone
    adapter: Adapter
    regularizer: ITA | IEL
    training: Settings
    stream: TaskStream
    progress: Progress = silent
    checkpoint: Checkpoint | None = None

    def features(self, task: str, images: Tensor) -> Tensor:
        """(N, D) of the network as it stands, on the CPU, in one pass."""
        return torch.cat([self.backbone.features(x).cpu() for x in self.batches(task, "features", images)])

    def batches(self, task: str, phase: str, images: Tensor) -> Iterator[Tensor]:
        """Normalised images in order, on the backbone's device."""
        done = 0
        for batch in images.split(FEATURE_BATCH):
            yield self.backbone.preprocessing.normalize(batch.to(self.backbone.device))
            done += len(batch)
            self.progress(f"{task}: {phase}", done, len(images))

    def varied(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A training batch (B, C, size, size) on the backbone's device: uint8 images, augmented and normalised."""
        kind = self.stream.augmentation if self.training.augment else "none"
        return augment(images, kind, self.backbone.preprocessing, generator).to(self.backbone.device)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
        """AdamW as ``training`` says."""
        rate, decay = self.training.lr, self.training.weight_decay
        return torch.optim.AdamW(list(parameters), lr=rate, weight_decay=decay, foreach=True)

    def trained_network(self) -> nn.Module:
        """The backbone's network, its adapters attached, compiled if that is asked for.

        Raises:
            InputError: there is nothing to compile with.
        """
        if not self.training.compile:
            return self.backbone.model
        if self.backbone.device.type == "cpu" and not any(map(shutil.which, CXX)):
            raise InputError(f"--compile on a CPU needs a C++ compiler: none of {', '.join(CXX)} found; install one")
        torch.compiler.reset()  # what was compiled for the last task's adapters is of no use, and would count as a try
        return cast(nn.Module, torch.compile(self.backbone.model))

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """The forward pass of a training step in ``training.dtype``: products in it, weights and sums in float32."""
        kind = self.backbone.device.type
        with ExitStack() as stack:
            if self.training.dtype == "bfloat16":
                stack.enter_context(torch.autocast(kind, torch.bfloat16))
                if kind == "cpu":  # whose fused attention is slower backward in bfloat16 than all else together
                    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    def seed(self, number: int, purpose: str) -> int:
        """A seed of its own for each task (from 1) and purpose: nothing random is carried from task to task."""
        digest = hashlib.sha256(f"{self.training.seed}/{number}/{purpose}".encode()).digest()
        return int.from_bytes(digest[:7], "big")

    def generator(self, number: int, purpose: str) -> torch.Generator:
        """A generator with that seed, on the CPU."""
        return torch.Generator().manual_seed(self.seed(number, purpose))
