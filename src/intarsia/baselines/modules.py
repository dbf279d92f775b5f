"""ITA, IEL and a plain L2 as methods among others: a pool's mean after each task, and what learning it cost."""

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from safetensors import safe_open

from intarsia.adapters.lora import LoRA
from intarsia.adapters.protocol import Adapter
from intarsia.backbones.backbone import Backbone
from intarsia.baselines.protocol import TaskResult
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.evaluation.editing import Editable
from intarsia.pool import Pool
from intarsia.progress import Progress, silent
from intarsia.regularizers.l2 import L2
from intarsia.regularizers.protocol import Regularizer
from intarsia.store.index import Index
from intarsia.training.checkpoint import Checkpoint
from intarsia.training.learner import learn
from intarsia.training.settings import Settings


@dataclass(frozen=True)
class Modules:
    """A module for each task, learned as ``intarsia learn`` does; their mean answers.

    Args:
        regularizer: ITA, IEL or L2, with its strength.
        adapter: what a task vector is made of.
    """

    regularizer: Regularizer
    adapter: Adapter = field(default_factory=LoRA)
    about: ClassVar[str] = "modules, their mean"

    def train(
        self,
        backbone: Backbone,
        stream: TaskStream,
        settings: Settings,
        *,
        folder: Path | None = None,
        progress: Progress = silent,
    ) -> Iterator[TaskResult]:
        """See ``Baseline``; the pool stays in ``folder``, and a run that was stopped there goes on."""
        with ExitStack() as stack:
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "pool"
            if not (stopped := _stopped(folder, stream)):
                shutil.rmtree(folder, ignore_errors=True)
            pool = learn(
                backbone,
                stream,
                out=folder,
                adapter=self.adapter,
                regularizer=self.regularizer,
                training=settings,
                resume=stopped,
                progress=progress,
            )
            yield from results(pool, fisher=not isinstance(self.regularizer, L2))


def _stopped(folder: Path, stream: TaskStream) -> bool:
    """Whether a run can go on there: while it learned, or when it had learned all tasks and was not yet measured."""
    if Checkpoint.of(folder).exists:
        return True
    with suppress(InputError):
        return Index.read(folder).tasks == tuple(task.name for task in stream)
    return False


def results(pool: Pool, *, fisher: bool = True) -> Iterator[TaskResult]:
    """The mean of the first modules, after each task of a pool that was learned.

    Args:
        pool: with its log.
        fisher: whether the method asks for one: else neither its numbers nor its seconds count.
    """
    mean = pool.mean()
    assert mean.before is not None
    costs, files = pool.logged(), pool.index.files
    stored = sum(_numbers(pool, name) for name in files if fisher and name.startswith("fisher"))
    for done, task in enumerate(pool.tasks, start=1):
        own = (name for name in files if name.startswith((f"modules/{task}/", f"reference-{done}.")))
        stored += sum(_numbers(pool, name) for name in own)
        last = done == len(pool.tasks)
        yield TaskResult(
            model=mean if last else mean.before(done),
            set_up_seconds=set_up_seconds(costs[task], fisher=fisher),
            training_seconds=costs[task]["training_seconds"],
            stored=stored,
            modules=Editable.of_pool(pool, mean) if last else None,
        )


def set_up_seconds(log: Mapping[str, Any], *, fisher: bool) -> float:
    """Of a task's log, with or without the Fisher's pass."""
    return log["set_up_seconds"] - (0.0 if fisher else log["seconds"]["fisher"])


def _numbers(pool: Pool, name: str) -> int:
    """In a file of tensors; others hold none."""
    if not name.endswith(".safetensors"):
        return 0
    with safe_open(pool.path / name, "pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
