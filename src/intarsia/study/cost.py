"""How long the runs of a comparison will take, learned from runs that are there, or from a few images."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import Any

from intarsia.evaluation.editing import EDITS
from intarsia.evaluation.metrics import Scores
from intarsia.study.bench import Bench
from intarsia.study.estimate import BATCHES, few
from intarsia.study.methods import METHODS
from intarsia.study.runs import training_of

TASKS = 2
"""Tasks of which a few images are learned: the first has no other before it."""


def expected(
    bench: Bench,
    name: str,
    seeds: Sequence[int],
    there: Sequence[Mapping[str, Any]],
    *,
    searched: float = 0.0,
    edits: bool = True,
) -> float:
    """Minutes that a method's runs with some seeds will take, one after another.

    Args:
        bench: stream, backbone and budget.
        name: of ``METHODS``.
        seeds: of the runs to be made.
        there: records of the method's runs that are there.
        searched: runs that a search makes besides, as whole ones: one on a part of the images counts as that part.
        edits: whether the modules of seed 0 are edited.
    """
    count = len(seeds) + searched
    if not count:
        return 0.0
    if whole := [record["minutes"] for record in there if not record.get("resumed")]:
        return count * mean(whole)
    run, editing = _timed(bench, name)
    return (count * run + (editing if edits and 0 in seeds else 0.0)) / 60


def _timed(bench: Bench, name: str) -> tuple[float, float]:
    """Seconds of a run, and those of editing its modules, scaled up from one epoch on a few images of two tasks."""
    stream, theta0 = bench.stream(0), bench.theta0()
    tasks = tuple(few(task, BATCHES * bench.batch_size, test=True) for task in stream[:TASKS])
    short = replace(stream, tasks=tasks)
    scores, set_up, training, measuring, stage = Scores(short), 0.0, 0.0, 0.0, None
    quick = replace(training_of(bench, name, 0), epochs=1)
    with tempfile.TemporaryDirectory() as folder:
        for stage in METHODS[name].baseline.train(theta0, short, quick, folder=Path(folder) / name):
            started = time.perf_counter()
            scores.add(stage.model)
            measuring += time.perf_counter() - started
            set_up, training = set_up + stage.set_up_seconds, training + stage.training_seconds
    assert stage is not None
    more = sum(len(t.train) for t in stream) / sum(len(t.train) for t in tasks)
    whole = len(scores.evaluation().accuracy_matrix) == len(tasks)
    per_image = measuring / _passes([len(t.test) for t in tasks], whole)
    tests = [len(t.test) for t in stream]
    run = (set_up + training * bench.epochs) * more + per_image * _passes(tests, whole)
    return run, per_image * sum(tests) * EDITS * len(tests) if stage.modules else 0.0


def _passes(tests: Sequence[int], whole: bool) -> int:
    """Images that pass a network while a method is measured: after every task all those seen, or once."""
    return sum(accumulate(tests)) if whole else sum(tests)
