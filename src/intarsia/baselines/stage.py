"""What a method has made of a stream so far, and the classifier most of them end in."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from intarsia.backbones.backbone import Backbone
from intarsia.evaluation.editing import Editable
from intarsia.evaluation.metrics import Classifier
from intarsia.heads.head import Head
from intarsia.merging.model import ComposedModel


@dataclass(frozen=True)
class Stage:
    """A method after one more task.

    Args:
        model: what it answers with now.
        set_up_seconds: of this task, before and after training: features, statistics, Fisher.
        training_seconds: of this task.
        numbers: what it keeps for the next task and for answers beside theta0, of all tasks so far, as a count.
        images: of old tasks among what it keeps.
        modules: after the last task, of a method that is made of modules: these, to be edited.
    """

    model: Classifier
    set_up_seconds: float
    training_seconds: float
    numbers: int
    images: int = 0
    modules: Editable | None = None


def classifier(
    backbone: Backbone, network: nn.Module, head: Head, classes: Mapping[str, tuple[str, ...]]
) -> ComposedModel:
    """A network of its own and one linear head over all classes (task -> class names, in the head's order)."""
    return ComposedModel(network, head, classes, backbone.preprocessing, {}).to(backbone.device)


def numbers(*groups: Mapping[str, Tensor]) -> int:
    """How many numbers some tensors hold together."""
    return sum(tensor.numel() for group in groups for tensor in group.values())
