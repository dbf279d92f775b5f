"""Modules held near theta0 by a plain L2 in place of the Fisher: what the curvature is worth."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from torch import Tensor

from intarsia.adapters import Adapter
from intarsia.backbone import Backbone
from intarsia.baselines.modular import stages
from intarsia.baselines.stage import Stage
from intarsia.config import Training
from intarsia.learner import learn as learn_pool
from intarsia.regularizers import ITA
from intarsia.run import Progress, silent
from intarsia.stream import TaskStream


@dataclass(frozen=True)
class L2(ITA):
    """alpha / 2 |tau|^2: ITA with ones for a Fisher, in the first task too."""

    floor: float = 1.0
    kind: ClassVar[str] = "l2"

    def on(self, fisher: Mapping[str, Tensor] | None, total: Mapping[str, Tensor] | None, tasks: int) -> Self:
        """The same: no Fisher is asked for."""
        return replace(self, fisher=None)


def learn(
    backbone: Backbone,
    stream: TaskStream,
    *,
    adapter: Adapter | None = None,
    training: Training | None = None,
    progress: Progress = silent,
    strength: float = 0.1,
) -> Iterator[Stage]:
    """Learn every task alone, as ITA does but for the Fisher; the mean answers.

    Args:
        backbone: theta0.
        stream: the tasks.
        adapter: what a task vector is made of; ``LoRA(16)`` if None.
        training: everything else.
        progress: told how far the work is.
        strength: alpha, comparable with ITA's on a Fisher of unit mean.

    Yields:
        The mean of the modules after each task.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, penalty = Path(folder) / "pool", L2(strength)
        yield from stages(
            learn_pool(
                backbone, stream, out=out, adapter=adapter, regularizer=penalty, training=training, progress=progress
            ),
            fisher=False,
        )
