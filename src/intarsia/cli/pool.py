"""Verbs on one pool: every one has a twin in Python and prints a table, or JSON with ``--json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intarsia.cli.flags import Inline, Json, Positional
from intarsia.cli.options import Selection, open_pool
from intarsia.errors import InputError
from intarsia.study.choice import Source

if TYPE_CHECKING:
    from intarsia.data.stream import TaskStream
    from intarsia.merging.model import ComposedModel
    from intarsia.pool import Pool


@dataclass(frozen=True)
class Ls:
    """List the modules of a pool, or what is built in."""

    pool: Positional[Path | None] = None
    """Folder of the pool."""
    builtin: bool = False
    """List the built-in streams and backbone, with source and licence."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """List."""
        from intarsia.pool import Pool
        from intarsia.report import tables

        if self.builtin or self.pool is None:
            if not self.builtin:
                raise InputError("ls: expected a pool's folder, or --builtin")
            return self._builtin()
        pool = Pool.open(self.pool)
        cards = [pool.card(t) for t in pool.tasks]
        if not self.json:
            tables.modules(pool, cards)
        return {**pool.index.record(), "modules": [c.record() for c in cards]}

    def _builtin(self) -> dict[str, Any]:
        from intarsia.backbones import builtin as builtin_backbone
        from intarsia.console import OUT, facts
        from intarsia.data.sources import builtin

        about = [*builtin.describe(), builtin_backbone.describe()]
        if not self.json:
            for entry in about:
                facts(entry)
                OUT.print()
        return {"builtin": about}


@dataclass(frozen=True)
class Verify:
    """Check every file of a pool; name what is damaged, and what is lost with it."""

    pool: Positional[Path]
    """Folder of the pool."""
    repair: bool = False
    """Drop the modules that are damaged; the others stay usable."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Verify; damage that is not repaired is an error."""
        from intarsia.console import shown
        from intarsia.pool import Pool
        from intarsia.report import tables
        from intarsia.store.verify import remedy, repair, unnamed, verify

        pool = Pool.open(self.pool)
        with shown() as progress:
            damaged = verify(pool, progress)
        tasks = repair(pool, damaged).tasks if damaged and self.repair else pool.tasks
        found = {"files": len(pool.index.files), "damaged": [asdict(d) for d in damaged], "modules": list(tasks)}
        found["unnamed"] = unnamed(pool)
        if not self.json:
            tables.verification(found)
        if damaged and not self.repair:
            if self.json:
                print(dumps(found, indent=1))
            raise InputError(f"{len(damaged)} of {found['files']} files are damaged: {remedy(damaged)}")
        return found


@dataclass(frozen=True)
class Evaluate:
    """Measure a composition of a pool's modules on the test images."""

    pool: Positional[Path]
    """Folder of the pool."""
    selection: Inline[Selection] = field(default_factory=Selection)
    source: Source = field(default_factory=Source)
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Compose and measure."""
        pool = open_pool(self.pool, self.device)
        return evaluated(pool, self.selection.compose(pool), self.source.of(pool), self.json)


@dataclass(frozen=True)
class Predict:
    """Name the class of image files."""

    model: Positional[Path]
    """Folder of a pool (its mean answers), or of a composed model."""
    images: Positional[tuple[Path, ...]] = ()
    """Image files."""
    keep: tuple[str, ...] = ()
    """Specialize to these tasks of the pool."""
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Predict."""
        from intarsia.console import table
        from intarsia.machine import on_device
        from intarsia.merging.model import ComposedModel
        from intarsia.store.index import INDEX

        images = self.images
        if (self.model / INDEX).exists() or not (self.model / "model.json").exists():
            pool = open_pool(self.model, self.device)
            chosen, files = Selection(keep=self.keep).without_files(pool.learned())
            images += files
            model = chosen.compose(pool)
        elif self.keep:
            raise InputError("--keep with a composed model: its tasks are fixed; name the pool instead")
        else:
            model = ComposedModel.load(self.model).to(on_device(self.device))
        if not images:
            raise InputError("predict: expected image files after the pool or model")
        best = model.probabilities(images).max(1)
        rows = [
            {"image": str(path), "class": model.labels[int(i)], "probability": round(float(p), 4)}
            for path, i, p in zip(images, best.indices, best.values, strict=True)
        ]
        if not self.json:
            cells = [(r["image"], r["class"], f"{r['probability']:.2f}") for r in rows]
            table("", ("image", "class", "probability"), cells)
        return {"predictions": rows}


