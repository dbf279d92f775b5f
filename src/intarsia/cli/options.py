"""Options that several verbs share: which modules are composed, on what device."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from intarsia.backbones.locations import Features, Options, with_options
from intarsia.errors import InputError
from intarsia.labels import check_task
from intarsia.merging.choices import Rule

if TYPE_CHECKING:
    from intarsia.engines.ray import Ray
    from intarsia.merging.model import ComposedModel
    from intarsia.merging.recipe import Recipe
    from intarsia.pool import Pool


NAMED = ("keep", "drop", "weights", "answer")
"""Options of a selection that name tasks."""


@dataclass(frozen=True)
class Selection:
    """Which modules are composed; the mean of all, at the pool's scale, if nothing is named."""

    keep: tuple[str, ...] = ()
    """Specialize to these tasks."""
    drop: tuple[str, ...] = ()
    """Compose all tasks but these."""
    weights: tuple[str, ...] = ()
    """Coefficients of any sign and sum: birds=.7 cars=.3."""
    answer: tuple[str, ...] = ()
    """Compose all the same, and answer with the classes of these tasks only."""
    rule: Literal["mean"] | Rule = "mean"
    """How the modules are merged: their mean, at the pool's scale, or another rule (fisher needs a pool learned with
    --run.keep-fishers)."""
    scale: float | None = None
    """Factor of what is added to the backbone; chosen from the Fisher for a rule, else 1."""

    def compose(self, pool: "Pool") -> "ComposedModel":
        """The model asked for."""
        from intarsia.pool import merged

        recipe = self.of(pool)
        if self.rule == "mean":
            return pool.compose(recipe.scaled(1.0 if self.scale is None else self.scale))
        if self.weights:
            raise InputError(f"--rule {self.rule} has coefficients of its own: leave --weights out, or --rule")
        return merged(pool, self.rule, recipe.tasks, scale=self.scale)

    def of(self, pool: "Pool") -> "Recipe":
        """What is asked for."""
        from intarsia.merging import recipe as recipes

        tasks = pool.learned()
        given = [f"--{name}" for name in ("keep", "drop", "weights") if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} together: expected one of them")
        if self.answer and (self.keep or self.drop or self.rule != "mean"):
            other = "--keep" if self.keep else "--drop" if self.drop else f"--rule {self.rule}"
            raise InputError(f"--answer and {other} together: --answer goes with the mean, or with --weights")
        one_by_one("--answer", self.answer, tasks)
        if self.weights:
            return recipes.weighted(tasks, parse_weights(self.weights, tasks)).answering(self.answer, tasks)
        one_by_one("--keep", self.keep, tasks)
        one_by_one("--drop", self.drop, tasks)
        keep = self.keep
        if self.drop:
            for task in self.drop:
                check_task(task, tasks)
            keep = tuple(t for t in tasks if t not in self.drop)
            if not keep:
                raise InputError(f"--drop names all tasks of the pool, {', '.join(tasks)}: keep one or more")
        if keep:
            return recipes.specialize(tasks, keep, mean_scale=pool.mean_scale)
        return recipes.mean(tasks, pool.mean_scale).answering(self.answer, tasks)

    def without_files(self, tasks: Collection[str]) -> tuple["Selection", tuple[Path, ...]]:
        """Apart: the tasks and weights that are named, and files that were typed after them.

        ``--keep animals photo.png`` reads as two values of ``--keep``. What is no task of the pool, and a file or
        folder, is meant as an image.

        Args:
            tasks: of the pool.
        """
        files: list[Path] = []

        def tasks_only(values: Sequence[str], named: bool) -> tuple[str, ...]:
            kept = []
            for value in values:
                task = value.rpartition("=")[0] if named else value
                if task not in tasks and Path(value).exists():
                    files.append(Path(value))
                else:
                    kept.append(value)
            return tuple(kept)

        kept = {name: tasks_only(getattr(self, name), named=name == "weights") for name in NAMED}
        return replace(self, **kept), tuple(files)


@dataclass(frozen=True)
class Loading:
    """How a backbone is loaded otherwise than its checkpoint says."""

    image_size: int | None = None
    """Side of the backbone's images, pixels; its own if not given."""
    features: Features | None = None
    """Class token, mean of patch tokens, or the network's own pooling."""

    def spec(self, backbone: str) -> str:
        """The backbone's name with these options; those that it has stay where nothing is said."""
        return with_options(backbone, Options(self.image_size, self.features))


@dataclass(frozen=True)
class Network:
    """How the backbone is used."""

    targets: tuple[str, ...] = ()
    """Layers whose weights are trained: attention, mlp (both if not given), or patterns like '*.qkv'."""


@dataclass(frozen=True)
class Workers:
    """Where the work is done."""

    engine: Literal["local", "ray"] = "local"
    """Here, or all tasks or runs at once on Ray."""
    address: str | None = None
    """Ray's cluster, auto or host:port, if any."""
    workers: int | None = None
    """Of Ray; as many as have room if not given."""
    gpus_per_worker: float | None = None
    """GPUs of each, say 0.5; on CPUs if not given."""

    def chosen(self) -> "Ray | None":
        """The engine; None for this process.

        Raises:
            InputError: flags of Ray without it, or a number out of range.
        """
        given = [f.name for f in fields(self) if f.name != "engine" and getattr(self, f.name) is not None]
        if self.engine == "local":
            if given:
                raise InputError(f"--{given[0].replace('_', '-')}: expected --engine ray with it")
            return None
        from intarsia.engines.ray import Ray

        return Ray(self.address, self.workers, self.gpus_per_worker or 0.0)


@dataclass(frozen=True)
class Rehearsal:
    """Whether anything is run."""

    dry_run: bool = False
    """Estimate time, memory and disk space from a few timed batches; nothing is written."""


def one_by_one(flag: str, values: Sequence[str], known: Collection[str]) -> None:
    """Refuse names that are joined by commas where they are to stand one by one.

    Raises:
        InputError: a value is not known, and what stands between its commas is.
    """
    for value in values:
        parts = [part.strip() for part in value.split(",")]
        if value not in known and len(parts) > 1 and all(part in known for part in parts):
            raise InputError(f"{flag} {value!r}: expected names one by one, without commas: {flag} {' '.join(parts)}")


def parse_weights(texts: Sequence[str], tasks: Collection[str] = ()) -> dict[str, float]:
    """Coefficients by task; see ``parse_numbers``."""
    return parse_numbers("--weights", texts, tasks, example="birds=.7 cars=.3")


def parse_numbers(
    flag: str, texts: Sequence[str], names: Collection[str] = (), *, example: str = "ita-full=2e-4 seed=3e-4"
) -> dict[str, float]:
    """``["a=.7", "b=.3"]`` -> {"a": 0.7, "b": 0.3}; a name may have commas and equals signs.

    Args:
        flag: that they were given by.
        texts: name=number, one by one.
        names: that there are, to see whether several were written in one.
        example: of what is expected.

    Raises:
        InputError: one is not name=number, or a name comes twice.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        parts = [part.strip() for part in text.split(",")]
        if name not in names and len(parts) > 1 and all("=" in part for part in parts):
            raise InputError(f"{flag} {text!r}: expected them one by one, without commas: {' '.join(parts)}")
        try:
            value = float(number)
        except ValueError:
            value = None
        if not equals or not name or value is None or name in found:
            raise InputError(f"{flag} {text!r}: expected a new name=number, for example: {flag} {example}")
        found[name] = value
    return found
