"""TUNA: an adapter per task and one merged of all, the surest answers beside it (Wang et al., arXiv 2508.08165).

Each task trains an adapter and a head under its own classes, and is pushed away from earlier adapters by

    reg * sum_{u<t} mean over layers of mean_ij |cos(b_i, b'_j)|,

b, b' columns of the up-projections B of the two. Heads are aligned on draws from a Gaussian per class, of features by
the class's own adapter. The universal adapter is merged per number: the sign of the sum of all tasks' updates, and the
largest size among those of that sign (EMR merging, arXiv 2405.17461). An answer is the mean of two softmaxes over all
classes: the universal adapter's, and that of the adapter with the least entropy on this image. A network pass per task
and one more is what an answer costs.

The adapters are LoRA, whose dense updates are merged; heads are linear, not cosines, which a mean that features share
makes all alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from intarsia.adapters.attachment import Attachment
from intarsia.adapters.lora import LoRA
from intarsia.backbones.backbone import Backbone
from intarsia.backbones.forward import Pixels, outputs
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.baselines.peers.alignment import ClassGaussians, align
from intarsia.baselines.peers.fine_tuning import fine_tune, own_head
from intarsia.baselines.protocol import TaskResult, count
from intarsia.data.stream import TaskStream
from intarsia.heads.head import Head
from intarsia.progress import Progress, Timings, silent
from intarsia.task_vector import TaskVector
from intarsia.training.schedule import Seeds
from intarsia.training.settings import Settings
from intarsia.training.steps import features_of

State = Mapping[str, Tensor]
"""``<weight name>.A`` and ``.B`` of a task's LoRA."""
TINY = 1e-6
"""Length below which a column has no direction."""


@dataclass(frozen=True)
class Routed:
    """The universal adapter's answer and that of the adapter with the least entropy, averaged.

    Args:
        backbone: theta0.
        adapters: task -> its LoRA, on the backbone's device.
        universal: the merged update.
        head: of all classes, on the backbone's device.
        classes: task -> class names, in the head's order.
        preprocessing: how images are prepared.
    """

    backbone: Backbone
    adapters: Mapping[str, State]
    universal: Mapping[str, Tensor]
    head: Head
    classes: Mapping[str, tuple[str, ...]]
    preprocessing: Preprocessing

    def logits(self, images: Pixels) -> Tensor:
        """Log of the mean probability (N, C), on the CPU, of uint8 images (N, channels, R, R)."""
        alone = torch.stack([self._probabilities(images, dense(self.backbone, s)) for s in self.adapters.values()])
        surest = alone[entropy(alone).argmin(0), torch.arange(alone.shape[1])]
        mean = (self._probabilities(images, self.universal) + surest) / 2
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log()

    def _probabilities(self, images: Pixels, update: Mapping[str, Tensor]) -> Tensor:
        """Softmax (N, C) of theta0 + update."""
        model, paths = self.backbone.model, self.backbone.targets
        weights = {f"{paths[name]}.weight": w + update[name] for name, w in self.backbone.trainable.items()}

        def answer(x: Tensor) -> Tensor:
            return torch.softmax(self.head(functional_call(model, weights, (x,))), 1)

        return outputs(answer, images, self.preprocessing, self.backbone.device)


@dataclass(frozen=True)
class TUNA:
    """An adapter per task, one merged of all, one aligned head.

    Args:
        orthogonality: reg, weight of the push away from earlier adapters.
        continued: an adapter begins where the one before it ended, as in the authors' code; else at theta0.
        head_lr: learning rate of the alignment.
        head_epochs: its passes.
        shared: one covariance per task, not per class.
        adapter: the LoRA of a task.
    """

    orthogonality: float = 1e-3
    continued: bool = True
    head_lr: float = 0.1
    head_epochs: int = 15
    shared: bool = False
    adapter: LoRA = field(default_factory=LoRA)
    about: ClassVar[str] = "an adapter per task and one merged of all, the surest answers"

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
        adapters: dict[str, State] = {}
        gaussians = list[ClassGaussians]()
        head: Head | None = None
        classes: dict[str, tuple[str, ...]] = {}
        for number, task in enumerate(stream, start=1):
            timings, classes = Timings(), {**classes, task.name: task.classes}
            seeds = Seeds(settings.seed, number)
            with backbone.attach(self.adapter, seeds.generator("adapter")) as adapter:
                if adapters and self.continued:
                    adapter.load(list(adapters.values())[-1])
                fresh = own_head(backbone, task, settings, seeds, progress)
                timings.lap("set-up")
                apart = partial(overlap, adapter, tuple(adapters.values()), self.orthogonality)
                own = fine_tune(backbone, adapter, fresh, task, stream, settings, seeds, progress, penalty=apart)
                timings.lap("training")
                features = features_of(backbone, task, settings.precision, progress)
                state = {name: value.to(backbone.device) for name, value in adapter.state().items()}
            adapters = {**adapters, task.name: state}
            gaussians.append(ClassGaussians.of(features, task.train.labels, len(task.classes), shared=self.shared))
            head = own if head is None else self._aligned(Head.join([head, own]), gaussians, seeds)
            merged = universal([dense(backbone, s) for s in adapters.values()])
            timings.lap("set-up")
            stored = count(*adapters.values(), merged, head.tensors()) + sum(g.stored() for g in gaussians)
            model = Routed(backbone, adapters, merged, head, classes, backbone.preprocessing)
            yield TaskResult(model, timings.seconds["set-up"], timings.seconds["training"], stored)

    def _aligned(self, head: Head, tasks: Sequence[ClassGaussians], seeds: Seeds) -> Head:
        generator = seeds.generator("alignment")
        return align(head, tasks, _cross_entropy, lr=self.head_lr, epochs=self.head_epochs, generator=generator)


def dense(backbone: Backbone, state: State) -> TaskVector:
    """B A (O, I) of each weight."""
    return TaskVector({name: state[f"{name}.B"] @ state[f"{name}.A"] for name in backbone.targets})


def universal(vectors: Sequence[TaskVector]) -> TaskVector:
    """Per number the sign of the sum, and the largest size among those of that sign."""
    found: dict[str, Tensor] = {}
    for name in vectors[0]:
        taus = torch.stack([vector[name] for vector in vectors])
        sign = taus.sum(0).sign()
        found[name] = sign * (taus * sign).clamp_min(0).amax(0)
    return TaskVector(found)


def overlap(adapter: Attachment, earlier: Sequence[State], weight: float) -> Tensor | None:
    """The push away from earlier adapters, a scalar with a graph; None where there are none or the weight is zero."""
    if not earlier or not weight:
        return None
    terms = []
    for name, layer in adapter.layers.items():
        own = F.normalize(layer.adapter_parameters["B"], dim=0, eps=TINY)
        terms += [(own.T @ F.normalize(state[f"{name}.B"], dim=0, eps=TINY)).abs().mean() for state in earlier]
    return weight * torch.stack(terms).sum() / len(adapter.layers)


def entropy(probabilities: Tensor) -> Tensor:
    """(...) of probabilities (..., C)."""
    return torch.special.entr(probabilities).sum(-1)


def _cross_entropy(draws: Sequence[Tensor], labels: Tensor) -> Tensor:
    (logits,) = draws
    return F.cross_entropy(logits, labels)
