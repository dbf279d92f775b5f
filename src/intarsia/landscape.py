"""The loss around theta0 along real task vectors, and how far second order reaches (the paper's Fig. 1, measured).

Second order is taken twice: with the diagonal Fisher of the pool, which the regularizers use, and with the whole Fisher
of the images measured, F = E J' (diag p - p p') J, J the Jacobian of the logits: what the diagonal leaves out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from intarsia.composition import combination, merge, moved
from intarsia.diagnostics import BATCH, Progress, drawn, gap, gradient_of, mean_loss_of
from intarsia.heads import Head
from intarsia.pool import Pool
from intarsia.stream import TaskStream
from intarsia.tangent import Tangent
from intarsia.task_vector import TaskVector

Line = Callable[[float], Mapping[str, float]]
"""Position -> coefficients of the task vectors."""
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
DRAWN = 50
"""Training images of a task, where many networks are measured on the same ones."""
SCALES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


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
    images, labels = drawn(pool, stream, tasks, per_task, seed)
    gradient, modules = gradient_of(pool, head, images, labels), [pool.module(t) for t in tasks]
    start, done, paths = mean_loss_of(pool.backbone.model, head, images, labels, pool), 0, []
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
            losses.append(mean_loss_of(network, head, images, labels, pool))
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
    images, labels = drawn(pool, stream, tasks, per_task, seed)
    modules = [pool.module(t) for t in tasks]
    coefficients = [dict.fromkeys(tasks, w[0]), *({t: 1.0} for t in tasks)]
    total, done, measured = len(scales) * len(coefficients) + 1, 0, []
    for s in scales:
        losses: list[float] = []
        for mixed in coefficients:
            network = merge(pool.backbone, pool.adapter, modules, {t: s * c for t, c in mixed.items()})
            losses.append(mean_loss_of(network, head, images, labels, pool))
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
