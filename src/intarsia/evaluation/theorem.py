"""The theory on a real pool: Jensen's gap of a composed model, measured and predicted.

Theorem 1 and Eq. 5, 13, 14: for sum w = 1 the second-order proxy at theta0 obeys

    l(theta_P) + Omega = sum_t w_t l(theta_t),    Omega = 1/2 (sum_t w_t |tau_t|_H^2 - |sum_t w_t tau_t|_H^2)

The mean Fisher F stands in for the Hessian H. The loss is cross-entropy over all classes of the pool, on images of all
of its tasks, with the reference heads: only the trainable weights differ between the models compared.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia.backbones.backbone import Backbone
from intarsia.backbones.forward import normalized
from intarsia.curvature.fisher import DiagonalFisher, diagonal_fisher
from intarsia.curvature.jensen_gap import gap
from intarsia.curvature.protocol import Metric
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.evaluation.gaps import predicted_gaps
from intarsia.evaluation.kept import Keep, fresh, under
from intarsia.evaluation.metrics import matching_tasks
from intarsia.heads.head import Head
from intarsia.merging import recipe as recipes
from intarsia.merging.merge import merge
from intarsia.pool import Pool
from intarsia.progress import Progress, silent
from intarsia.store.module import Module
from intarsia.task_vector import TaskVector, weighted_sum

DRAWN = 50
"""Images of a task, where many networks or derivatives are measured on the same ones."""


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` measures; losses in nats per image.

    Args:
        tasks: the modules, in order.
        theta0_loss: l(theta0).
        composed_loss: l(theta_P).
        module_losses: l(theta_t) of every module alone.
        mean_module_loss: sum_t w_t l(theta_t).
        true_gap: mean_module_loss - composed_loss; positive where composing helps.
        predicted_gap: Omega_F, F the diagonal Fisher of the pool.
        predicted_gaps: Omega by curvature, on some of the images: those of the table, the Fisher's
            exact blocks (``layers``), and the ``whole`` Fisher.
        remainder: true_gap - predicted_gap: what is not of second order at theta0, or where F is not the Hessian.
        gradient_norm: |g| at theta0 over the trainable weights; the theory wants it small.
        gradient_norm_before: the same under random heads, before any pre-tuning.
        vector_norms: |tau_t| of every module.
        cosines: cosine between task vectors, tasks x tasks.
        cosine_to_composed: cosine of every task vector with theta_P - theta0.
        images: number of images the losses are means of.
    """

    tasks: tuple[str, ...]
    theta0_loss: float
    composed_loss: float
    module_losses: tuple[float, ...]
    mean_module_loss: float
    true_gap: float
    predicted_gap: float
    predicted_gaps: Mapping[str, float]
    remainder: float
    gradient_norm: float
    gradient_norm_before: float
    vector_norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    cosine_to_composed: tuple[float, ...]
    images: int

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """Modules of a pool, and training images on which networks are measured under the reference heads.

    Args:
        pool: theirs.
        modules: in the pool's order.
        head: the reference heads of all classes of the pool, on the backbone's device.
        fisher: the mean diagonal Fisher: the pool's, or of the images where the pool has another curvature.
        images: uint8.
        labels: among all classes of the pool.
    """

    pool: Pool
    modules: tuple[Module, ...]
    head: Head
    fisher: Metric
    images: Tensor
    labels: Tensor

    @classmethod
    def draw(cls, pool: Pool, stream: TaskStream, tasks: Sequence[str], per_task: int, seed: int) -> "Sample":
        """So many training images of each of some tasks of a pool that has modules.

        Raises:
            InputError: fewer than one image, or the stream does not fit the pool.
        """
        if per_task < 1:
            raise InputError(f"{per_task} images of each task (--per-task): expected 1 or more")
        reference, running, known = pool.reference(), pool.fisher(), pool.classes
        assert reference is not None and running is not None
        generator = torch.Generator().manual_seed(seed)
        offsets, first = {}, 0
        for task, classes in known.items():
            offsets[task], first = first, first + len(classes)
        images, labels = [], []
        for task in matching_tasks({t: known[t] for t in tasks}, stream):
            index = torch.randperm(len(task.train), generator=generator)[:per_task]
            images.append(task.train.pixels(pool.backbone.preprocessing)[index])
            labels.append(task.train.labels[index] + offsets[task.name])
        modules, head = tuple(pool.module(t) for t in tasks), reference.to(pool.backbone.device)
        drawn = torch.cat(images)
        if not isinstance(running, DiagonalFisher):
            looks, generator = pool.backbone.preprocessing, torch.Generator().manual_seed(seed)
            running = diagonal_fisher(
                pool.backbone, head, normalized(drawn, looks, pool.backbone.device), generator=generator
            )
        return cls(pool, modules, head, running.mean(0.0), drawn, torch.cat(labels))

    def vectors(self) -> list[TaskVector]:
        """The modules' task vectors, dense."""
        return [m.dense(self.pool.adapter, self.pool.backbone.trainable) for m in self.modules]

    def composed_loss(self, weights: Mapping[str, float]) -> float:
        """The loss of theta0 + sum_t w_t tau_t."""
        return self.loss(merge(self.pool.backbone, self.pool.adapter, self.modules, weights))

    @torch.no_grad()
    def loss(self, network: nn.Module) -> float:
        """Mean cross-entropy over a network's features, nats per image."""
        network = network.to(self.pool.backbone.device)
        sums = [float(F.cross_entropy(self.head(network(x)), y, reduction="sum")) for x, y in self.batches()]
        return sum(sums) / len(self.labels)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images and their labels, batch by batch, on the backbone's device."""
        backbone, done = self.pool.backbone, 0
        for x in normalized(self.images, backbone.preprocessing, backbone.device):
            yield x, self.labels[done : done + len(x)].to(backbone.device)
            done += len(x)

    def linear(self) -> tuple[Backbone, Head, list[Tensor]]:
        """Theta0, the heads and the normalised images: what a curvature is of."""
        return self.pool.backbone, self.head, [x for x, _ in self.batches()]

    def gradient(self, head: Head | None = None) -> TaskVector:
        """G of the mean loss by the trainable weights at theta0, by weight name; under ``head`` if one is given."""
        backbone, head = self.pool.backbone, self.head if head is None else head
        weights = [backbone.model.get_submodule(path).get_parameter("weight") for path in backbone.targets.values()]
        sums: list[Tensor] = [torch.zeros_like(w) for w in weights]
        try:
            for w in weights:
                w.requires_grad_(True)
            for x, y in self.batches():
                loss = F.cross_entropy(head(backbone.model(x)), y, reduction="sum") / len(self.labels)
                sums = [total + g for total, g in zip(sums, torch.autograd.grad(loss, weights), strict=True)]
        finally:
            for w in weights:
                w.requires_grad_(False)
        return TaskVector(dict(zip(backbone.targets, sums, strict=True)))


