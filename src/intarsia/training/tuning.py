"""Step 5 of a task: fine-tuning, and what the task vector does to the features (docs/method.md sections 3 to 5)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.adapters.attachment import Attachment
from intarsia.class_stats.drift import FeatureDrift, fit_drift
from intarsia.class_stats.mixtures import ClassStatistics, sample
from intarsia.class_stats.prototypes import Anchor
from intarsia.curvature.fisher import Fisher
from intarsia.curvature.head_fisher import head_fisher
from intarsia.errors import DivergenceError
from intarsia.heads.alignment import samples
from intarsia.heads.head import Head
from intarsia.heads.trained_head import TrainedHead
from intarsia.machine import give_back_memory
from intarsia.progress import Timings
from intarsia.regularizers.iel import IEL
from intarsia.regularizers.ita import ITA
from intarsia.store.card import Card
from intarsia.store.module import Module
from intarsia.task_vector import TaskVector
from intarsia.training.checkpoint import Trained
from intarsia.training.preparation import Memory, Prepared
from intarsia.training.run import Run
from intarsia.training.schedule import Batch, batches
from intarsia.training.settings import Settings

FLOOR = 1e-5


LONGEST = 0.4
"""Of theta0's length. Sound task vectors have a fifth of it at most, thrown ones had 0.45 or more (docs/results.md)."""


SMALLEST = 1e-3
"""Features spread at least so much, as a part of their square and of 1: images may all be alike."""


@dataclass(frozen=True)
class Tuned:
    """What fine-tuning makes of a task.

    Args:
        parts: the adapter's, by ``<weight name>.<part>``.
        head: of the task's classes.
        drift: what the whole of tau does to the features at theta0.
        shift: (D,) how far the whole of tau moves the mean feature; zero if training did not put it back.
        anchor: the task's classes in the mean of the modules.
        measures: of the training.
        seconds: how long each phase took, by name.
    """

    parts: dict[str, Tensor]
    head: Head
    drift: FeatureDrift
    shift: Tensor
    anchor: Anchor
    measures: dict[str, Any]
    seconds: dict[str, float]

    def module(self, card: Card, reference: Head, statistics: ClassStatistics) -> Module:
        """The module of the task: with its card, the reference heads it started from and its class statistics."""
        return Module(card, self.parts, self.head, reference, statistics, self.drift, self.shift, self.anchor)


def fine_tune(run: Run, prepared: Prepared, memory: Memory, others: Fisher | None) -> Tuned:
    """Tau and the head of one task; ``memory.total`` takes tau in.

    Args:
        run: the run.
        prepared: the task after steps 1 to 4.
        memory: what is known of all tasks.
        others: the Fisher of the other tasks known, for ITA.

    Raises:
        DivergenceError: the loss or a weight is not finite, or the regularizer's explicit step overshoots.
    """
    assert memory.reference is not None
    timings, number, name = Timings(), prepared.number, prepared.task.name
    incremental = isinstance(run.regularizer, IEL)
    fisher = memory.fisher if incremental else others
    mean = None if fisher is None or fisher.count == 0 else fisher.mean(FLOOR, unit=run.training.unit_fisher)
    penalty = run.regularizer.on(mean, memory.total if incremental else None, number)
    reference = memory.reference[prepared.rows]
    with run.backbone.attach(run.adapter, run.generator(number, "adapter")) as adapter:
        timings.lap("regularizer")
        before = _features_in_mean(run, prepared, adapter, memory.total, number - 1)
        timings.lap("drift")
        adapter.compose(memory.total if incremental else None, number if incremental else 1)
        if incremental and memory.total is not None and run.training.iel_start == "mean":
            adapter.start_at(memory.total * (1 / (number - 1)))
        start, device = _starting_head(run, reference, number), run.backbone.device
        head = TrainedHead(start.to(device), reference.to(device), _head_fisher(run, prepared, memory).to(device))
        give_back_memory()  # of the features drawn for the head's Fisher
        timings.lap("regularizer")
        losses = _epochs(run, prepared, adapter, head, penalty)
        vector, state = adapter.vector(), adapter.state()
        timings.lap("training")
        alone = _features_in_mean(run, prepared, adapter, None, 1)
        after = alone if number == 1 else _features_in_mean(run, prepared, adapter, memory.total, number)
        timings.lap("drift")
    norm = float(vector.norm())
    for what, size in (("task vector", norm), ("head", head.moved())):
        if not math.isfinite(size):
            raise DivergenceError(_diverged(run, name, f"the {what} is not finite after training"))
    memory.total = vector if memory.total is None else memory.total + vector
    shift = (alone - prepared.features).mean(0) * run.training.centred
    measures = {
        "losses": losses,
        "relative_norm": norm / float(TaskVector(run.backbone.tuned).norm()),
        "head_moved": head.moved(),
    }
    task = prepared.task
    return Tuned(
        parts=state,
        head=head.trained(),
        drift=fit_drift(prepared.features, alone),
        shift=shift,
        anchor=Anchor.of(before, after, task.train.labels, len(task.classes)),
        measures=measures,
        seconds=timings.seconds,
    )


def _features_in_mean(
    run: Run, prepared: Prepared, adapter: Attachment, total: TaskVector | None, tasks: int
) -> Tensor:
    """(N, D) of the task's images in theta0 + (total + tau) / tasks; theta0's own if that is a mean of none."""
    if tasks == 0:
        return prepared.features
    adapter.compose(total, tasks)
    return run.features(prepared.task.name, prepared.task.train.tensor(run.backbone.preprocessing))


