"""LCA: one network, into which each task's update is merged, and heads aligned to it (Tran et al., arXiv 2603.09888).

A task is trained from the merged weights M, alone under its own classes. Of what it changed only the leading singular
directions are merged, spectrally and by a part:

    M <- M + a trunc_p(tau - M),    trunc_p: per weight, the fewest directions with a share p of the squared norm.

The merge moves the features of older classes; a map fitted on the task's images, a ridge regression that prefers the
identity, carries their Gaussians along: mu <- W mu + m, Sigma <- W Sigma W^T (``fit_drift``, whose offset is free).
Then the heads of all classes are trained on draws z, z' of each class, l the cross-entropy:

    L = E l(z) + b E |l(z) - l(z')|.

What is sequential here has a price that modules do not pay: no task can be taken out again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.adapters.lora import LoRA
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.peers.alignment import ClassGaussians, align
from intarsia.baselines.peers.fine_tuning import fine_tune
from intarsia.baselines.protocol import TaskResult, classifier, count, there
from intarsia.baselines.sequential import new_head
from intarsia.class_stats.drift import fit_drift
from intarsia.data.stream import TaskStream
from intarsia.heads.head import Head
from intarsia.merging.merge import moved_by
from intarsia.merging.rules.vectors import svd
from intarsia.numerics import wide
from intarsia.progress import Progress, Timings, silent
from intarsia.task_vector import TaskVector
from intarsia.training.schedule import Seeds
from intarsia.training.settings import Settings
from intarsia.training.steps import features_of


@dataclass(frozen=True)
class LCA:
    """One network, merged spectrally after each task, and one aligned head.

    Args:
        part: a, how much of a task's update is merged.
        energy: p, the share of its squared norm that its directions have.
        local: b, weight of the difference of losses within a class.
        head_lr: learning rate of the alignment.
        head_epochs: its passes.
        shared: one covariance per task, not per class.
        adapter: what a task is trained with.
    """

    part: float = 0.3
    energy: float = 0.9
    local: float = 0.1
    head_lr: float = 0.1
    head_epochs: int = 10
    shared: bool = False
    adapter: Adapter = field(default_factory=LoRA)
    about: ClassVar[str] = "one network, updates merged spectrally, heads aligned on drawn features"

    def train(
        self,
        backbone: Backbone,
        stream: TaskStream,
        settings: Settings,
        *,
        folder: Path | None = None,
        progress: Progress = silent,
    ) -> Iterator[TaskResult]:
        """See ``Baseline``."""
        stream.decode(backbone.preprocessing, progress)
        merged = TaskVector({name: torch.zeros_like(w) for name, w in backbone.trainable.items()})
        head: Head | None = None
        gaussians = list[ClassGaussians]()
        classes: dict[str, tuple[str, ...]] = {}
        for number, task in enumerate(stream, start=1):
            timings, classes = Timings(), {**classes, task.name: task.classes}
            seeds = Seeds(settings.seed, number)
            with backbone.attach(self.adapter, seeds.generator("adapter")) as adapter:
                adapter.compose(merged, 1)
                before = features_of(backbone, task, settings.precision, progress)
                fresh = new_head(backbone, before, task, settings, seeds)
                timings.lap("set-up")
                own = fine_tune(backbone, adapter, fresh, task, stream, settings, seeds, progress)
                timings.lap("training")
                merged = merged + self.part * leading(adapter.vector(), self.energy)
            network = moved_by(backbone, merged)
            after = features_of(there(backbone, network), task, settings.precision, progress)
            drift = fit_drift(before, after)
            gaussians = [
                *(known.moved(drift) for known in gaussians),
                ClassGaussians.of(after, task.train.labels, len(task.classes), shared=self.shared),
            ]
            joined = own if head is None else Head.join([head, own])
            head = align(
                joined,
                gaussians,
                partial(local_loss, weight=self.local),
                lr=self.head_lr,
                epochs=self.head_epochs,
                generator=seeds.generator("alignment"),
                draws=2,
            )
            timings.lap("set-up")
            stored = count(merged, head.tensors()) + sum(g.stored() for g in gaussians)
            model, seconds = classifier(backbone, network, head, classes), timings.seconds
            yield TaskResult(model, seconds["set-up"], seconds["training"], stored)


def leading(vector: TaskVector, energy: float) -> TaskVector:
    """Per weight (O, I) the fewest singular directions that have this share of its squared norm together."""
    found: dict[str, Tensor] = {}
    for name, tau in vector.items():
        if not bool(tau.any()):
            found[name] = tau
            continue
        u, values, v = svd(wide(tau))
        share = values.square().cumsum(0) / values.square().sum()
        kept = min(int((share < energy).sum()) + 1, len(values))
        found[name] = ((u[:, :kept] * values[:kept]) @ v[:, :kept].T).to(tau)
    return TaskVector(found)


def local_loss(draws: Sequence[Tensor], labels: Tensor, *, weight: float) -> Tensor:
    """Mean of l(z) + weight |l(z) - l(z')|, l the cross-entropy of logits (B, C) of two draws of the classes (B,)."""
    first, second = (F.cross_entropy(logits, labels, reduction="none") for logits in draws)
    return (first + weight * (first - second).abs()).mean()
