"""Steps 1 to 4 of a task: features at theta0, class statistics, reference heads, Fisher (docs/method.md section 3).

They depend on neither method, adapter nor strength. Of step 6, where its classes lie in the means of the modules.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from intarsia.adapters.attachment import Attachment
from intarsia.backbones.backbone import Backbone
from intarsia.backbones.forward import BATCH, Pixels, normalized, outputs
from intarsia.class_stats.gaussians import class_means
from intarsia.class_stats.mixtures import fit_mixtures
from intarsia.class_stats.prototypes import ClassPrototypes
from intarsia.class_stats.statistics import PER_CLASS, ClassStatistics, SeenClasses, per_class, sample
from intarsia.curvature import CURVATURES, Curvature
from intarsia.curvature.estimators import logit_vectors
from intarsia.curvature.head_fisher import head_fisher
from intarsia.data.pixels import chosen
from intarsia.data.stream import Task
from intarsia.errors import DivergenceError
from intarsia.heads.alignment import align, pretune_plainly
from intarsia.heads.discriminant import initial_heads
from intarsia.heads.head import Head
from intarsia.heads.pretraining import pretune
from intarsia.heads.trained_head import RegularizedHead
from intarsia.machine import give_back_memory
from intarsia.merging.recipe import scale_of
from intarsia.numerics import Precision, autocast, products_in
from intarsia.parallel.processes import current
from intarsia.progress import Progress, silent
from intarsia.regularizers.protocol import FLOOR
from intarsia.task_vector import TaskVector
from intarsia.training.schedule import Seeds
from intarsia.training.settings import Settings
from intarsia.training.state import LearnerState, PreparedTask

LARGEST_FEATURE = 1e15
"""Sums of squares of larger features leave float32."""


def features_of(backbone: Backbone, task: Task, precision: Precision, progress: Progress = silent) -> Tensor:
    """(N, D), float32, on the CPU: features of a task's training images by the backbone's network as it stands; step 1.

    Raises:
        DivergenceError: some are not finite, or so large that their squares are not.
    """
    device, images, here = backbone.device, task.train.pixels(backbone.preprocessing), current()
    rows = here.rows(len(images), BATCH)
    own = torch.zeros(0, backbone.width)
    if rows.start < rows.stop:
        with products_in(precision, device), autocast(precision, device):
            own = outputs(
                backbone.features,
                _part(images, rows),
                backbone.preprocessing,
                device,
                progress=progress,
                phase=f"{task.name}: features",
            ).float()
    features = here.joined(own.to(device), rows, len(images)).cpu() if here.count > 1 else own
    if not float(features.abs().max()) <= LARGEST_FEATURE:
        bad = int((~(features.abs() <= LARGEST_FEATURE)).any(1).sum())
        raise DivergenceError(
            f"task {task.name!r}: the backbone's features of {bad} of its {len(features)} images are not finite, or "
            f"larger than {LARGEST_FEATURE:g}: look at the weights of {backbone.name} and its preprocessing; if this "
            "comes after training, use a smaller learning rate or strength"
        )
    return features


def _part(images: Pixels, rows: slice) -> Pixels:
    """Some rows of images, in order; all of them as they are."""
    whole = rows == slice(0, len(images))
    return images if whole else chosen(images, torch.arange(rows.start, rows.stop))


def class_statistics(features: Tensor, task: Task, settings: Settings, seeds: Seeds) -> ClassStatistics:
    """Step 2: what stands in for the images of the task's classes once they are gone."""
    labels, classes, mixtures = task.train.labels, len(task.classes), None
    if settings.as_the_paper:
        mixtures = fit_mixtures(features, labels, classes, seed=seeds.of("statistics") % 2**31)
    return ClassStatistics.of(features, labels, classes, mixtures, shrunken=settings.class_balanced)