def _epochs(run: Run, prepared: Prepared, adapter: Attachment, head: TrainedHead, penalty: ITA | IEL) -> list[float]:
    """The mean loss of each epoch; adapter and head are trained in place."""
    training, backbone, task = run.training, run.backbone, prepared.task
    images, labels = task.train.tensor(backbone.preprocessing), task.train.labels
    generator, network = run.generator(prepared.number, "training"), run.trained_network()
    at_theta0 = prepared.features.to(backbone.device)
    spread = at_theta0.var(0, correction=0).sum() + SMALLEST * (1 + at_theta0.square().sum(1).mean())
    drifts = training.centred or training.drift_pull > 0
    optimizer = run.optimizer([*adapter.parameters(), *head.parameters()])
    sums = [0.0] * training.epochs
    trained, checkpoint = Trained(adapter, head, optimizer, generator, sums), run.checkpoint
    first = checkpoint.restore(task.name, trained) if checkpoint else 0
    for batch in batches(training, len(images), generator, first):
        batch.set_rate(optimizer)
        index = batch.index
        x = run.varied(images[index], generator)
        with run.arithmetic():
            features = network(x)
        features = features.to(at_theta0.dtype)
        drift = batch_drift(run, adapter, network, x, features) if drifts else torch.zeros_like(features[0])
        logits = head(features - drift if training.centred else features)
        loss = F.cross_entropy(logits, labels[index].to(backbone.device))
        sums[batch.epoch] += finite(run, loss, task.name, batch) * len(index)
        optimizer.zero_grad(set_to_none=True)
        (loss + training.drift_pull * drift.square().sum() / spread).backward()
        if training.step == "coupled":
            penalty.add_gradient(adapter)
            head.pull(training.lambda_h, training.lambda_0, batch.cosine, training.step)
            optimizer.step()
        else:
            optimizer.step()
            _regularize(run, penalty, adapter, task.name, batch)
            head.pull(training.lambda_h, training.lambda_0, batch.cosine, training.step)
        if batch.ends_epoch:
            if checkpoint:
                checkpoint.save(task.name, batch.epoch + 1, trained)
            run.progress(f"{task.name}: training", batch.epoch + 1, training.epochs)
    return [total / len(images) for total in sums]


def batch_drift(run: Run, adapter: Attachment, network: nn.Module, x: Tensor, features: Tensor) -> Tensor:
    """(D,) how far the mean feature of a batch lies from where theta0 puts the same images, augmented alike."""
    with torch.no_grad(), adapter.disabled(), run.arithmetic():
        at_theta0 = network(x).to(features.dtype)
    return (features - at_theta0).mean(0)


def _due(training: Settings, batch: Batch) -> int:
    """How many of the regularizer's steps are due after a batch."""
    if training.step != "proximal":
        return 1
    every = training.proximal_every
    return (batch.number % every or every) if batch.number % every == 0 or batch.ends_epoch else 0


def _regularize(run: Run, penalty: ITA | IEL, adapter: Attachment, task: str, batch: Batch) -> None:
    """The regularizer's steps that are due after a batch.

    An explicit step that overshoots throws the task vector further off with every batch; clipping keeps that finite,
    and silent. So the vector's length is looked at as an epoch ends.

    Raises:
        DivergenceError: it is long out of all proportion.
    """
    training = run.training
    if due := _due(training, batch):
        penalty.step(adapter, batch.cosine * due, training.step)
    if training.step == "decoupled" and penalty.strength > 0 and batch.ends_epoch:
        size = float(adapter.vector().norm()) / float(TaskVector(run.backbone.tuned).norm())
        if not size <= LONGEST:
            what = f"the regularizer's steps overshoot: the task vector is {size:.2g} times as long as the weights"
            raise DivergenceError(_diverged(run, task, f"{what} after epoch {batch.epoch + 1}"))


def _starting_head(run: Run, reference: Head, number: int) -> Head:
    if run.training.head_start == "random":
        return Head.random(len(reference), reference.weight.shape[1], run.generator(number, "head start"))
    return reference


def _head_fisher(run: Run, prepared: Prepared, memory: Memory) -> Head:
    """Mean Fisher of the task's head rows, over features drawn from the statistics of all classes seen."""
    assert memory.reference is not None
    known = memory.tasks.index(prepared.task.name) if run.training.head_fisher_over == "earlier" else len(memory.tasks)
    statistics = memory.statistics[:known]
    reference, rows = memory.reference, prepared.rows
    weight, bias = torch.zeros_like(reference.weight[rows]), torch.zeros_like(reference.bias[rows])
    if statistics:
        per_class = samples(sum(map(len, statistics)))
        features, _ = sample(statistics, per_class, run.generator(prepared.number, "head fisher"))
        weight, bias = head_fisher(features, reference.weight, reference.bias, rows)
    return Head(weight + FLOOR, bias + FLOOR)


def finite(run: Run, loss: Tensor, task: str, batch: Batch) -> float:
    """The loss as a number.

    Raises:
        DivergenceError: it is not finite; the message names the task, the epoch and the batch.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DivergenceError(
            _diverged(run, task, f"the loss is {value} in epoch {batch.epoch + 1}, batch {batch.number}")
        )
    return value


def _diverged(run: Run, task: str, what: str) -> str:
    t, r = run.training, run.regularizer
    stable = t.step == "proximal"
    advice = (
        "use a smaller learning rate"
        if stable
        else "use --step proximal, which is stable at any strength, or a smaller strength"
    )
    return f"task {task!r}: {what} (step {t.step}, strength {r.strength:g}, lr {t.lr:g}): {advice}"
