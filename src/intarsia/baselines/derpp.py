"""DER++: rehearsal from a reservoir of images, their labels and the logits they once had (Buzzega et al., 2004.07211).

    L = CE + a * MSE(logits now, logits then) + b * CE(buffered labels)

the two terms on batches of the buffer drawn apart. The buffer is a reservoir: every image ever trained on is in it with
the same probability, offered in its task's last epoch (once, unless classes are balanced). Logits of classes that were
not known when an image was kept are not compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from intarsia.adapters.full import Full
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.protocol import TaskResult
from intarsia.baselines.sequential import ModelInTraining, Strategy, train_in_turn
from intarsia.data.stream import TaskStream
from intarsia.progress import Progress, silent
from intarsia.training.schedule import Seeds
from intarsia.training.settings import Settings


class Reservoir(Strategy):
    """Up to ``size`` of the images seen, each with the same probability (Vitter's algorithm R).

    Args:
        size: images.
        a: weight of the logits' term.
        b: weight of the labels' term.
        generator: of what is kept and what is drawn.
    """

    def __init__(self, size: int, a: float, b: float, generator: torch.Generator) -> None:
        self.size, self.a, self.b = size, a, b
        self.kept: list[tuple[Tensor, int, Tensor]] = []
        self.seen = 0
        self._generator = generator

    @property
    def images(self) -> int:
        """In the buffer."""
        return len(self.kept)

    def stored(self) -> int:
        """Pixels, labels and logits."""
        return sum(image.numel() + 1 + logits.numel() for image, _, logits in self.kept)

    def see(self, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Each takes a free place, or with probability size / seen that of one drawn."""
        for image, label, logit in zip(images, labels.tolist(), logits.cpu(), strict=True):
            self.seen += 1
            entry = image.clone(), label, logit.clone()
            if len(self.kept) < self.size:
                self.kept.append(entry)
            elif (place := int(torch.randint(self.seen, (), generator=self._generator))) < self.size:
                self.kept[place] = entry

    def loss(self, model: ModelInTraining) -> Tensor | None:
        """Both terms, each on a batch drawn anew."""
        if not self.kept:
            return None
        images, _, then = self._draw(model.settings.batch_size)
        now = model.logits(images)
        known = torch.zeros(now.shape, dtype=torch.bool)
        target = torch.zeros(now.shape)
        for row, logits in enumerate(then):
            known[row, : len(logits)] = True
            target[row, : len(logits)] = logits
        difference = (now - target.to(now.device))[known.to(now.device)]
        images, labels, _ = self._draw(model.settings.batch_size)
        again = model.logits(images)
        return self.a * difference.square().mean() + self.b * F.cross_entropy(again, labels.to(again.device))

    def _draw(self, count: int) -> tuple[Tensor, Tensor, list[Tensor]]:
        order = torch.randperm(len(self.kept), generator=self._generator)[:count].tolist()
        images, labels, logits = zip(*(self.kept[i] for i in order), strict=True)
        return torch.stack(images), torch.tensor(labels), list(logits)


@dataclass(frozen=True)
class DERpp:
    """One network from task to task, rehearsing from the reservoir.

    Args:
        buffer: images kept.
        a: weight of the logits' term.
        b: weight of the labels' term.
        adapter: what is trained of the network.
    """

    buffer: int = 500
    a: float = 0.5
    b: float = 0.5
    adapter: Adapter = field(default_factory=Full)
    about: ClassVar[str] = "all trainable weights, with old images"

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
        strategy = Reservoir(self.buffer, self.a, self.b, Seeds(settings.seed).generator("reservoir"))
        return train_in_turn(backbone, stream, self.adapter, settings, strategy, progress)
