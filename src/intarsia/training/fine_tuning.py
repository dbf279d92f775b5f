"""Step 5 of a task: fine-tuning, and what the task vector does to the features (docs/method.md sections 3 to 5)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.adapters.attachment import Attachment
from intarsia.adapters.lora import LoRA
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.class_stats.drift import FeatureDrift, fit_drift
from intarsia.class_stats.prototypes import ClassPrototypes
from intarsia.curvature.protocol import Curvature
from intarsia.data.choices import Augmentation
from intarsia.errors import DivergenceError
from intarsia.heads.head import Head
from intarsia.heads.trained_head import RegularizedHead
from intarsia.parallel.processes import current
from intarsia.progress import Progress, Timings, silent
from intarsia.regularizers.protocol import FLOOR, Penalty, Regularizer
from intarsia.task_vector import TaskVector
from intarsia.training.checkpoint import TRAINING, Checkpoint, Trained
from intarsia.training.loop import Loss, adamw, network_to_train, train, training_batch
from intarsia.training.schedule import Batch, Seeds
from intarsia.training.settings import Settings
from intarsia.training.state import LearnerState, PreparedTask
from intarsia.training.steps import features_before, features_in_means, mean_feature, prototypes_of, starting_head

CPU = torch.device("cpu")
LONGEST = 0.4
"""Of theta0's length. Converged runs stay below 0.2; diverged ones exceeded 0.45 (docs/results.md)."""
SMALLEST = 1e-3
"""Features spread at least so much, as a part of their square and of 1: images may all be alike."""
PROXIMAL_EVERY = 8
"""One proximal step in place of so many, as large as they together: it is stable at any size, and dear."""


@dataclass(frozen=True)
class Configuration:
    """How the modules of a stream are fine-tuned.

    Args:
        adapter: what a task vector is made of.
        regularizer: what keeps it composable.
        settings: everything else.
        augmentation: how the stream's training images are varied.
    """

    adapter: Adapter
    regularizer: Regularizer
    settings: Settings
    augmentation: Augmentation = "none"


@dataclass(frozen=True)
class FineTunedTask:
    """What fine-tuning makes of a task.

    Args:
        vector: tau, dense.
        adapter_parameters: by ``<weight name>.<parameter>``.
        head: of the task's classes.
        drift: what the whole of tau does to the features at theta0.
        shift: (D,) how far the whole of tau moves the mean feature; zero if training did not put it back.
        prototypes: the task's classes in the mean of the modules.
        measures: of the training.
        seconds: how long each phase took, by name.
    """

    vector: TaskVector
    adapter_parameters: dict[str, Tensor]
    head: Head
    drift: FeatureDrift
    shift: Tensor
    prototypes: ClassPrototypes
    measures: dict[str, Any]
    seconds: dict[str, float]


def fine_tune(
    backbone: Backbone,
    prepared: PreparedTask,
    state: LearnerState,
    others: Curvature | None,
    configuration: Configuration,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
) -> FineTunedTask:
    """Tau and the head of one task.

    Args:
        backbone: theta0.
        prepared: the task after steps 1 to 4.
        state: what is known of all tasks; where no vector is, the mean that it is measured in is its own module.
        others: the Fisher of the other tasks known, for ITA.
        configuration: adapter, regularizer, settings.
        checkpoint: where training is kept at every epoch boundary; nowhere if None.
        progress: told how far the work is.

    Raises:
        DivergenceError: the loss or a weight is not finite, or the regularizer's explicit step overshoots.
    """
    timings, task, number, settings = Timings(), prepared.task, prepared.number, configuration.settings
    seeds = Seeds(settings.seed, number)
    through = configuration.regularizer.through_mean
    penalty = _bound(configuration, state, others, number)
    head = starting_head(prepared, state, settings, seeds, backbone.device, through_mean=through)
    with backbone.attach(_adapter(configuration), seeds.generator("adapter")) as adapter:
        timings.lap("regularizer")
        total, sums = state.total, (state.earlier, state.total)
        earlier, before = features_before(backbone, task, adapter, sums, number, settings, progress)
        timings.lap("drift")
        adapter.compose(total if through else None, number if through else 1)
        if through and total is not None and settings.iel_start == "mean":
            adapter.start_at(total * (1 / (number - 1)))
        timings.lap("regularizer")
        losses = _train(backbone, prepared, adapter, head, penalty, configuration, seeds, checkpoint, timings, progress)
        vector, parameters = adapter.vector(), adapter.state()
        norm = float(vector.norm())
        for what, size in (("task vector", norm), ("head", head.moved())):
            if not math.isfinite(size):
                raise DivergenceError(_diverged(configuration, task.name, f"the {what} is not finite after training"))
        timings.lap(TRAINING)
        alone = features_in_means(backbone, task, adapter, None, 1, settings, progress)[0]
        after = [alone]
        if total is not None:
            after = features_in_means(backbone, task, adapter, total, number, settings, progress)
        timings.lap("drift")
    return FineTunedTask(
        vector=vector,
        adapter_parameters=parameters,
        head=head.trained().to(CPU),
        drift=fit_drift(prepared.features, alone),
        shift=mean_feature(alone - prepared.features, task, settings) * settings.center_features,
        prototypes=prototypes_of(earlier, before or [prepared.features], after, task, settings),
        measures={
            "losses": losses,
            "relative_norm": norm / float(TaskVector(backbone.trainable).norm()),
            "head_moved": head.moved(),
        },
        seconds=timings.seconds,
    )


