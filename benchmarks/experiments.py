"""The tables of docs/results.md: every configuration on both built-in streams, several seeds, resumable.

    python benchmarks/experiments.py main --streams chalk sketches --seeds 0 1 2 --out results/main.jsonl

Steps 1 to 4 of METHOD.md (features, statistics, reference heads, Fisher) do not depend on adapter, method or strength,
so they are made once for each stream and seed, and every configuration starts from them. What is measured is what
``intarsia learn`` and ``intarsia evaluate`` compute: the same ``Learner``, the same ``merge``, the same test images.
Each finished run is a line of the output file; a line that is there is not run again.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor, nn

from intarsia.adapters import Adapter
from intarsia.backbone import Backbone
from intarsia.composition import ComposedModel, merge
from intarsia.config import Training, build_adapter, build_regularizer
from intarsia.errors import InputError
from intarsia.evaluation import Evaluation, evaluate
from intarsia.heads import Head
from intarsia.learner import Learner, Memory, Prepared
from intarsia.module import Card, Module
from intarsia.stream import TaskStream


@dataclass(frozen=True)
class Setting:
    """One cell: how modules are learned."""

    method: Literal["ita", "iel"]
    adapter: Literal["lora", "full", "ia3"]
    strength: float
    training: Training
    rank: int = 16
    label: str = ""


class Workbench:
    """One stream and seed with steps 1 to 4 done.

    Args:
        stream: the tasks.
        seed: of everything random.
        training: settings of steps 1 to 4; a setting that is run later must agree with it on those.
    """

    def __init__(self, stream: TaskStream, seed: int, training: Training | None = None) -> None:
        self.backbone = Backbone.load()
        self.stream = stream
        self.base = replace(training or Training(), seed=seed)
        started = time.perf_counter()
        learner = Learner(self.backbone, build_adapter("lora"), build_regularizer("ita", 0.0), self.base, stream)
        memory, self.steps = Memory(), list[tuple[Prepared, Memory, Any]]()
        for task in stream:
            earlier = memory.fisher
            prepared = learner.prepare(task, memory)
            self.steps.append((prepared, replace(memory), earlier))
        self.set_up_seconds = time.perf_counter() - started

    def learn(self, setting: Setting) -> list[Module]:
        """Step 5 for every task."""
        training = replace(setting.training, seed=self.base.seed)
        adapter, regularizer = build_adapter(setting.adapter, setting.rank), build_regularizer(setting.method, setting.strength)
        learner = Learner(self.backbone, adapter, regularizer, training, self.stream)
        total, modules = None, list[Module]()
        final = self.steps[-1][1]
        for prepared, snapshot, earlier in self.steps:
            memory, others = replace(snapshot, total=total), earlier
            if training.fisher_over == "others":
                assert final.fisher is not None
                memory, others = replace(final, total=total), final.fisher - prepared.fisher
            vector, head, measures = learner.fine_tune(prepared, memory, others)
            total = memory.total
            assert memory.reference is not None
            card = Card(prepared.task.name, prepared.task.classes, len(prepared.task.train), {}, {}, {}, measures=measures)
            modules.append(Module(card, vector, head, memory.reference[prepared.rows], prepared.statistics))
        return modules

    def model(self, modules: Sequence[Module], adapter: Adapter, weights: Mapping[str, float] | None = None) -> ComposedModel:
        """The mean of some modules with their heads."""
        weights = weights or {m.card.task: 1 / len(modules) for m in modules}
        network = merge(self.backbone, adapter, modules, weights)

        def before(count: int) -> ComposedModel:
            return self.model(modules[:count], adapter)

        return self._composed(network, Head.join([m.head for m in modules]), modules, before)

    def frozen(self) -> ComposedModel:
        """theta0 with the reference heads."""
        final = self.steps[-1][1].reference
        assert final is not None
        names = [p.task for p, _, _ in self.steps]
        return ComposedModel(
            merge(self.backbone, build_adapter("lora"), [], {}), final, {t.name: t.classes for t in names},
            self.backbone.preprocessing, {},
        )

    def _composed(self, network: nn.Module, head: Head, modules: Sequence[Module], before: Any) -> ComposedModel:
        classes = {m.card.task: m.card.classes for m in modules}
        return ComposedModel(network, head, classes, self.backbone.preprocessing, {}, before)

    def measure(self, setting: Setting, *, history: bool) -> dict[str, Any]:
        """Learn, compose the mean, evaluate."""
        started = time.perf_counter()
        modules = self.learn(setting)
        seconds = time.perf_counter() - started
        found = evaluate(self.model(modules, build_adapter(setting.adapter, setting.rank)), self.stream, history=history)
        norms = [m.card.measures["relative_norm"] for m in modules]
        losses = [m.card.measures["losses"][-1] for m in modules]
        return {
            "final_accuracy": found.final_accuracy,
            "task_il_accuracy": found.task_il_accuracy,
            "final_forgetting": found.final_forgetting,
            "average_incremental_accuracy": found.average_incremental_accuracy,
            "relative_norm": sum(norms) / len(norms),
            "loss": sum(losses) / len(losses),
            "head_moved": sum(m.card.measures["head_moved"] for m in modules) / len(modules),
            "seconds": round(seconds, 1),
        }
