"""Joint training: all images at once, the same adapter, no regularizer; nothing incremental sees them so."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from intarsia.adapters.lora import LoRA
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.modules import set_up_seconds
from intarsia.baselines.protocol import TaskResult, classifier, count
from intarsia.data.stream import TaskStream
from intarsia.merging.merge import merge
from intarsia.progress import Progress, silent
from intarsia.regularizers.ita import ITA
from intarsia.training.fine_tuning import Configuration
from intarsia.training.learner import learned_tasks
from intarsia.training.settings import Settings
from intarsia.training.state import LearnerState


@dataclass(frozen=True)
class Joint:
    """The whole stream as one task, in the six steps of docs/method.md, free of every regularizer.

    Args:
        adapter: what is trained.
    """

    adapter: Adapter = field(default_factory=LoRA)
    about: ClassVar[str] = "all images at once, no regularizer"

    def train(
        self,
        backbone: Backbone,
        stream: TaskStream,
        settings: Settings,
        *,
        folder: Path | None = None,
        progress: Progress = silent,
    ) -> Iterator[TaskResult]:
        """See ``Baseline``; yields once, after all tasks. What holds head and features in place is set to zero."""
        joined = stream.joined()
        joined.decode(backbone.preprocessing, progress)
        free = replace(settings, lambda_h=0.0, lambda_0=0.0, center_features=False, drift_penalty=0.0)
        configuration = Configuration(self.adapter, ITA(0.0), free, stream.augmentation)
        (learned,) = learned_tasks(backbone, joined, configuration, LearnerState(), progress=progress)
        module, log = learned.module, learned.log
        network = merge(backbone, self.adapter, [module], {module.card.task: 1.0})
        head = module.own_head()
        model = classifier(backbone, network, head, {t.name: t.classes for t in stream})
        images = sum(len(t.train) for t in stream)
        stored = count(module.vector, head.tensors())
        yield TaskResult(model, set_up_seconds(log, fisher=False), log["training_seconds"], stored, images)
