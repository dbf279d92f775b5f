"""SLCA++: one network that learns slowly, heads aligned after each task (Zhang et al., arXiv 2408.08295).

Task after task trains the same LoRA, with a learning rate below the head's, and the head of its own classes, under the
symmetric cross-entropy

    L = (1 - b) CE + b RCE,     RCE = -sum_c p_c log max(y_c, 1e-4) = -log(1e-4) (1 - p_y).

Then the heads of all classes are aligned on draws from a Gaussian per class, logits divided by 0.1 of the mean length
that they have within a task. The aligned head answers; the next task begins with the heads as they were trained. Of the
paper's hybrid slow learner, biases and norms are not trained: adapters are of weight matrices.
"""

import math
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
from intarsia.baselines.peers.fine_tuning import fine_tune, own_head
from intarsia.baselines.protocol import TaskResult, classifier, count
from intarsia.data.stream import TaskStream
from intarsia.heads.head import Head
from intarsia.merging.merge import moved_by
from intarsia.progress import Progress, Timings, silent
from intarsia.training.schedule import Seeds
from intarsia.training.settings import Settings
from intarsia.training.steps import features_of

TEMPERATURE = 0.1
LEAST = 1e-4
"""What a label that is zero counts as under the logarithm."""
TINY = 1e-12
"""Length of logits that are divided by it as it is."""


@dataclass(frozen=True)
class SLCA:
    """One network from task to task, slowly, and one aligned head.

    Args:
        slow: the network's learning rate over the head's.
        reverse: b, the share of the reverse cross-entropy.
        head_lr: learning rate of the alignment.
        head_epochs: its passes.
        shared: one covariance per task, not per class.
        adapter: what is trained of the network.
    """

    slow: float = 0.1
    reverse: float = 0.5
    head_lr: float = 0.1
    head_epochs: int = 5
    shared: bool = False
    adapter: Adapter = field(default_factory=LoRA)
    about: ClassVar[str] = "one network, slowly, heads aligned on drawn features"

    def train(
        self,
        backbone: Backbone,
        stream: TaskStream,
        settings: Settings,
        *,
        folder: Path | None = None,
        progress: Progress = silent,
    ) -> Iterator[TaskResult]:
        """See ``Baseline``; the learning rate of the settings is the head's."""
        stream.decode(backbone.preprocessing, progress)
        criterion = partial(symmetric_cross_entropy, reverse=self.reverse)
        state: dict[str, Tensor] = {}
        heads, gaussians = list[Head](), list[ClassGaussians]()
        classes: dict[str, tuple[str, ...]] = {}
        for number, task in enumerate(stream, start=1):
            timings, classes = Timings(), {**classes, task.name: task.classes}
            seeds = Seeds(settings.seed, number)
            with backbone.attach(self.adapter, Seeds(settings.seed, 1).generator("adapter")) as adapter:
                adapter.load(state or adapter.state())
                head = own_head(backbone, task, settings, seeds, progress)
                timings.lap("set-up")
                how = {"criterion": criterion, "slow": self.slow}
                heads.append(fine_tune(backbone, adapter, head, task, stream, settings, seeds, progress, **how))
                timings.lap("training")
                features = features_of(backbone, task, settings.precision, progress)
                state, vector = adapter.state(), adapter.vector()
            own = ClassGaussians.of(features, task.train.labels, len(task.classes), shared=self.shared)
            gaussians.append(own)
            head = self._aligned(heads, gaussians, seeds.generator("alignment"))
            network = moved_by(backbone, vector)
            timings.lap("set-up")
            stored = count(state, *(h.tensors() for h in (*heads, head))) + sum(g.stored() for g in gaussians)
            model, seconds = classifier(backbone, network, head, classes), timings.seconds
            yield TaskResult(model, seconds["set-up"], seconds["training"], stored)

    def _aligned(self, heads: Sequence[Head], tasks: Sequence[ClassGaussians], generator: torch.Generator) -> Head:
        """Of all classes; the first task's head stays as it was trained."""
        joined = Head.join(heads)
        if len(heads) == 1:
            return joined
        criterion = partial(normalized_cross_entropy, sizes=[len(head) for head in heads])
        return align(joined, tasks, criterion, lr=self.head_lr, epochs=self.head_epochs, generator=generator)


def symmetric_cross_entropy(logits: Tensor, labels: Tensor, *, reverse: float) -> Tensor:
    """(1 - b) CE + b RCE, the mean over logits (B, C) with labels (B,)."""
    likely = torch.softmax(logits, 1).gather(1, labels[:, None])
    return (1 - reverse) * F.cross_entropy(logits, labels) - reverse * math.log(LEAST) * (1 - likely).mean()


def normalized_cross_entropy(draws: Sequence[Tensor], labels: Tensor, *, sizes: Sequence[int]) -> Tensor:
    """Cross-entropy of logits (B, C) of one draw, each divided by 0.1 of its mean norm over the tasks.

    Args:
        draws: the logits.
        labels: (B,).
        sizes: classes of every task, C together.
    """
    (logits,) = draws
    length = torch.stack([own.norm(dim=1) for own in logits.split(list(sizes), 1)]).mean(0)[:, None]
    return F.cross_entropy(logits / (TEMPERATURE * length.clamp_min(TINY)), labels)
