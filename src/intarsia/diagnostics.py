"""The theory on a real pool (METHOD.md section 2): Jensen's gap of a composed model, measured and predicted.

Theorem 1 and Eq. 5, 13, 14: for sum w = 1 the second-order proxy at theta0 obeys

    l(theta_P) + Omega = sum_t w_t l(theta_t),    Omega = 1/2 (sum_t w_t |tau_t|_H^2 - |sum_t w_t tau_t|_H^2)

The mean Fisher F stands in for the Hessian H. The loss is cross-entropy over all classes of the pool, on images of all
of its tasks, with the aligned reference heads: only the tuned weights differ between the models compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intarsia import composition
from intarsia.composition import combination, merge, moved
from intarsia.evaluation import matching_tasks
from intarsia.heads import Head
from intarsia.pool import Pool
from intarsia.stream import TaskStream
from intarsia.tangent import Tangent
from intarsia.task_vector import TaskVector

Progress = Callable[[int, int], None]
Line = Callable[[float], Mapping[str, float]]
"""Position -> coefficients of the task vectors."""
BATCH = 64
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
DRAWN = 50
"""Training images of a task, where many networks are measured on the same ones."""
SCALES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` measures; losses in nats an image.

    Args:
        tasks: the modules, in order.
        theta0_loss: l(theta0).
        composed_loss: l(theta_P).
        module_losses: l(theta_t) of every module alone.
        mean_module_loss: sum_t w_t l(theta_t).
        true_gap: mean_module_loss - composed_loss; positive where composing helps.
        predicted_gap: Omega_F.
        remainder: true_gap - predicted_gap: what is not of second order at theta0, or where F is not the Hessian.
        gradient_norm: |g| at theta0 over the tuned weights; the theory wants it small.
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


def gap(vectors: Sequence[Mapping[str, Tensor]], weights: Sequence[float], metric: Mapping[str, Tensor]) -> float:
    """Omega = 1/2 (sum_t w_t |tau_t|^2 - |sum_t w_t tau_t|^2) in a diagonal metric (Eq. 13).

    Raises:
        ValueError: the weights do not sum to 1: the identity does not hold.
    """
    if abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights sum to {sum(weights):g}: Theorem 1 needs 1")
    spread = 0.0
    for name, diagonal in metric.items():
        taus = torch.stack([v[name].double() for v in vectors])
        w = torch.tensor(list(weights), dtype=torch.float64).view(-1, *[1] * (taus.ndim - 1))
        mean = (w * taus).sum(0)
        # sum w |tau - mean|^2 is the same number, and does not cancel
        spread += float((w * (taus - mean).square() * diagonal.double()).sum())
    return 0.5 * spread


def diagnose(
    pool: Pool,
    stream: TaskStream,
    *,
    weights: Mapping[str, float] | None = None,
    per_task: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> Diagnosis:
    """Measure the theorem on a pool.

    Args:
        pool: with at least one module.
        stream: holds the pool's tasks; their training images are used.
        weights: coefficients that sum to 1; uniform if None.
        per_task: training images drawn from each task.
        seed: of that draw.
        progress: called with (networks measured, networks in all).

    Raises:
        InputError: the pool is empty, or the stream does not fit it.
    """
    tasks, reference, running = pool.learned(), pool.reference(), pool.fisher()
    assert reference is not None and running is not None
    recipe = composition.mean(tasks) if weights is None else composition.weighted(tasks, weights)
    w, names = recipe.weights, recipe.tasks
    images, labels = _draw(pool, stream, names, per_task, seed)
    modules = {t: pool.module(t) for t in names}
    head = reference.to(pool.backbone.device)
    networks: list[Mapping[str, float]] = [{}, w, *({t: 1.0} for t in names)]
    losses: list[float] = []
    for i, coefficients in enumerate(networks):
        network = merge(pool.backbone, pool.adapter, list(modules.values()), coefficients)
        losses.append(_loss(network, head, images, labels, pool))
        if progress is not None:
            progress(i + 1, len(networks))
    vectors = [modules[t].dense(pool.adapter, pool.backbone.tuned) for t in names]
    composed = sum((w[t] * v for t, v in zip(names[1:], vectors[1:], strict=True)), w[names[0]] * vectors[0])
    mean_loss = sum(w[t] * x for t, x in zip(names, losses[2:], strict=True))
    predicted = gap(vectors, [w[t] for t in names], running.mean(0.0))
    untuned = Head.random(len(head), head.weight.shape[1], torch.Generator().manual_seed(seed)).to(pool.backbone.device)
    return Diagnosis(
        tasks=names,
        theta0_loss=losses[0],
        composed_loss=losses[1],
        module_losses=tuple(losses[2:]),
        mean_module_loss=mean_loss,
        true_gap=mean_loss - losses[1],
        predicted_gap=predicted,
        remainder=mean_loss - losses[1] - predicted,
        gradient_norm=float(_gradient(pool, head, images, labels).norm()),
        gradient_norm_before=float(_gradient(pool, untuned, images, labels).norm()),
        vector_norms=tuple(float(v.norm()) for v in vectors),
        cosines=tuple(tuple(float(v.cosine(u)) for u in vectors) for v in vectors),
        cosine_to_composed=tuple(float(v.cosine(composed)) for v in vectors),
        images=len(labels),
    )


@dataclass(frozen=True)
class LossPath:
    """The loss along a line of weights, and what second order at theta0 makes of it; nats an image.

    Args:
        name: from where to where.
        at: positions along the line.
        loss: measured there.
        diagonal: l(theta0) + <g, d> + 1/2 d'Fd, d the difference from theta0, F the diagonal Fisher of the pool, which
            the regularizers use.
        whole: the same with the whole Fisher of the images measured.
    """

    name: str
    at: tuple[float, ...]
    loss: tuple[float, ...]
    diagonal: tuple[float, ...]
    whole: tuple[float, ...]


def loss_paths(
    pool: Pool,
    stream: TaskStream,
    lines: Mapping[str, Line] | None = None,
    at: Sequence[float] = POINTS,
    *,
    per_task: int = DRAWN,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[LossPath, ...]:
    """Walk along lines of compositions (the picture behind the paper's Fig. 1, measured).

    Args:
        pool: with at least one module.
        stream: holds the pool's tasks; their training images are used.
        lines: by name; from theta0 to the mean and from the first module to the last if None.
        at: positions.
        per_task: training images drawn from each task.
        seed: of that draw.
        progress: called with (networks measured, networks in all).

    Example:
        >>> mean = {t: 1 / len(pool.tasks) for t in pool.tasks}
        >>> loss_paths(pool, stream, {"mean": lambda s: {t: s * w for t, w in mean.items()}}, [0, 0.5, 1])
    """
    tasks, reference, running = pool.learned(), pool.reference(), pool.fisher()
    assert reference is not None and running is not None
    head, fisher = reference.to(pool.backbone.device), running.mean(0.0)
    images, labels = _draw(pool, stream, tasks, per_task, seed)
    gradient, modules = _gradient(pool, head, images, labels), [pool.module(t) for t in tasks]
    start, done, paths = _loss(pool.backbone.model, head, images, labels, pool), 0, []
    lines = _lines(tasks) if lines is None else lines
    total, vectors = len(lines) * len(at) + 1, [m.dense(pool.adapter, pool.backbone.tuned) for m in modules]
    mixtures = [[line(s).get(t, 0.0) for t in tasks] for line in lines.values() for s in at]
    squares = iter(_whole_fisher_squares(pool, vectors, head, images, torch.tensor(mixtures)))
    for name, line in lines.items():
        losses, diagonal, whole = [], [], []
        for position in at:
            mixed = combination(pool.adapter, modules, line(position))
            away = TaskVector({weight: mixed(weight, theta0) for weight, theta0 in pool.backbone.tuned.items()})
            network = moved(pool.backbone, lambda weight, _, away=away: away[weight])
            losses.append(_loss(network, head, images, labels, pool))
            first = start + float(gradient.inner(away))
            diagonal.append(first + float(away.inner(away, fisher)) / 2)
            whole.append(first + next(squares) / 2)
            done += 1
            if progress is not None:
                progress(done, total)
        paths.append(LossPath(name, tuple(at), tuple(losses), tuple(diagonal), tuple(whole)))
    if progress is not None:
        progress(total, total)
    return tuple(paths)


@dataclass(frozen=True)
class GapPath:
    """Jensen's gap of task vectors scaled by s, and what second order at theta0 makes of it; nats an image.

    Measured and predicted go with s^2, side by side, as long as second order says it all. The whole Fisher is taken
    on the images measured: E J' (diag p - p p') J, with the Jacobian J of the logits.

    Args:
        scales: s.
        measured: sum_t w_t l(theta0 + s tau_t) - l(theta0 + s sum_t w_t tau_t), w uniform.
        diagonal: s^2 Omega_F with the diagonal Fisher of the pool, which the regularizers use.
        whole: s^2 Omega_F with the whole Fisher.
    """

    scales: tuple[float, ...]
    measured: tuple[float, ...]
    diagonal: tuple[float, ...]
    whole: tuple[float, ...]


def gap_path(
    pool: Pool,
    stream: TaskStream,
    scales: Sequence[float] = SCALES,
    *,
    per_task: int = DRAWN,
    seed: int = 0,
    progress: Progress | None = None,
) -> GapPath:
    """Measure Jensen's gap of the mean at several scales of the task vectors: where second order ends.

    Args:
        pool: with at least one module.
        stream: holds the pool's tasks; their training images are used.
        scales: s, of all task vectors at once.
        per_task: training images drawn from each task.
        seed: of that draw.
        progress: called with (networks measured, networks in all).
    """
    tasks, reference, running = pool.learned(), pool.reference(), pool.fisher()
    assert reference is not None and running is not None
    head, w = reference.to(pool.backbone.device), [1 / len(tasks)] * len(tasks)
    images, labels = _draw(pool, stream, tasks, per_task, seed)
    modules = [pool.module(t) for t in tasks]
    coefficients = [dict.fromkeys(tasks, w[0]), *({t: 1.0} for t in tasks)]
    total, done, measured = len(scales) * len(coefficients) + 1, 0, []
    for s in scales:
        losses: list[float] = []
        for mixed in coefficients:
            network = merge(pool.backbone, pool.adapter, modules, {t: s * c for t, c in mixed.items()})
            losses.append(_loss(network, head, images, labels, pool))
            done += 1
            if progress is not None:
                progress(done, total)
        measured.append(sum(losses[1:]) / len(tasks) - losses[0])
    vectors = [m.dense(pool.adapter, pool.backbone.tuned) for m in modules]
    diagonal = gap(vectors, w, running.mean(0.0))
    away = torch.eye(len(tasks)) - 1 / len(tasks)  # of each vector from the mean of all
    whole = 0.5 * sum(_whole_fisher_squares(pool, vectors, head, images, away)) / len(tasks)
    if progress is not None:
        progress(total, total)
    squares = [s * s for s in scales]
    return GapPath(
        tuple(scales), tuple(measured), tuple(q * diagonal for q in squares), tuple(q * whole for q in squares)
    )


@torch.no_grad()
def _whole_fisher_squares(
    pool: Pool, vectors: Sequence[TaskVector], head: Head, images: Tensor, mixtures: Tensor
) -> list[float]:
    """D'Fd of differences d = sum_t m_t tau_t from theta0, F = E J' (diag p - p p') J, J the Jacobian of the logits.

    Args:
        pool: whose theta0.
        vectors: tau_t; one forward derivative of the logits along each.
        head: of the logits.
        images: uint8.
        mixtures: m, a row a difference.
    """
    tangent, normalize = Tangent(pool.backbone), pool.backbone.preprocessing.normalize
    total = torch.zeros(len(mixtures), dtype=torch.float64)
    for x in images.split(BATCH):
        batch, features, along = normalize(x.to(pool.backbone.device)), x, list[Tensor]()
        for tau in vectors:
            features, derivative = tangent(batch, tau)
            along.append(derivative @ head.weight.T)
        p, slopes = torch.softmax(head(features), 1), torch.stack(along)  # (B, C); (T, B, C)
        for row, mixed in enumerate(mixtures.to(slopes)):
            d = torch.einsum("t,tbc->bc", mixed, slopes)
            total[row] += ((p * d.square()).sum(1) - (p * d).sum(1).square()).sum().cpu()
    return (total / len(images)).tolist()


def _lines(tasks: Sequence[str]) -> dict[str, Line]:
    lines: dict[str, Line] = {"theta0 (0) to the mean (1)": lambda s: {t: s / len(tasks) for t in tasks}}
    if len(tasks) > 1:
        lines[f"{tasks[0]} (0) to {tasks[-1]} (1)"] = lambda s: {tasks[0]: 1 - s, tasks[-1]: s}
    return lines


def _draw(pool: Pool, stream: TaskStream, names: Sequence[str], per_task: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training images of the named tasks, and their labels among all classes of the pool."""
    generator = torch.Generator().manual_seed(seed)
    known = pool.classes
    offsets, first = {}, 0
    for task, classes in known.items():
        offsets[task], first = first, first + len(classes)
    images, labels = [], []
    for task in matching_tasks({t: known[t] for t in names}, stream):
        index = torch.randperm(len(task.train), generator=generator)[:per_task]
        images.append(task.train.tensor(pool.backbone.preprocessing)[index])
        labels.append(task.train.labels[index] + offsets[task.name])
    return torch.cat(images), torch.cat(labels)


@torch.no_grad()
def _loss(network: nn.Module, head: Head, images: Tensor, labels: Tensor, pool: Pool) -> float:
    normalize, device = pool.backbone.preprocessing.normalize, pool.backbone.device
    total = 0.0
    for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
        logits = head(network.to(device)(normalize(x.to(device))))
        total += float(F.cross_entropy(logits, y.to(device), reduction="sum"))
    return total / len(labels)


def _gradient(pool: Pool, head: Head, images: Tensor, labels: Tensor) -> TaskVector:
    """G of the mean loss by the tuned weights at theta0, by weight name."""
    backbone = pool.backbone
    weights = [backbone.model.get_submodule(path).get_parameter("weight") for path in backbone.targets.values()]
    sums: list[Tensor] = [torch.zeros_like(w) for w in weights]
    try:
        for w in weights:
            w.requires_grad_(True)
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            logits = head(backbone.model(backbone.preprocessing.normalize(x.to(backbone.device))))
            loss = F.cross_entropy(logits, y.to(backbone.device), reduction="sum") / len(labels)
            sums = [total + g for total, g in zip(sums, torch.autograd.grad(loss, weights), strict=True)]
    finally:
        for w in weights:
            w.requires_grad_(False)
    return TaskVector(dict(zip(backbone.targets, sums, strict=True)))