def features_in_means(
    backbone: Backbone,
    task: Task,
    adapter: Attachment,
    total: TaskVector | None,
    tasks: int,
    settings: Settings,
    progress: Progress = silent,
) -> list[Tensor]:
    """(N, D) of a task's images in the mean theta0 + (total + tau) / tasks, then in that times its scale, if not 1."""
    found: dict[float, Tensor] = {}
    for scale in (1.0, settings.mean_scale):
        if (divisor := tasks / scale_of(scale, tasks)) not in found:
            adapter.compose(total, divisor)
            found[divisor] = features_of(backbone, task, settings.precision, progress)
    plain, *scaled = found.values()
    return [plain, *(scaled or [plain])] if settings.mean_scale != 1 else [plain]


def features_before(
    backbone: Backbone,
    task: Task,
    adapter: Attachment,
    sums: tuple[TaskVector | None, TaskVector | None],
    number: int,
    settings: Settings,
    progress: Progress = silent,
) -> list[list[Tensor]]:
    """In the means of the tasks before task ``number`` but the last of them, and of all: of its images, tau still zero.

    ``sums`` are of their vectors, likewise; nothing is seen of the mean of no task.
    """
    return [
        [] if total is None else features_in_means(backbone, task, adapter, total, tasks, settings, progress)
        for total, tasks in zip(sums, (number - 2, number - 1), strict=True)
    ]


def prototypes_of(
    earlier: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor], task: Task, settings: Settings
) -> ClassPrototypes:
    """Of step 6, in the means and, if features are given of them, in those times their scale.

    Args:
        earlier: features in the mean of all tasks but the last two; empty for the first two tasks.
        before: in that of all but the last.
        after: in that of all.
        task: whose images they are of.
        settings: how classes are measured.
    """
    labels, classes, shrunken = task.train.labels, len(task.classes), settings.class_balanced
    found = [
        ClassPrototypes.of(b, a, labels, classes, earlier=e, shrunken=shrunken)
        for e, b, a in zip(earlier or [None] * len(before), before, after, strict=True)
    ]
    return found[0] if len(found) == 1 else replace(found[0], scaled=found[1])


def mean_feature(features: Tensor, task: Task, settings: Settings) -> Tensor:
    """(D,) of features (N, D) of a task's images: as training batches weight them, all classes alike if balanced."""
    if not settings.class_balanced:
        return features.mean(0)
    return class_means(features, task.train.labels, len(task.classes)).mean(0).to(features.dtype)


def reference_heads(
    features: Tensor,
    task: Task,
    known: Head | None,
    seen: SeenClasses,
    settings: Settings,
    seeds: Seeds,
) -> Head:
    """Step 3: heads of all classes seen, calibrated to each other.

    In closed form from the class statistics; in the paper protocol a head is pre-tuned for the new classes, and joined
    to the known ones that are then aligned together.

    Args:
        features: (N, D) of the task's images at theta0.
        task: the task.
        known: reference heads of the classes seen before it.
        seen: all classes, the task's last.
        settings: how they are trained.
        seeds: of the task.
    """
    if not settings.as_the_paper:
        assert seen.joined is not None
        return initial_heads(seen.joined)
    generator, labels, lr = seeds.generator("heads"), task.train.labels, settings.pretune_lr
    fresh = pretune_plainly(
        features, labels, len(task.classes), epochs=settings.pretune_epochs, lr=lr, generator=generator
    )
    return align(fresh if known is None else Head.join([known, fresh]), seen.tasks, lr=lr, generator=generator)


def fresh_head(features: Tensor, labels: Tensor, classes: int, settings: Settings, generator: torch.Generator) -> Head:
    """A head for new classes, pre-tuned on their features (N, D) with labels (N,): of baselines."""
    return pretune(
        Head.random(classes, features.shape[1], generator),
        features,
        labels,
        epochs=settings.pretune_epochs,
        lr=settings.pretune_lr,
        batch_size=settings.batch_size,
        generator=generator,
    )


