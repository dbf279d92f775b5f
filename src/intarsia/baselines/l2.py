"""Modules held near theta0 by a plain L2 in place of the Fisher: what the curvature is worth."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.modular import stages
from intarsia.baselines.stage import Stage
from intarsia.data.stream import TaskStream
from intarsia.progress import Progress, silent
from intarsia.regularizers.l2 import L2
from intarsia.training.learner import learn as learn_pool
from intarsia.training.settings import Settings


def learn(
    backbone: Backbone,
    stream: TaskStream,
    *,
    adapter: Adapter | None = None,
    training: Settings | None = None,
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
