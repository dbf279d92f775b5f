"""A pool as a method among others: its mean after each task, and what learning it cost."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from safetensors import safe_open

from intarsia.baselines.stage import Stage
from intarsia.evaluation.editing import Editable
from intarsia.pool import Pool


def stages(pool: Pool, *, fisher: bool = True) -> Iterator[Stage]:
    """The mean of the first modules, after each task of a pool that was learned.

    Args:
        pool: with its log.
        fisher: whether the method asks for one: else neither its numbers nor its seconds count.
    """
    mean = pool.mean()
    assert mean.before is not None
    costs, files = pool.logged(), pool.index.files
    kept = sum(_numbers(pool, name) for name in files if fisher and name.startswith("fisher"))
    for count, task in enumerate(pool.tasks, start=1):
        own = (name for name in files if name.startswith((f"modules/{task}/", f"reference-{count}.")))
        kept += sum(_numbers(pool, name) for name in own)
        last = count == len(pool.tasks)
        yield Stage(
            model=mean if last else mean.before(count),
            set_up_seconds=set_up_seconds(costs[task], fisher=fisher),
            training_seconds=costs[task]["training_seconds"],
            numbers=kept,
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
