"""A pool: the modules learned so far, on disk (see ``store``), and the models made of them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from intarsia.adapters.protocol import Adapter
from intarsia.adapters.records import build_adapter
from intarsia.backbones.backbone import Backbone
from intarsia.backbones.locations import parsed, with_options
from intarsia.class_stats.gaussians import Gaussians
from intarsia.curvature.fisher import DiagonalFisher
from intarsia.curvature.protocol import Curvature
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.heads.discriminant import discriminant
from intarsia.heads.head import Head
from intarsia.merging import recipe as recipes
from intarsia.merging.choices import Rule
from intarsia.merging.heads import Heads, compose_heads, kind_of, prototype_tasks
from intarsia.merging.merge import merge, moved
from intarsia.merging.model import ComposedModel
from intarsia.merging.recipe import Recipe
from intarsia.merging.rules.table import merged_vector
from intarsia.merging.rules.vectors import best_scale, coefficients
from intarsia.store.card import Card
from intarsia.store.index import INDEX, Index
from intarsia.store.lock import RUN
from intarsia.store.mapping import StoredModules
from intarsia.store.module import Module, Trace
from intarsia.task_vector import TaskVector


class Pool(StoredModules):
    """Modules on one backbone with one kind of adapter: a mapping, task -> module.

    Make one with ``create`` or ``open``.

    Example:
        >>> pool = Pool.open("runs/sketches")
        >>> labels = pool.mean().predict(["cat.png"])
        >>> classes = {task: module.card.classes for task, module in pool.items()}
    """

    def __init__(self, path: Path, index: Index, backbone: Backbone | str | None = None) -> None:
        super().__init__(path, index)
        name = index.backbone["name"]
        self._spec = with_options(backbone, parsed(name)[1]) if isinstance(backbone, str) else name
        self._backbone = backbone if isinstance(backbone, Backbone) else None
        if self._backbone is not None:
            index.check(path, self._backbone)

    @classmethod
    def create(cls, path: str | Path, backbone: Backbone, adapter: Adapter, settings: Mapping[str, Any]) -> "Pool":
        """An empty pool in a new or empty folder; nothing is written before the first module.

        Raises:
            InputError: the folder is in use.
        """
        path = Path(path)
        if (path / INDEX).exists():
            raise InputError(f"{path} already holds a pool: add to it with --add, or name another folder with --out")
        if path.exists() and (not path.is_dir() or not _is_ours(path)):
            raise InputError(f"{path} exists and is not a pool: name a new or empty folder with --out")
        return cls(path, Index.of(backbone, adapter, settings), backbone)

    @classmethod
    def open(cls, path: str | Path, backbone: Backbone | str | None = None) -> "Pool":
        """Open a pool; nothing but ``pool.json`` is read until it is needed.

        Args:
            path: the folder.
            backbone: theta0, or what to load it by when it is first needed; the name in the pool if None.

        Raises:
            InputError: no pool is there, its format is another, or ``backbone`` is not the one it was learned on.
        """
        return cls(Path(path), Index.read(Path(path)), backbone)

    @cached_property
    def adapter(self) -> Adapter:
        """What the modules' adapter parameters mean."""
        return build_adapter(**self.index.adapter)

    @property
    def mean_scale(self) -> float:
        """Of the mean of all task vectors (``Training.mean_scale``)."""
        return self.index.settings.get("mean_scale", 1.0)

    @property
    def backbone(self) -> Backbone:
        """theta0, checked against the hash in the pool."""
        if self._backbone is None:
            self._backbone = Backbone.load(self._spec, targets=self.index.backbone["targets"])
            self.index.check(self.path, self._backbone)
        return self._backbone

    def fisher(self, task: str | None = None) -> Curvature | None:
        """The running Fisher of all tasks, or that of one where it was kept (else None).

        On the backbone's device; on the CPU where the pool has not needed its backbone yet.
        """
        found = super().fisher(task)
        return found if found is None or self._backbone is None else found.to(self._backbone.device)

    def vector(self, task: str) -> TaskVector:
        """Tau of a task, dense."""
        return self.module(task).dense(self.adapter, self.backbone.trainable)

    def total(self, tasks: Sequence[str] | None = None) -> TaskVector | None:
        """S: the sum of all task vectors in the order they were learned, or of some as given; None of no task."""
        total: TaskVector | None = None
        for task in self.tasks if tasks is None else tasks:
            total = self.vector(task) if total is None else total + self.vector(task)
        return total

    @cached_property
    def prototypes_hold(self) -> bool:
        """No module's classes were looked up in a mean with a task that was dropped since."""
        return self._looked_up_whole(self.tasks)

    def _looked_up_whole(self, tasks: Sequence[str]) -> bool:
        lost = self.index.lost
        return not lost or not any(task in lost for t in tasks for task in self.card(t).influenced_by.prototypes)

    # Models

    def compose(self, recipe: Recipe, *, heads: Heads = "prototypes") -> ComposedModel:
        """The model of a recipe; its ``before(i)`` is the same rule over the first i tasks.

        Only what it needs is read: a damaged module does not matter to a composition that neither adds nor answers with
        it. (Where the classes are looked up in a mean that it is part of and its part in that cannot be read, they are
        carried from theta0, as after ``verify --repair``; ``recipe["heads"]`` of the model says which.)

        Args:
            recipe: what to compose.
            heads: ``prototypes`` in the mean of the modules, ``compensated`` from theta0, or the modules' ``own``; see
                ``merging.heads.compose_heads``.

        Raises:
            InputError: a module it needs is damaged, or a merged weight is not finite.
        """
        return self._composed(recipe, heads, len(self.tasks))

    def _composed(self, recipe: Recipe, heads: Heads, known: int) -> ComposedModel:
        """A recipe when the first ``known`` tasks had been learned."""
        modules, joined, kind = self._heads(recipe, heads, known)

        def before(count: int) -> ComposedModel:
            first = recipe.tasks[:count]
            return self._composed(recipe.first(first), heads, self.tasks.index(first[-1]) + 1)

        whole = recipe.weights.keys() == set(recipe.tasks) and all(w > 0 for w in recipe.weights.values())
        network = merge(self.backbone, self.adapter, modules, recipe.weights)
        cards = {module.task: module.card for module in modules}
        return self._model(recipe, network, joined, kind, before if whole else None, cards)

    def _heads(self, recipe: Recipe, heads: Heads, known: int) -> tuple[list[Module], Head, Heads]:
        """The modules a recipe needs, its heads, and of which kind they are."""
        modules = [self.module(t) for t in self.tasks if t in recipe.tasks or recipe.weights.get(t)]
        found = self._prototypes(modules, prototype_tasks(recipe, self.tasks[:known], heads, self.mean_scale))
        return modules, compose_heads(modules, recipe, heads, found, self.mean_scale), kind_of(recipe, heads, found)

    def _prototypes(self, modules: Sequence[Module], tasks: Sequence[str]) -> tuple[Module | Trace, ...]:
        """Those in whose mean classes are looked up; none where that mean is known no more."""
        there = {m.task: m for m in modules}
        try:
            return tuple(there.get(t) or self.trace(t) for t in tasks) if self._looked_up_whole(tasks) else ()
        except InputError:  # damaged, and not part of what is composed
            return ()

    def frozen(self, tasks: Sequence[str] | None = None) -> ComposedModel:
        """theta0 itself with the best heads that need no fine-tuning: the discriminant of the class statistics."""
        chosen = self.learned(tasks)
        head = discriminant(Gaussians.join(s.gaussians() for s in self.statistics(chosen)))
        return self._model(Recipe({}, chosen, "frozen"), copy.deepcopy(self.backbone.model), head, "compensated")

    def mean(self, *, answer: Sequence[str] = ()) -> ComposedModel:
        """The mean of all task vectors, at the pool's scale; it may answer with the classes of some tasks only."""
        return self.compose(recipes.mean(self.learned(), self.mean_scale).answering(answer, self.tasks))

    def weighted(self, weights: Mapping[str, float]) -> ComposedModel:
        """Coefficients of the user's choice, of any sign and sum; see ``recipes.weighted``."""
        return self.compose(recipes.weighted(self.learned(), weights))

    def specialize(self, tasks: Sequence[str], *, all_classes: bool = False) -> ComposedModel:
        """The mean of some tasks, their classes only; see ``recipes.specialize``."""
        return self.compose(recipes.specialize(self.learned(), tasks, all_classes, self.mean_scale))

    def unlearn(self, task: str, *, mode: str = "drop", scale: float | None = None) -> ComposedModel:
        """All but one task; see ``recipes.unlearn``. ``influenced_by(task)`` says what it still took part in."""
        return self.compose(recipes.unlearn(self.learned(), task, mode, scale, self.mean_scale))

    def with_vector(self, vector: TaskVector, name: str, tasks: Sequence[str] | None = None) -> ComposedModel:
        """theta0 plus a vector of another merge rule (see ``merging.rules``).

        The heads are those of the combination of task vectors that comes nearest to it.

        Args:
            vector: over the trainable weights.
            name: how to call the model.
            tasks: whose task vectors were merged; the model answers with their classes. None: all.

        Raises:
            InputError: it is over other weights than the pool's, or the pool has no such task.
        """
        chosen = self.learned(tasks)
        weights = self.backbone.trainable
        if {n: w.shape for n, w in weights.items()} != {n: tau.shape for n, tau in vector.items()}:
            raise InputError(f"{name}: a vector over other weights than the pool's: make it of its task vectors")
        modules = [self.module(task) for task in chosen]
        parts = ((vector[n], [m.delta(n, self.adapter, w) for m in modules]) for n, w in weights.items())
        nearest = Recipe(dict(zip(chosen, coefficients(parts), strict=True)), chosen, name)
        _, head, heads = self._heads(nearest, "prototypes", len(self.tasks))
        network = moved(self.backbone, lambda weight, theta0: vector[weight].to(theta0), name)
        return self._model(Recipe({}, chosen, name), network, head, heads)

    def influenced_by(self, task: str) -> dict[str, list[str]]:
        """Other tasks whose modules saw something of ``task`` -> what: its fisher, statistics, vectors, prototypes."""
        ways = {t: self.card(t).influenced_by.of(task) for t in self.tasks if t != task}
        return {t: w for t, w in ways.items() if w}

    def relabelled(self, stream: TaskStream) -> TaskStream:
        """A stream with the names that the pool's classes have today (``store.rewrite.rename``)."""
        for task, names in self.index.renamed.items():
            then = {old: new for old, new in names.items() if task in stream and old in stream[task].classes}
            stream = stream.renamed(then) if then else stream
        return stream

    def _model(
        self,
        recipe: Recipe,
        network: nn.Module,
        head: Head,
        heads: Heads,
        before: Callable[[int], ComposedModel] | None = None,
        known: Mapping[str, Card] | None = None,
    ) -> ComposedModel:
        backbone = self.backbone
        cards = {t: (known or {}).get(t) or self.card(t) for t in recipe.tasks}
        record = {
            "name": recipe.name,
            "weights": dict(recipe.weights),
            "heads": heads,
            "backbone": backbone.name,
            "backbone_hash": backbone.hash,
            "adapter": dict(self.index.adapter),
        }
        model = ComposedModel(
            network,
            head,
            {t: card.classes for t, card in cards.items()},
            backbone.preprocessing,
            record,
            before,
            architecture=backbone.architecture,
            streams={t: card.stream for t, card in cards.items()},
        )
        return model.to(backbone.device)


