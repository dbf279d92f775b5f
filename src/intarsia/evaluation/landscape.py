"""The loss around theta0 along real task vectors, and how far second order reaches (the paper's Fig. 1, measured).

Second order is taken twice: with the diagonal Fisher of the pool, which the regularizers use, and with the whole Fisher
of the images measured, F = E J' (diag p - p p') J, J the Jacobian of the logits: what the diagonal leaves out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from intarsia.curvature.jensen_gap import gap
from intarsia.data.stream import TaskStream
from intarsia.evaluation.gaps import whole_fisher_squares
from intarsia.evaluation.kept import Keep, fresh, under
from intarsia.evaluation.theorem import DRAWN, Sample, named
from intarsia.merging.merge import combination, moved_by
from intarsia.pool import Pool
from intarsia.progress import Progress, silent
from intarsia.task_vector import TaskVector

Line = Callable[[float], Mapping[str, float]]
"""Position -> coefficients of the task vectors."""


POINTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


SCALES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


@dataclass(frozen=True)
class LossPath:
    """The loss along a line of weights, and what second order at theta0 makes of it; nats per image.

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
    progress: Progress = silent,
    keep: Keep = fresh,
) -> tuple[LossPath, ...]:
    """Walk along lines of compositions (the picture behind the paper's Fig. 1, measured).

    Args:
        pool: with at least one module.
        stream: holds the pool's tasks; their training images are used.
        lines: by name; from theta0 to the mean and from the first module to the last if None.
        at: positions.
        per_task: training images drawn from each task.
        seed: of that draw.
        progress: called with (steps done, steps in all): the whole Fisher, then every network.
        keep: where every loss is kept as it is known.

    Example:
        >>> mean = {t: 1 / len(pool.tasks) for t in pool.tasks}
        >>> loss_paths(pool, stream, {"mean": lambda s: {t: s * w for t, w in mean.items()}}, [0, 0.5, 1])
    """
    tasks = pool.learned()
    sample, lines = Sample.draw(pool, stream, tasks, per_task, seed), _lines(tasks) if lines is None else lines
    keep = under(keep, f"lines, {per_task} images per task, seed {seed}")
    places = [(name, position, line(position)) for name, line in lines.items() for position in at]
    mixtures = [[mixed.get(t, 0.0) for t in tasks] for _, _, mixed in places]
    total, weights = 1 + len(places), pool.backbone.trainable
    squares = keep(
        f"whole Fisher of {list(lines)} at {list(at)}",
        lambda: whole_fisher_squares(*sample.linear(), sample.vectors(), torch.tensor(mixtures)),
    )
    progress("lines of weights", 1, total)
    start = keep("theta0", lambda: sample.loss(pool.backbone.model))
    gradient: list[TaskVector] = []  # at theta0; taken once, where a slope is not kept

    def measured(mixed: Mapping[str, float]) -> list[float]:
        """The loss, its slope from theta0, and d'Fd."""
        if not any(mixed.values()):
            return [start, 0.0, 0.0]
        if not gradient:
            gradient.append(sample.gradient())
        combined = combination(pool.adapter, sample.modules, mixed)
        away = TaskVector({weight: combined(weight, theta0) for weight, theta0 in weights.items()})
        loss = sample.loss(moved_by(pool.backbone, away))
        return [loss, float(gradient[0].inner(away)), 2 * float(sample.fisher.value(away))]

    points: dict[str, list[tuple[float, float, float]]] = {name: [] for name in lines}
    for done, ((name, position, mixed), square) in enumerate(zip(places, squares, strict=True), start=2):
        loss, slope, diagonal = keep(f"{name} at {position}", lambda mixed=mixed: measured(mixed))
        points[name].append((loss, start + slope + diagonal / 2, start + slope + square / 2))
        progress("lines of weights", done, total)
    return tuple(LossPath(name, tuple(at), *zip(*found, strict=True)) for name, found in points.items())


@dataclass(frozen=True)
class GapPath:
    """Jensen's gap of task vectors scaled by s, and what second order at theta0 makes of it; nats per image.

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
    progress: Progress = silent,
    keep: Keep = fresh,
) -> GapPath:
    """Measure Jensen's gap of the mean at several scales of the task vectors: where second order ends.

    Args:
        pool: with at least one module.
        stream: holds the pool's tasks; their training images are used.
        scales: s, of all task vectors at once.
        per_task: training images drawn from each task.
        seed: of that draw.
        progress: called with (steps done, steps in all): the whole Fisher, then every network.
        keep: where every loss is kept as it is known.
    """
    tasks = pool.learned()
    sample, share = Sample.draw(pool, stream, tasks, per_task, seed), 1 / len(tasks)
    keep = under(keep, f"scales, {per_task} images per task, seed {seed}")
    vectors = sample.vectors()
    diagonal = gap(vectors, [share] * len(tasks), sample.fisher)
    away = torch.eye(len(tasks)) - share  # of each vector from the mean of all
    whole = 0.5 * share * sum(keep("whole Fisher", lambda: whole_fisher_squares(*sample.linear(), vectors, away)))
    coefficients = [dict.fromkeys(tasks, share), *({t: 1.0} for t in tasks)]
    total, done, measured = 1 + len(scales) * len(coefficients), 1, []
    progress("scales of the task vectors", done, total)
    for s in scales:
        losses: list[float] = []
        for mixed in coefficients:
            scaled = {t: s * c for t, c in mixed.items()}
            losses.append(keep(named(scaled), lambda scaled=scaled: sample.composed_loss(scaled)))
            done += 1
            progress("scales of the task vectors", done, total)
        measured.append(share * sum(losses[1:]) - losses[0])
    squares = [s * s for s in scales]
    return GapPath(
        tuple(scales), tuple(measured), tuple(q * diagonal for q in squares), tuple(q * whole for q in squares)
    )


def _lines(tasks: Sequence[str]) -> dict[str, Line]:
    lines: dict[str, Line] = {"theta0 (0) to the mean (1)": lambda s: {t: s / len(tasks) for t in tasks}}
    if len(tasks) > 1:
        lines[f"{tasks[0]} (0) to {tasks[-1]} (1)"] = lambda s: {tasks[0]: 1 - s, tasks[-1]: s}
    return lines