def curvature_at_theta0(
    backbone: Backbone,
    task: Task,
    reference: Head,
    known: Curvature | None,
    settings: Settings,
    seeds: Seeds,
    progress: Progress = silent,
) -> Curvature:
    """Step 4: the task's curvature; the Fisher under the reference heads of all classes seen, or as the settings say.

    Args:
        backbone: theta0.
        task: the task.
        reference: reference heads of all classes seen.
        known: the curvature of the tasks before it, which this one is to be added to.
        settings: which curvature, of which images.
        seeds: of the task.
        progress: told how many images are done.

    Raises:
        DivergenceError: it is not finite.
    """
    if settings.curvature_of == "reference" and known is not None:
        return known - known
    images, generator = task.train.pixels(backbone.preprocessing), seeds.generator("fisher")
    if diagonal := settings.curvature == "diagonal":
        rows = current().rows(len(images), BATCH)
        for _ in range(0, rows.start, BATCH):  # the draws of the batches that other processes have
            logit_vectors(torch.zeros(BATCH, len(reference)), settings.fisher, settings.probes, generator)
        images = _part(images, rows)
    elif len(images) > settings.curvature_images:  # so few that every process takes them all
        drawn = torch.randperm(len(images), generator=generator)[: settings.curvature_images]
        images = chosen(images, drawn.sort().values)
    phase = f"{task.name}: Fisher"
    with closing(
        normalized(images, backbone.preprocessing, backbone.device, progress=progress, phase=phase)
    ) as batches:
        found = CURVATURES[settings.curvature](
            backbone,
            reference.to(backbone.device) if diagonal else None,
            batches,
            estimator=settings.fisher,
            probes=settings.probes,
            generator=generator,
            precision=settings.precision,
            like=known,
        )
    if not math.isfinite(numbers := sum(float(f.sum()) for f in found.tensors().values())):
        raise DivergenceError(
            f"task {task.name!r}: its Fisher sums to {numbers}, expected a finite number: the backbone's features or "
            "gradients are not finite on these images; try --precision fp32, or look at the weights"
        )
    return found


def starting_head(
    prepared: PreparedTask,
    state: LearnerState,
    settings: Settings,
    seeds: Seeds,
    device: torch.device,
    *,
    through_mean: bool = False,
) -> RegularizedHead:
    """Of step 5: the task's head where its training begins, at its reference head; the paper's begins at random.

    Args:
        prepared: the task after steps 1 to 4.
        state: what is known of all tasks.
        settings: of the training.
        seeds: of the task.
        device: to put it on.
        through_mean: the module is trained through the composed model (IEL).
    """
    assert state.reference is not None
    reference = start = state.reference[prepared.rows]
    if settings.as_the_paper:
        start = Head.truncated_normal(len(reference), reference.weight.shape[1], seeds.generator("head start"))
    fisher = fisher_of_head(prepared, state, settings, seeds, earlier_only=settings.as_the_paper and through_mean)
    give_back_memory()  # of the features drawn for it
    return RegularizedHead(start.to(device), reference.to(device), fisher.to(device))


def fisher_of_head(
    prepared: PreparedTask, state: LearnerState, settings: Settings, seeds: Seeds, *, earlier_only: bool = False
) -> Head:
    """Mean Fisher of the task's head rows, floored, over features drawn from the statistics of all classes seen.

    ``earlier_only``: of those of earlier tasks, where there are any.
    """
    assert state.reference is not None
    statistics = state.seen.tasks[: state.tasks.index(prepared.task.name) if earlier_only else None]
    reference, rows = state.reference, prepared.rows
    weight, bias = torch.zeros_like(reference.weight[rows]), torch.zeros_like(reference.bias[rows])
    if statistics:
        count = PER_CLASS if settings.as_the_paper else per_class(sum(map(len, statistics)))
        features, _ = sample(statistics, count, seeds.generator("head fisher"))
        weight, bias = head_fisher(features, reference.weight, reference.bias, rows)
    return Head(weight + FLOOR, bias + FLOOR)
