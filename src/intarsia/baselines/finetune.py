"""Sequential fine-tuning: nothing is done against forgetting. The floor of every comparison."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from intarsia.adapters.full import Full
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.protocol import TaskResult
from intarsia.baselines.sequential import Strategy, train_in_turn
from intarsia.data.stream import TaskStream
from intarsia.progress import Progress, silent
from intarsia.training.settings import Settings


@dataclass(frozen=True)
class FineTuning:
    """One network from task to task, cross-entropy over all classes seen.

    Args:
        adapter: what is trained of it.
    """

    adapter: Adapter = field(default_factory=Full)
    about: ClassVar[str] = "all trainable weights, task after task"

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
        return train_in_turn(backbone, stream, self.adapter, settings, Strategy(), progress)
