"""What is composed in the page: a coefficient per task, the tasks that answer, or a merge rule; and presets of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from intarsia.merging import recipe as recipes
from intarsia.merging.choices import Rule
from intarsia.merging.model import ComposedModel
from intarsia.merging.recipe import Recipe
from intarsia.pool import Pool, merged

MEAN, TIES, OWN = "Mean of all", "TIES", "Own mix"


ONLY, ALL_BUT = "Only ", "All but "


@dataclass(frozen=True)
class Composition:
    """A composition as the page's controls say it.

    Args:
        weights: (task, coefficient), in the pool's order; of any sign.
        answers: tasks whose classes compete, in the pool's order.
        rule: merges all modules in place of the coefficients; None for the weighted sum.
    """

    weights: tuple[tuple[str, float], ...]
    answers: tuple[str, ...]
    rule: Rule | None = None

    @classmethod
    def of(
        cls, tasks: Sequence[str], weights: Mapping[str, float], answers: Sequence[str], rule: Rule | None = None
    ) -> "Composition":
        """Of coefficients by task; one that is left out is 0."""
        return cls(
            tuple((task, float(weights.get(task, 0.0))) for task in tasks),
            tuple(task for task in tasks if task in answers),
            rule,
        )

    @property
    def named(self) -> dict[str, float]:
        """Coefficients of the tasks that have one or answer."""
        return {task: w for task, w in self.weights if w or task in self.answers}

    def recipe(self) -> Recipe:
        """That of ``Pool.compose``; where the tasks that answer are those with a coefficient, ``Pool.weighted``'s.

        Raises:
            InputError: no task answers, or a coefficient is not finite.
        """
        tasks = tuple(task for task, _ in self.weights)
        found = recipes.weighted(tasks, self.named)
        return replace(found, tasks=self.answers)

    def model(self, pool: Pool) -> ComposedModel:
        """The merged model."""
        return pool.compose(self.recipe()) if self.rule is None else merged(pool, self.rule)

    def scaled(self, factor: float) -> "Composition":
        """All coefficients times a factor."""
        return replace(self, weights=tuple((task, factor * w) for task, w in self.weights), rule=None)


def mean(tasks: Sequence[str], mean_scale: float = 1.0) -> Composition:
    """Equal coefficients: of the mean, at the pool's scale."""
    return _uniform(tasks, tasks, mean_scale)


def presets(tasks: Sequence[str]) -> list[str]:
    """Names of the presets of a pool with these tasks; the first is none of them."""
    many = len(tasks) > 1
    return [OWN, MEAN, *(ONLY + t for t in tasks), *(ALL_BUT + t for t in tasks if many), *([TIES] if many else [])]


def preset(name: str, tasks: Sequence[str], mean_scale: float = 1.0) -> Composition:
    """The composition of a preset's name."""
    if name == TIES:
        return replace(mean(tasks, mean_scale), rule="ties")
    if name != MEAN and name.startswith(ALL_BUT):
        return _uniform(tasks, [task for task in tasks if task != name.removeprefix(ALL_BUT)], mean_scale)
    if name != MEAN and name.startswith(ONLY):
        return _uniform(tasks, [task for task in tasks if task == name.removeprefix(ONLY)], mean_scale)
    return mean(tasks, mean_scale)


def _uniform(tasks: Sequence[str], chosen: Sequence[str], mean_scale: float) -> Composition:
    return Composition.of(tasks, recipes.mean(chosen, mean_scale).weights if chosen else {}, chosen)
