"""Joint training: all images at once, the same adapter, no regularizer; nothing incremental sees them so."""

from collections.abc import Iterator
from dataclasses import replace

from intarsia.adapters.lora import LoRA
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.modular import set_up_seconds
from intarsia.baselines.setting import plain_run
from intarsia.baselines.stage import Stage, classifier, numbers
from intarsia.data.stream import TaskStream
from intarsia.merging.merge import merge
from intarsia.progress import Progress, silent
from intarsia.training.learner import modules
from intarsia.training.preparation import Memory
from intarsia.training.recommended import recommended
from intarsia.training.settings import Settings


def learn(
    backbone: Backbone,
    stream: TaskStream,
    *,
    adapter: Adapter | None = None,
    training: Settings | None = None,
    progress: Progress = silent,
) -> Iterator[Stage]:
    """Learn the whole stream as one task, in the six steps of docs/method.md, free of every regularizer.

    Args:
        backbone: theta0.
        stream: the tasks.
        adapter: what is trained; ``LoRA(16)`` if None.
        training: epochs, batches, learning rate, seed; its pulls on head and features are set to zero.
        progress: told how far the work is.

    Yields:
        The method once, after all tasks.
    """
    adapter = adapter or LoRA()
    settings = training or recommended("ita", adapter.kind)[1]
    free = replace(settings, lambda_h=0.0, lambda_0=0.0, centred=False, drift_pull=0.0)
    run = plain_run(backbone, stream.joined(), adapter, free, progress)
    (learned,) = modules(run, Memory())
    module, log = learned.module, learned.log
    network = merge(backbone, run.adapter, [module], {module.card.task: 1.0})
    head = module.own_head()
    model = classifier(backbone, network, head, {t.name: t.classes for t in stream})
    images = sum(len(t.train) for t in stream)
    kept = numbers(module.vector, head.tensors())
    yield Stage(model, set_up_seconds(log, fisher=False), log["training_seconds"], kept, images)