@dataclass(frozen=True)
class Compose:
    """Merge modules into one ordinary model and write it."""

    pool: Positional[Path]
    """Folder of the pool."""
    out: Path
    """New folder for model.safetensors and model.json."""
    selection: Inline[Selection] = field(default_factory=Selection)
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Compose and write."""
        from intarsia.console import facts
        from intarsia.pool import Pool

        pool = Pool.open(self.pool)
        model = self.selection.compose(pool)
        model.save(self.out)
        result = {"out": str(self.out), "recipe": model.recipe, "classes": len(model.labels)}
        if not self.json:
            facts({"written": self.out, "recipe": model.recipe["name"], "classes": len(model.labels)})
        return result


@dataclass(frozen=True)
class Unlearn:
    """Take one task out of the composed model; say what it cost, and what still carries its influence."""

    pool: Positional[Path]
    """Folder of the pool; it is not changed."""
    task: Positional[str]
    """The task to unlearn."""
    mode: Literal["drop", "negate"] = "drop"
    """drop: the mean of the others, its classes gone. negate: subtract its vector, all heads kept."""
    scale: float | None = None
    """Of negate: how much of the vector to subtract; its share in the mean (1/T) if not given."""
    out: Path | None = None
    """New folder to write the resulting model to."""
    source: Source = field(default_factory=Source)
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Unlearn, measure, write."""
        from intarsia.console import OUT, table
        from intarsia.evaluation.metrics import target_and_control

        pool = open_pool(self.pool, self.device)
        model = pool.unlearn(self.task, mode=self.mode, scale=self.scale)
        stream = self.source.of(pool)
        before = target_and_control(pool.mean(), stream, self.task)
        after = target_and_control(model, stream, self.task)
        if self.out is not None:
            model.save(self.out)
        influence = pool.influenced_by(self.task)
        result = {
            "task": self.task,
            "mode": self.mode,
            "recipe": model.recipe,
            "before": {"target_accuracy": before[0], "control_accuracy": before[1]},
            "after": {"target_accuracy": after[0], "control_accuracy": after[1]},
            "influenced": influence,
            "out": None if self.out is None else str(self.out),
        }
        if not self.json:
            rows = [("all modules", *before), (model.recipe["name"], *after)]
            table("", ("model", f"{self.task} %", "other tasks %"), rows)
            for other, ways in influence.items():
                OUT.print(f"still influenced by {self.task}: {other} (its {', '.join(ways)})")
        return result


def evaluated(pool: Pool, model: ComposedModel, stream: TaskStream, as_json: bool) -> dict[str, Any]:
    """Measure a composition beside the frozen head over the same tasks, and print it."""
    from intarsia.console import shown
    from intarsia.evaluation.metrics import evaluate
    from intarsia.report import tables

    with shown() as progress:
        found = evaluate(model, stream, progress=progress)
        frozen = evaluate(pool.frozen(tuple(model.classes)), stream)
    if not as_json:
        tables.evaluation(f"{pool.path}: {model.recipe['name']}", found, frozen)
    return {
        "pool": str(pool.path),
        "recipe": model.recipe,
        **found.record(),
        "frozen_head_accuracy": frozen.final_accuracy,
        "frozen_head_task_il_accuracy": frozen.task_il_accuracy,
    }
