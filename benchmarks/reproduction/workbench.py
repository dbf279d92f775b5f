"""One stream and seed with steps 1 to 4 of docs/method.md done once: every configuration is learned from there.

Features, class statistics, reference heads and Fisher depend on neither adapter, method nor strength. What is measured
is what ``intarsia learn`` and ``evaluate`` compute: the same ``prepare``, ``fine_tune``, ``merge`` and ``evaluate``.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from intarsia.adapters.records import build_adapter
from intarsia.backbones.backbone import Backbone
from intarsia.backbones.names import BUILTIN
from intarsia.class_stats.gaussians import Gaussians
from intarsia.curvature.protocol import Curvature
from intarsia.data.records import gathered
from intarsia.data.stream import TaskStream
from intarsia.evaluation.metrics import evaluate
from intarsia.heads.discriminant import discriminant
from intarsia.heads.head import Head
from intarsia.merging.heads import Heads, compose_heads, prototype_tasks
from intarsia.merging.merge import merge
from intarsia.merging.model import ComposedModel
from intarsia.merging.recipe import Recipe, mean, specialize
from intarsia.pool import Pool
from intarsia.regularizers.records import build_regularizer
from intarsia.store.module import Module
from intarsia.training.fine_tuning import Configuration
from intarsia.training.recommended import recommended
from intarsia.training.settings import Settings
from intarsia.training.state import LearnerState, PreparedTask
from intarsia.training.task import finish, prepare

OTHER_HEADS: tuple[Heads, ...] = ("compensated", "own")
"""Than prototypes."""
SET_UP = (
    "protocol",
    "pretune_epochs",
    "pretune_lr",
    "fisher",
    "probes",
    "curvature",
    "curvature_of",
    "curvature_images",
)
"""Settings that steps 1 to 4 depend on."""


@dataclass(frozen=True)
class Setting:
    """How modules are learned."""

    method: Literal["ita", "iel"]
    adapter: Literal["lora", "full", "ia3"]
    strength: float
    training: Settings
    rank: int = 16

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Prepared:
    """A task after steps 1 to 4: its own, what was known then, and the Fisher of the tasks before it."""

    prepared: PreparedTask
    state: LearnerState
    earlier: Curvature | None


class Workbench:
    """One stream and seed.

    Args:
        stream: the tasks.
        seed: of everything random.
        training: settings of steps 1 to 4; the tool's own if None.
        device: of the backbone.
        backbone: as ``intarsia learn --backbone``.
    """

    def __init__(
        self,
        stream: TaskStream,
        seed: int,
        training: Settings | None = None,
        device: str | torch.device = "cpu",
        backbone: str = BUILTIN,
    ) -> None:
        self.backbone = Backbone.load(backbone).to(device)
        self.stream = stream
        self.base = replace(training or recommended("ita", "lora")[1], seed=seed)
        self._others: dict[tuple[Any, ...], Workbench] = {}

    def prepared_as(self, training: Settings) -> "Workbench":
        """The one whose steps 1 to 4 are those of some settings: this, or another that is kept beside it."""
        wanted = tuple(getattr(training, name) for name in SET_UP)
        if wanted == tuple(getattr(self.base, name) for name in SET_UP):
            return self
        if wanted not in self._others:
            other = Workbench(self.stream, self.base.seed, training, self.backbone.device)
            other.backbone = self.backbone
            self._others[wanted] = other
        return self._others[wanted]

    @cached_property
    def prepared_tasks(self) -> list[Prepared]:
        """Steps 1 to 4 of every task, made when first asked for."""
        state, made = LearnerState(), list[Prepared]()
        for task in self.stream:
            earlier = state.fisher
            prepared, state = prepare(self.backbone, task, state, self.base)
            made.append(Prepared(prepared, state, earlier))
        return made

    def learn(self, setting: Setting) -> list[Module]:
        """Step 5 for every task.

        Raises:
            ValueError: the setting asks for other steps 1 to 4 than were made.
        """
        training = replace(setting.training, seed=self.base.seed)
        for name in SET_UP:
            if getattr(training, name) != getattr(self.base, name):
                raise ValueError(f"{name} {getattr(training, name)}: steps 1 to 4 had {getattr(self.base, name)}")
        adapter = build_adapter(setting.adapter, setting.rank)
        regularizer = build_regularizer(setting.method, setting.strength)
        configuration = Configuration(adapter, regularizer, training, self.stream.augmentation)
        (earlier, total), modules = (None, None), list[Module]()
        for one in self.prepared_tasks:
            prepared = one.prepared
            state, others = replace(one.state, total=total, earlier=earlier), one.earlier
            if training.fisher_over == "others":
                state = replace(self.prepared_tasks[-1].state, total=total, earlier=earlier)
                assert state.fisher is not None
                others = state.fisher - prepared.fisher
            learned, state = finish(self.backbone, prepared, state, others, configuration)
            earlier, total = state.earlier, state.total
            modules.append(learned.module)
        return modules

    def compose(
        self, setting: Setting, modules: Sequence[Module], recipe: Recipe | None = None, *, heads: Heads = "prototypes"
    ) -> ComposedModel:
        """A recipe over the first modules learned; their mean, with its history, if none is given."""
        names = tuple(m.card.task for m in modules)
        scale = setting.training.mean_scale
        rule = recipe or mean(names, scale)
        chosen = [m for m in modules if m.task in rule.tasks or rule.weights.get(m.task)]
        return self._model(
            merge(self.backbone, build_adapter(setting.adapter, setting.rank), modules, rule.weights),
            compose_heads(chosen, rule, heads, modules if prototype_tasks(rule, names, heads, scale) else (), scale),
            rule.tasks,
            None if recipe else lambda count: self.compose(setting, modules[:count], heads=heads),
        )

    def frozen(self) -> ComposedModel:
        """theta0 with the discriminant of all classes."""
        head = discriminant(Gaussians.join([p.prepared.statistics.gaussians() for p in self.prepared_tasks]))
        return self._model(copy.deepcopy(self.backbone.model), head, tuple(t.name for t in self.stream), None)

    def _model(
        self,
        network: nn.Module,
        head: Head,
        tasks: Sequence[str],
        before: Callable[[int], ComposedModel] | None,
    ) -> ComposedModel:
        classes = {t.name: t.classes for t in self.stream if t.name in tasks}
        return ComposedModel(network, head, classes, self.backbone.preprocessing, {}, before).to(self.backbone.device)

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
            **{f"{heads}_heads": self._final(setting, modules, heads) for heads in OTHER_HEADS},
            "pairs": self._pairs(setting, modules),
            "seconds": round(seconds, 1),
        }

    def _final(self, setting: Setting, modules: Sequence[Module], heads: Heads) -> float:
        return evaluate(self.compose(setting, modules, heads=heads), self.stream, history=False).final_accuracy

    def _pairs(self, setting: Setting, modules: Sequence[Module]) -> float | None:
        """Accuracy of specialists of two tasks (the first and second, third and fourth, ...) on those tasks' images."""
        names = [m.card.task for m in modules]
        couples, scale = zip(names[::2], names[1::2], strict=False), setting.training.mean_scale
        recipes = [specialize(names, pair, mean_scale=scale) for pair in couples]
        models = [self.compose(setting, modules, recipe) for recipe in recipes]
        found = [evaluate(model, self.stream, history=False).final_accuracy for model in models]
        return _mean(found) if found else None


def opened(paths: Sequence[Path]) -> Iterator[tuple[Pool, TaskStream]]:
    """Pools, each with the images that its cards name."""
    for path in paths:
        pool = Pool.open(path)
        yield pool, gathered({task: pool.card(task).stream for task in pool.learned()})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