def _bound(configuration: Configuration, state: LearnerState, others: Curvature | None, number: int) -> Penalty:
    """The regularizer of task ``number``; the paper's floor for ITA is 1e-5 / N."""
    regularizer, settings = configuration.regularizer, configuration.settings
    fixed, metric = settings.curvature_of == "reference", None
    fisher = state.fisher if fixed or regularizer.fisher_over == "seen" else others
    if fisher is not None and fisher.count:
        floor = FLOOR / fisher.count if settings.as_the_paper and not regularizer.through_mean else FLOOR
        metric = fisher.mean(floor, unit=settings.normalize_fisher)
    return regularizer.bind(metric, state.total if regularizer.through_mean else None, number)


def _adapter(configuration: Configuration) -> Adapter:
    """The adapter; the paper's LoRA starts narrower."""
    adapter = configuration.adapter
    if configuration.settings.as_the_paper and isinstance(adapter, LoRA):
        return replace(adapter, narrow=True)
    return adapter


def _train(
    backbone: Backbone,
    prepared: PreparedTask,
    adapter: Attachment,
    head: RegularizedHead,
    penalty: Penalty,
    configuration: Configuration,
    seeds: Seeds,
    checkpoint: Checkpoint | None,
    timings: Timings,
    progress: Progress,
) -> list[float]:
    """Train adapter and head in place; the mean loss of each epoch."""
    settings, task = configuration.settings, prepared.task
    images, labels = task.train.pixels(backbone.preprocessing), task.train.labels
    generator, network, here = seeds.generator("training"), network_to_train(backbone, settings), current()
    spread = _spread(prepared.features.to(backbone.device))
    drifts = settings.center_features or settings.drift_penalty > 0
    optimizer = adamw(settings, [*adapter.parameters(), *head.parameters()])
    trained = Trained(adapter, head, optimizer, generator, [0.0] * settings.epochs, timings)

    def loss(batch: Batch, own: Tensor) -> Loss:
        x = training_batch(own, backbone, configuration.augmentation, generator)
        features = network(x).to(head.weight.dtype)
        target = labels[batch.index].to(backbone.device, non_blocking=True)
        if not drifts:
            return Loss(F.cross_entropy(head(features), target))
        drift = batch_drift(adapter, network, x, features)
        found = F.cross_entropy(head(features - drift if settings.center_features else features), target)
        return Loss(found, settings.drift_penalty * drift.square().sum() / spread)

    def before_step(batch: Batch) -> None:
        here.add_gradients(adapter.parameters())  # the head's are whole: every process has all features
        if settings.step == "coupled":
            penalty.add_gradient(adapter)
        elif settings.step == "decoupled":
            penalty.step(adapter, batch.cosine, "decoupled")
        if settings.step != "proximal":
            head.regularize(settings.lambda_h, settings.lambda_0, batch.cosine, settings.step)

    def after_step(batch: Batch) -> None:
        if settings.step == "proximal":
            if due := steps_due(batch):
                penalty.step(adapter, batch.cosine * due, "proximal")
            head.regularize(settings.lambda_h, settings.lambda_0, batch.cosine, "proximal")
        elif settings.step == "decoupled" and batch.ends_epoch:
            _check_length(adapter, configuration, backbone, task.name, batch.epoch)

    def after_epoch(epochs: int) -> None:
        if checkpoint:
            checkpoint.save(task.name, epochs, trained)

    first = checkpoint.restore(task.name, trained) if checkpoint else 0
    here.wait()  # all have read what the first one will write over
    sums = train(
        optimizer,
        settings,
        images,
        labels,
        generator,
        loss,
        name=task.name,
        progress=progress,
        complaint=lambda what: _diverged(configuration, task.name, what),
        losses=trained.losses,
        first=first,
        before_step=before_step,
        after_step=after_step,
        after_epoch=after_epoch,
    )
    return [total / len(images) for total in sums]


def _spread(features: Tensor) -> Tensor:
    """Total variance of features (N, D) at theta0, not zero: what a drift is measured by."""
    return features.var(0, correction=0).sum() + SMALLEST * (1 + features.square().sum(1).mean())


def batch_drift(adapter: Attachment, network: Callable[[Tensor], Tensor], images: Tensor, features: Tensor) -> Tensor:
    """(D,) how far the mean feature of a batch lies from where theta0 puts the same images, augmented alike.

    Args:
        adapter: attached to the network.
        network: images -> features.
        images: (B, C, size, size), augmented and normalised.
        features: (B, D) of them by the network as it is trained.
    """
    with torch.no_grad(), adapter.disabled():
        at_theta0 = network(images).to(features.dtype)
    return (features - at_theta0).mean(0)


def steps_due(batch: Batch) -> int:
    """How many of the regularizer's proximal steps are due after a batch."""
    every = PROXIMAL_EVERY
    return (batch.number % every or every) if batch.number % every == 0 or batch.ends_epoch else 0


def _check_length(adapter: Attachment, configuration: Configuration, backbone: Backbone, task: str, epoch: int) -> None:
    """Look at the vector's length: an explicit step that overshoots grows it with every batch, and clipping hides that.

    Raises:
        DivergenceError: it is long out of all proportion.
    """
    if configuration.regularizer.strength > 0:
        size = float(adapter.vector().norm()) / float(TaskVector(backbone.trainable).norm())
        if not size <= LONGEST:
            what = f"the regularizer's steps overshoot: the task vector is {size:.2g} times as long as the weights"
            raise DivergenceError(_diverged(configuration, task, f"{what} after epoch {epoch + 1}"))


def _diverged(configuration: Configuration, task: str, what: str) -> str:
    settings, strength = configuration.settings, configuration.regularizer.strength
    at = f"step {settings.step}, strength {strength:g}, lr {settings.lr:g}"
    stable = settings.step == "proximal"
    advice = "use --training.step proximal, which is stable at any strength, or a smaller strength"
    return f"task {task!r}: {what} ({at}): {'use a smaller learning rate' if stable else advice}"
