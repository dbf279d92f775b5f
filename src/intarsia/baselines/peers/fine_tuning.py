"""One task's training as the peers have it: an adapter and the task's own head, under the task's own classes."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from intarsia.adapters.attachment import Attachment
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.sequential import new_head
from intarsia.data.stream import Task, TaskStream
from intarsia.heads.head import Head
from intarsia.heads.trained_head import TrainableHead
from intarsia.progress import Progress
from intarsia.training.loop import Loss, adamw, network_to_train, train, training_batch
from intarsia.training.schedule import Batch, Seeds
from intarsia.training.settings import Settings
from intarsia.training.steps import features_of

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, C), labels (B,) -> a loss."""


def own_head(backbone: Backbone, task: Task, settings: Settings, seeds: Seeds, progress: Progress) -> Head:
    """A head for the task's classes, pre-tuned on features by the network as it stands."""
    features = features_of(backbone, task, settings.precision, progress)
    return new_head(backbone, features, task, settings, seeds)


def fine_tune(
    backbone: Backbone,
    adapter: Attachment,
    start: Head,
    task: Task,
    stream: TaskStream,
    settings: Settings,
    seeds: Seeds,
    progress: Progress,
    *,
    criterion: Criterion = F.cross_entropy,
    penalty: Callable[[], Tensor | None] = lambda: None,
    slow: float = 1.0,
) -> Head:
    """Train the adapter and a head on a task: AdamW, no class but the task's own competes.

    Args:
        backbone: theta0, the adapter attached.
        adapter: trained in place.
        start: where the head begins.
        task: the task.
        stream: of it; says how images are augmented.
        settings: of the training; the learning rate is the head's.
        seeds: of the task.
        progress: told how far the work is.
        criterion: of logits and labels.
        penalty: minimised beside it.
        slow: the adapter's learning rate over the head's.

    Returns:
        The head as trained, on the backbone's device.

    Raises:
        DivergenceError: the loss is not finite.
    """
    images, labels = task.train.pixels(backbone.preprocessing), task.train.labels
    network, head, generator = network_to_train(backbone, settings), TrainableHead(start), seeds.generator("training")

    def loss(batch: Batch, own: Tensor) -> Loss:
        x = training_batch(own, backbone, stream.augmentation, generator)
        logits = head(network(x).to(head.weight.dtype))
        return Loss(criterion(logits, labels[batch.index].to(logits.device, non_blocking=True)), penalty())

    def slowly(batch: Batch) -> None:
        optimizer.param_groups[0]["lr"] = slow * batch.lr

    optimizer = adamw(settings, adapter.parameters())
    optimizer.add_param_group({"params": list(head.parameters())})
    train(
        optimizer,
        settings,
        images,
        labels,
        generator,
        loss,
        name=task.name,
        progress=progress,
        before_step=slowly,
    )
    return head.trained()
