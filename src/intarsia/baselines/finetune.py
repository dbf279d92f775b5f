"""Sequential fine-tuning: nothing is done against forgetting. The floor of every comparison."""

from collections.abc import Iterator

from intarsia.adapters.full import Full
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.sequential import Keeper, train_in_turn
from intarsia.baselines.setting import plain_run
from intarsia.baselines.stage import Stage
from intarsia.data.stream import TaskStream
from intarsia.progress import Progress, silent
from intarsia.training.settings import Settings


def learn(
    backbone: Backbone,
    stream: TaskStream,
    *,
    adapter: Adapter | None = None,
    training: Settings | None = None,
    progress: Progress = silent,
) -> Iterator[Stage]:
    """Train one network on task after task, cross-entropy over all classes seen.

    Args:
        backbone: theta0.
        stream: the tasks.
        adapter: what is trained of it; all tuned weights if None.
        training: epochs, batches, learning rate, seed.
        progress: told how far the work is.

    Yields:
        The method after each task.
    """
    yield from train_in_turn(plain_run(backbone, stream, adapter or Full(), training, progress), Keeper())
