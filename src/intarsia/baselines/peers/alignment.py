"""One head for all classes, trained on features drawn from a Gaussian per class: classifier alignment.

What SLCA (arXiv 2303.05118) began and SLCA++, TUNA and LCA do after each task, with a loss of their own. The papers add
a small constant to the diagonal of each covariance; here it is shrunk (``basis_of``), since few images of a class span
few directions. Their SGD with momentum is done on whitened features and the head folded back: in features that share a
large mean, plain steps get nowhere, as in ``heads.pretraining``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia.class_stats.drift import FeatureDrift
from intarsia.class_stats.gaussians import spread_out
from intarsia.class_stats.shrinkage import basis_of
from intarsia.class_stats.statistics import per_class
from intarsia.heads.head import Head
from intarsia.heads.trained_head import TrainableHead
from intarsia.heads.whitening import Whitening

MOMENTUM = 0.9
BATCH = 256
DrawnCriterion = Callable[[Sequence[Tensor], Tensor], Tensor]
"""Logits (B, C) of each draw of the same classes, their labels (B,) -> a loss."""


@dataclass(frozen=True)
class ClassGaussians:
    """The classes of a task, each with a covariance of its own, or all with one.

    Args:
        centres: (C, D).
        bases: (C, D, D) or (1, D, D); a class's features = centre + basis @ noise.
    """

    centres: Tensor
    bases: Tensor

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, classes: int, *, shared: bool = False) -> "ClassGaussians":
        """Of features (N, D) with labels (N,) in 0 .. classes - 1.

        ``shared``: one covariance, within the classes; so it is where a class has but one image.
        """
        wide = features.double()
        own = [wide[labels == c] for c in range(classes)]
        centres = torch.stack([rows.mean(0) for rows in own])
        away = [rows - centre for rows, centre in zip(own, centres, strict=True)]
        if shared or min(map(len, own)) == 1:
            residual = torch.cat(away)
            bases = [basis_of(*spread_out(centres, residual.T @ residual, len(wide) - classes))]
        else:
            bases = [basis_of(rows.T @ rows, len(rows) - 1) for rows in away]
        return cls(centres.to(features), torch.stack(bases).to(features))

    def __len__(self) -> int:
        return len(self.centres)

    def stored(self) -> int:
        """Numbers kept; of a covariance one triangle."""
        count, width = len(self.bases), self.centres.shape[1]
        return self.centres.numel() + count * width * (width + 1) // 2

    def moved(self, drift: FeatureDrift) -> "ClassGaussians":
        """Where the classes drift to: mu -> W mu + m, Sigma -> W Sigma W^T."""
        return ClassGaussians(drift(self.centres), self.bases + drift.matrix.to(self.bases).T @ self.bases)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(C, count, D)."""
        noise = torch.randn(len(self), count, self.centres.shape[1], generator=generator, dtype=self.centres.dtype)
        return noise @ self.bases.transpose(1, 2) + self.centres[:, None]


def align(
    head: Head,
    tasks: Sequence[ClassGaussians],
    criterion: DrawnCriterion,
    *,
    lr: float,
    epochs: int,
    generator: torch.Generator,
    draws: int = 1,
) -> Head:
    """Train a head on features drawn anew in each epoch: SGD with momentum 0.9, cosine per epoch, batches of 256.

    Args:
        head: of all classes (C, D), task by task; where it begins.
        tasks: their Gaussians, in the same order.
        criterion: of the logits.
        lr: learning rate.
        epochs: passes over 256 features of each class, fewer beyond 100 classes.
        generator: of the draws and their order.
        draws: features of the same class that the criterion sees side by side.

    Returns:
        The trained head, on the device it was on.
    """
    device, each = head.weight.device, per_class(sum(map(len, tasks)))
    labels = torch.arange(len(head)).repeat_interleave(each)

    def drawn() -> Tensor:
        return torch.cat([task.sample(each, generator) for task in tasks]).flatten(0, 1)

    whitening = Whitening.of(drawn())
    inside = TrainableHead(whitening.inward(head.to(torch.device("cpu"))))
    optimizer = torch.optim.SGD(inside.parameters(), lr=lr, momentum=MOMENTUM)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        features = [whitening.features(drawn())[:, :-1] for _ in range(draws)]
        for index in torch.randperm(len(labels), generator=generator).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            criterion([inside(white[index]) for white in features], labels[index]).backward()
            optimizer.step()
    return whitening.outward(inside.trained()).to(device)