def diagnose(
    pool: Pool,
    stream: TaskStream,
    *,
    weights: Mapping[str, float] | None = None,
    per_task: int = 200,
    seed: int = 0,
    progress: Progress = silent,
    keep: Keep = fresh,
) -> Diagnosis:
    """Measure the theorem on a pool.

    Args:
        pool: with at least one module.
        stream: holds the pool's tasks; their training images are used.
        weights: coefficients that sum to 1; uniform if None.
        per_task: training images drawn from each task.
        seed: of that draw.
        progress: of the networks measured, and of the curvatures.
        keep: where every loss and gradient is kept as it is known.

    Raises:
        InputError: the pool is empty, no image is asked for, or the stream does not fit it.
    """
    tasks = pool.learned()
    recipe = recipes.mean(tasks) if weights is None else recipes.weighted(tasks, weights)
    if any(x < 0 for x in recipe.weights.values()) or not math.isclose(sum(recipe.weights.values()), 1, abs_tol=1e-6):
        raise InputError(f"{recipe.name}: Theorem 1 is of weights of 0 or more that sum to 1")
    w, names = recipe.weights, recipe.tasks
    sample = Sample.draw(pool, stream, names, per_task, seed)
    keep = under(keep, f"{per_task} images per task, seed {seed}")
    networks: list[Mapping[str, float]] = [{}, w, *({t: 1.0} for t in names)]
    losses: list[float] = []
    for i, coefficients in enumerate(networks):
        losses.append(keep(named(coefficients), lambda c=coefficients: sample.composed_loss(c)))
        progress("networks", i + 1, len(networks))
    vectors = sample.vectors()
    composed = weighted_sum(vectors, (w[t] for t in names))
    mean_loss = sum(w[t] * x for t, x in zip(names, losses[2:], strict=True))
    share = [w[t] for t in names]
    predicted = gap(vectors, share, sample.fisher)
    few = sample if per_task <= DRAWN else Sample.draw(pool, stream, names, DRAWN, seed)
    predictions = keep(
        "gaps by curvature", lambda: predicted_gaps(*few.linear(), vectors, share, seed=seed, progress=progress)
    )
    width, generator = sample.head.weight.shape[1], torch.Generator().manual_seed(seed)
    untuned = Head.random(len(sample.head), width, generator).to(pool.backbone.device)
    return Diagnosis(
        tasks=names,
        theta0_loss=losses[0],
        composed_loss=losses[1],
        module_losses=tuple(losses[2:]),
        mean_module_loss=mean_loss,
        true_gap=mean_loss - losses[1],
        predicted_gap=predicted,
        predicted_gaps=predictions,
        remainder=mean_loss - losses[1] - predicted,
        gradient_norm=keep("gradient under aligned heads", lambda: float(sample.gradient().norm())),
        gradient_norm_before=keep("gradient under random heads", lambda: float(sample.gradient(untuned).norm())),
        vector_norms=tuple(float(v.norm()) for v in vectors),
        cosines=tuple(tuple(float(v.cosine(u)) for u in vectors) for v in vectors),
        cosine_to_composed=tuple(float(v.cosine(composed)) for v in vectors),
        images=len(sample.labels),
    )


def named(coefficients: Mapping[str, float]) -> str:
    """What a composition's loss is kept under: coefficients to the last bit."""
    return f"loss of {json.dumps(dict(coefficients))}"
