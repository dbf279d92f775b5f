"""What a method has made of a stream so far, and the plain classifier most of them end in."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from intarsia.composition import PREDICT_BATCH
from intarsia.evaluation import Classifier
from intarsia.heads import Head
from intarsia.images import Preprocessing


@dataclass(frozen=True)
class Stage:
    """A method after one more task.

    Args:
        model: what it answers with now.
        set_up_seconds: of this task, before and after training: features, statistics, Fisher.
        training_seconds: of this task.
        numbers: what it keeps for the next task and for answers beside theta0, of all tasks so far, as a count.
        images: of old tasks among what it keeps.
    """

    model: Classifier
    set_up_seconds: float
    training_seconds: float
    numbers: int
    images: int = 0


@dataclass(frozen=True)
class NetworkClassifier:
    """A network of its own and a linear head.

    Args:
        network: images (B, C, H, W) -> features (B, D).
        head: of all classes.
        classes: task -> class names, in the head's order.
        preprocessing: how images are prepared.
    """

    network: nn.Module
    head: Head
    classes: Mapping[str, tuple[str, ...]]
    preprocessing: Preprocessing

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """(N, C), on the CPU, of uint8 images (N, channels, R, R)."""
        device = self.head.weight.device
        parts = [self.preprocessing.normalize(some.to(device)) for some in images.split(PREDICT_BATCH)]
        return torch.cat([self.head(self.network(x)).cpu() for x in parts])


def numbers(*groups: Mapping[str, Tensor]) -> int:
    """How many numbers some tensors hold together."""
    return sum(tensor.numel() for group in groups for tensor in group.values())
