"""What a method to compare with is: a frozen dataclass with ``train``, and what it has made of a stream so far."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from torch import Tensor, nn

from intarsia.backbones.backbone import Backbone
from intarsia.data.stream import TaskStream
from intarsia.evaluation.editing import Editable
from intarsia.evaluation.metrics import Classifier
from intarsia.heads.head import Head
from intarsia.merging.model import ComposedModel
from intarsia.progress import Progress, silent
from intarsia.training.settings import Settings


@dataclass(frozen=True)
class TaskResult:
    """A method after one more task.

    Args:
        model: what it answers with now.
        set_up_seconds: of this task, before and after training: features, statistics, Fisher.
        training_seconds: of this task.
        stored: how many numbers it keeps for the next task and for answers beside theta0, of all tasks so far.
        images: of old tasks among what it keeps.
        modules: after the last task, of a method that is made of modules: these, to be edited.
    """

    model: Classifier
    set_up_seconds: float
    training_seconds: float
    stored: int
    images: int = 0
    modules: Editable | None = None


class Baseline(Protocol):
    """A method to compare with. Its fields are its own settings; a frozen dataclass of any module will do."""

    about: ClassVar[str]
    """One line."""

    def train(
        self,
        backbone: Backbone,
        stream: TaskStream,
        settings: Settings,
        *,
        folder: Path | None = None,
        progress: Progress = silent,
    ) -> Iterator[TaskResult]:
        """Learn a stream.

        Args:
            backbone: theta0; it is not changed.
            stream: the tasks.
            settings: epochs, batches, learning rate, seed: the budget it is compared under.
            folder: for what it writes; a temporary one if None. If there is something, this same run was stopped.
            progress: told how far the work is.

        Yields:
            The method after each task.

        Raises:
            InputError: an image cannot be read.
            DivergenceError: a loss is not finite.
        """
        ...


def classifier(
    backbone: Backbone, network: nn.Module, head: Head, classes: Mapping[str, tuple[str, ...]]
) -> ComposedModel:
    """A network of its own and one head over all classes (task -> class names, in the head's order)."""
    return ComposedModel(network, head, classes, backbone.preprocessing, {}).to(backbone.device)


def there(backbone: Backbone, network: nn.Module) -> Backbone:
    """The backbone as it is where training has moved its network."""
    return Backbone(network, name=backbone.name, preprocessing=backbone.preprocessing, targets=backbone.patterns)


def count(*groups: Mapping[str, Tensor]) -> int:
    """How many numbers some tensors hold together."""
    return sum(tensor.numel() for group in groups for tensor in group.values())
