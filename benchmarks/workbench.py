"""One stream and seed with steps 1 to 4 of METHOD.md done once: every configuration is learned from there.

Features, class statistics, reference heads and Fisher depend on neither adapter, method nor strength. What is measured
is what ``intarsia learn`` and ``evaluate`` compute: the same ``prepare``, ``fine_tune``, ``merge`` and ``evaluate``.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from intarsia.backbone import Backbone
from intarsia.composition import ComposedModel, Heads, Recipe, compose_heads, merge
from intarsia.config import Training, build_adapter, build_regularizer
from intarsia.drift import FeatureDrift
from intarsia.evaluation import evaluate
from intarsia.fisher import Fisher
from intarsia.module import Card, Module
from intarsia.preparation import Memory, Prepared, prepare
from intarsia.run import Run
from intarsia.stream import TaskStream
from intarsia.tuning import fine_tune


@dataclass(frozen=True)
class Setting:
    """How modules are learned."""

    method: Literal["ita", "iel"]
    adapter: Literal["lora", "full", "ia3"]
    strength: float
    training: Training
    rank: int = 16

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Prelude:
    """A task after steps 1 to 4: its own, what was known then, and the Fisher of the tasks before it."""

    prepared: Prepared
    memory: Memory
    earlier: Fisher | None


class Workbench:
    """One stream and seed.

    Args:
        stream: the tasks.
        seed: of everything random.
        training: settings of steps 1 to 4; later settings must agree with it on those.
    """

    def __init__(self, stream: TaskStream, seed: int, training: Training | None = None) -> None:
        self.backbone = Backbone.load()
        self.stream = stream
        self.base = replace(training or Training(), seed=seed)
        run = Run(self.backbone, build_adapter("lora"), build_regularizer("ita", 0.0), self.base, stream)
        started, memory = time.perf_counter(), Memory()
        self.preludes: list[Prelude] = []
        for task in stream:
            earlier = memory.fisher
            prepared = prepare(run, task, memory)
            self.preludes.append(Prelude(prepared, replace(memory), earlier))
        self.set_up_seconds = time.perf_counter() - started
        assert memory.fisher is not None and memory.reference is not None
        self.fisher, self.reference = memory.fisher, memory.reference

    def learn(self, setting: Setting) -> list[Module]:
        """Step 5 for every task."""
        training = replace(setting.training, seed=self.base.seed)
        adapter = build_adapter(setting.adapter, setting.rank)
        regularizer = build_regularizer(setting.method, setting.strength)
        run = Run(self.backbone, adapter, regularizer, training, self.stream)
        total, modules = None, list[Module]()
        for prelude in self.preludes:
            prepared, task = prelude.prepared, prelude.prepared.task
            memory, others = replace(prelude.memory, total=total), prelude.earlier
            if training.fisher_over == "others":
                memory = replace(self.preludes[-1].memory, total=total)
                others = self.fisher - prepared.fisher
            tuned = fine_tune(run, prepared, memory, others)
            total = memory.total
            assert memory.reference is not None
            card = Card(task.name, task.classes, len(task.train), {}, {}, {}, measures=tuned.measures)
            reference = memory.reference[prepared.rows]
            modules.append(Module(card, tuned.parts, tuned.head, reference, prepared.statistics, tuned.drift))
        return modules

    def compose(
        self,
        setting: Setting,
        modules: Sequence[Module],
        weights: Mapping[str, float] | None = None,
        *,
        heads: Heads = "carried",
        known: int | None = None,
    ) -> ComposedModel:
        """The mean of some modules, or another combination, heads as of the first ``known`` tasks."""
        adapter = build_adapter(setting.adapter, setting.rank)
        names = tuple(m.card.task for m in modules)
        recipe = Recipe({t: 1 / len(names) for t in names} if weights is None else weights, names, "")
        reference = self.preludes[(known or len(self.preludes)) - 1].memory.reference
        assert reference is not None
        aligned = {p.prepared.task.name: reference[p.prepared.rows] for p in self.preludes}
        return ComposedModel(
            merge(self.backbone, adapter, modules, recipe.weights),
            compose_heads(modules, recipe, aligned, heads),
            {m.card.task: m.card.classes for m in modules},
            self.backbone.preprocessing,
            {},
            None if weights == {} else lambda count: self.compose(setting, modules[:count], heads=heads, known=count),
        )

    def frozen(self, heads: Heads = "carried") -> ComposedModel:
        """theta0 with the discriminant of all classes, or with the ``aligned`` reference heads of all tasks."""
        modules: list[Module] = []
        for prelude in self.preludes:
            task, head = prelude.prepared.task, self.reference[prelude.prepared.rows]
            still = FeatureDrift(torch.zeros(0), torch.zeros(0))
            card = Card(task.name, task.classes, len(task.train), {}, {}, {})
            modules.append(Module(card, {}, head, head, prelude.prepared.statistics, still))
        return self.compose(Setting("ita", "lora", 0.0, self.base), modules, {}, heads=heads)

    def measure(self, setting: Setting, *, history: bool) -> dict[str, Any]:
        """Learn, compose the mean, evaluate."""
        started = time.perf_counter()
        modules = self.learn(setting)
        seconds = time.perf_counter() - started
        found = evaluate(self.compose(setting, modules), self.stream, history=history)
        seen = [m.card.measures for m in modules]
        return {
            "final_accuracy": found.final_accuracy,
            "task_il_accuracy": found.task_il_accuracy,
            "final_forgetting": found.final_forgetting,
            "average_incremental_accuracy": found.average_incremental_accuracy,
            "relative_norm": _mean([m["relative_norm"] for m in seen]),
            "loss": _mean([m["losses"][-1] for m in seen]),
            "head_moved": _mean([m["head_moved"] for m in seen]),
            "aligned_heads": self._final(setting, modules, "aligned"),
            "own_heads": self._final(setting, modules, "own"),
            "seconds": round(seconds, 1),
        }

    def _final(self, setting: Setting, modules: Sequence[Module], heads: Heads) -> float:
        return evaluate(self.compose(setting, modules, heads=heads), self.stream, history=False).final_accuracy


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