def _is_ours(folder: Path) -> bool:
    """It is empty, or an unfinished run's that has no module yet."""
    return (folder / RUN).is_dir() or not any(folder.iterdir())


def merged(
    pool: Pool, rule: Rule, tasks: Sequence[str] | None = None, *, scale: float | None = None, seed: int = 0
) -> ComposedModel:
    """The model of a pool's modules by a rule with its paper's settings; see ``Pool.with_vector``.

    Args:
        pool: with ``fisher``, one that keeps every task's own Fisher.
        rule: which.
        tasks: whose modules are merged; None for all.
        scale: factor of the merged vector; if None, 1 for ``sum``, and else where the tasks' losses, quadratic around
            theta0 with their Fishers (the pool's, where it keeps no task's own), are least in sum
            (``rules.vectors.best_scale``).
        seed: of what ``dare`` drops.

    Raises:
        InputError: the pool is empty, or has not the tasks or the Fishers that are asked for.
    """
    chosen = pool.learned(tasks)
    vectors, own = [pool.vector(task) for task in chosen], {task: pool.fisher(task) for task in chosen}
    fishers = [fisher for fisher in own.values() if isinstance(fisher, DiagonalFisher)]
    if rule == "fisher" and len(fishers) < len(vectors):
        task = next(task for task, fisher in own.items() if not isinstance(fisher, DiagonalFisher))
        raise InputError(f"{pool.path} has no diagonal Fisher of {task!r} of its own: learn it with --run.keep-fishers")
    vector = merged_vector(rule, vectors, [fisher.mean() for fisher in fishers], seed)
    if scale is None and rule != "sum":
        if not isinstance(of_all := pool.fisher(), DiagonalFisher):
            raise InputError(f"{pool.path}: a scale is chosen by a diagonal Fisher, and it has none: give --scale")
        scale = best_scale(vector, vectors, [f.sums for f in fishers if len(fishers) == len(vectors)] or [of_all.sums])
    scale = 1.0 if scale is None else scale
    return pool.with_vector(scale * vector, f"{rule}, scale {scale:.4g}", chosen)
