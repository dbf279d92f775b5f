"""The training loop of the methods that have no regularizer of ours: AdamW over the task's batches."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from intarsia.data.stream import Task
from intarsia.training.run import Run
from intarsia.training.schedule import Batch, batches
from intarsia.training.tuning import finite


def fit(
    run: Run,
    task: Task,
    parameters: Iterable[nn.Parameter],
    generator: torch.Generator,
    loss: Callable[[Batch], Tensor],
) -> None:
    """Train parameters on a task, in place.

    Args:
        run: says how many epochs, and the learning rate.
        task: whose images make the batches.
        parameters: what is trained.
        generator: of the batches' order.
        loss: of a batch, a scalar with a graph.

    Raises:
        DivergenceError: a loss is not finite.
    """
    optimizer = run.optimizer(parameters)
    for batch in batches(run.training, len(task.train), generator):
        batch.set_rate(optimizer)
        value = loss(batch)
        finite(run, value, task.name, batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        if batch.ends_epoch:
            run.progress(f"{task.name}: training", batch.epoch + 1, run.training.epochs)
