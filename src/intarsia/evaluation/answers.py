"""What models answer on test images, where each network's features are computed once.

A head works on its network's features, so models that share a network share the features: a pool's mean in its
evaluation, in its confusions and beside its edits; the first module alone and the specialist of the first task.
"""

from collections.abc import Callable, Mapping
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from intarsia.backbones.forward import BATCH, Pixels, outputs
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.stream import Task
from intarsia.merging.model import ComposedModel
from intarsia.numerics import digest

ROOM = 256 * 2**20
"""Bytes of features that are kept."""


class Classifier(Protocol):
    """What is measured: anything that gives uint8 images a logit for every class of its tasks."""

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """Task -> class names, in the order of the logits."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared."""
        ...

    def logits(self, images: Pixels) -> Tensor:
        """(N, C), on the CPU, of uint8 images (N, channels, R, R) as a stream holds them."""
        ...


Logits = Callable[[Classifier, Task], Tensor]
"""(model, task) -> logits (N, C), on the CPU, of the task's test images."""


def logits(model: Classifier, task: Task) -> Tensor:
    """(N, C), on the CPU, of a task's test images."""
    return model.logits(task.test.pixels(model.preprocessing))


class Answers:
    """Logits on the test images of one stream; the features they come from are kept, the oldest dropped.

    Networks are told apart by their weights, so that two merges of the same modules are one network. The logits are
    those of ``logits``, bit for bit.

    Args:
        room: bytes of features that are kept.
    """

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._features: dict[tuple[str, str], Tensor] = {}
        self._networks: WeakKeyDictionary[ComposedModel, str] = WeakKeyDictionary()

    def __call__(self, model: Classifier, task: Task) -> Tensor:
        """(N, C), on the CPU, of a task's test images."""
        if not isinstance(model, ComposedModel):
            return logits(model, task)
        key = self._network(model), task.name
        if key not in self._features:
            images, device = task.test.pixels(model.preprocessing), model.head.weight.device
            self._keep(key, outputs(model.network, images, model.preprocessing, device))
        found = _through_head(model, self._features[key])
        return found if torch.isfinite(found).all() else logits(model, task)  # whose complaint it is

    def _network(self, model: ComposedModel) -> str:
        if model not in self._networks:
            self._networks[model] = digest(model.network.state_dict())
        return self._networks[model]

    def _keep(self, key: tuple[str, str], features: Tensor) -> None:
        self._features[key] = features
        while len(self._features) > 1 and sum(f.nbytes for f in self._features.values()) > self._room:
            del self._features[next(iter(self._features))]


@torch.no_grad()
def _through_head(model: ComposedModel, features: Tensor) -> Tensor:
    """Batch by batch, as the whole model does it: products of other shapes round otherwise."""
    weight = model.head.weight
    return torch.cat([model.head(batch.to(weight)).cpu() for batch in features.split(BATCH)])
