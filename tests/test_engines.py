"""Engines: tasks learned beside each other give the pool of one process, bit for bit, whatever fails on the way."""

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cases import ADAPTERS, KINDS, QUICK, backbone, contents, stream
from intarsia import IEL, ITA, Backbone, InputError, LoRA, Pool, TaskStream, learn
from intarsia.adapters import Adapter
from intarsia.engines import ray as rays
from intarsia.engines.cluster import Calls
from intarsia.engines.parallel import Parallel
from intarsia.engines.ray import Ray
from intarsia.engines.staging import Staging
from intarsia.engines.worker import Job, Worker
from intarsia.errors import DivergenceError
from intarsia.training.checkpoint import Checkpoint
from intarsia.training.fine_tuning import Configuration
from intarsia.training.settings import Training
from intarsia.training.state import LearnedTask

APART = {"log.jsonl"}
OTHERS = replace(QUICK, fisher_over="others")
OPTIONS: dict[str, Any] = {"adapter": LoRA(2), "regularizer": ITA(0.1), "training": OTHERS}
each_adapter = pytest.mark.parametrize("adapter", ADAPTERS, ids=KINDS)


class Stopped(Exception):
    """The driver dies."""


@dataclass
class Inline:
    """A cluster without processes: calls are made when they are waited for, in an order drawn at random."""

    worker: Worker
    drawn: random.Random
    made: list[tuple[str, str]]
    dies_after: int | None
    waiting: dict[int, tuple[str, tuple[Any, ...]]] = field(default_factory=dict)
    values: dict[int, bytes | InputError] = field(default_factory=dict)
    count: int = 0

    def put(self, data: bytes) -> int:
        self.count += 1
        self.values[self.count] = data
        return self.count

    def get(self, reference: int) -> bytes:
        found = self.values[reference]
        if isinstance(found, InputError):
            raise found
        return found

    def call(self, method: str, *arguments: Any) -> int:
        self.count += 1
        self.waiting[self.count] = (method, arguments)
        return self.count

    def wait(self, references: Sequence[int]) -> int:
        if self.dies_after is not None and len(self.made) >= self.dies_after:
            raise Stopped
        chosen = self.drawn.choice(sorted(references))
        method, (name, number, *rest) = self.waiting.pop(chosen)
        self.made.append((method, name))
        given = [self.values[r] if method != "tune" or i > 0 else r for i, r in enumerate(rest)]
        try:
            self.values[chosen] = getattr(self.worker, method)(name, number, *given)
        except InputError as error:
            self.values[chosen] = error
        return chosen


@dataclass(frozen=True)
class InlineEngine(Ray):
    """Ray's engine on such a cluster."""

    order: int = 0
    dies_after: int | None = None
    made: list[tuple[str, str]] = field(default_factory=list)

    def check(self, regularizer: Any) -> None:
        pass

    def learned_tasks(
        self,
        backbone: Backbone,
        stream: TaskStream,
        configuration: Configuration,
        state: Any,
        *,
        known: Any = (),
        checkpoint: Checkpoint | None = None,
        progress: Any = None,
    ) -> Generator[LearnedTask]:
        job = Job.of(backbone, stream, configuration, device="cpu", threads=1)
        cluster = Inline(Worker(job), random.Random(self.order), self.made, self.dies_after)
        calls = Calls(cluster, Staging.of(checkpoint.folder if checkpoint else None), self.workers)
        run = Parallel(cluster, calls, backbone, stream, configuration, state, known, 1, progress)
        yield from run.learned_tasks()


@each_adapter
@pytest.mark.parametrize("workers", [1, 3, None])
def test_whatever_the_order_of_the_workers_the_pool_is_that_of_one_process(
    adapter: Adapter, workers: int | None, tmp_path: Path
) -> None:
    options = {**OPTIONS, "adapter": adapter}
    learn(backbone(), stream(), out=tmp_path / "one", **options)
    for order in range(3):
        out = tmp_path / str(order)
        learn(backbone(), stream(), out=out, engine=InlineEngine(workers=workers, order=order), **options)
        assert contents(out, APART) == contents(tmp_path / "one", APART)
