"""Verbs that compose a pool's modules: every one has a twin in Python and prints a table, or JSON with ``--json``."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from intarsia.cli.flags import Inline, Json, Positional
from intarsia.cli.options import Selection
from intarsia.cli.where import Where, found_images, is_model, merged_model
from intarsia.errors import InputError
from intarsia.study.choice import Source

if TYPE_CHECKING:
    from torch import Tensor

    from intarsia.data.stream import TaskStream
    from intarsia.merging.model import ComposedModel
    from intarsia.pool import Pool


@dataclass(frozen=True)
class Evaluate:
    """Measure a composition of a pool's modules, or a merged model, on the test images."""

    pool: Positional[Path]
    """Folder of the pool, or of a merged model."""
    selection: Inline[Selection] = field(default_factory=Selection)
    matrix: Literal["yes", "no"] = "yes"
    """Measure also the models after each task, for forgetting and the incremental average; no is faster. With --answer
    there is none."""
    per_class: bool = False
    """Show the accuracy on each class as well."""
    source: Source = field(default_factory=Source)
    where: Inline[Where] = field(default_factory=Where)
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Compose and measure."""
        if is_model(self.pool):
            return self._merged()
        pool = self.where.pool(self.pool, self.device)
        model = self.selection.compose(pool)
        stream = self.where.stream(self.source, pool, tuple(model.classes))
        history = self.matrix == "yes"
        return evaluated(pool, model, stream, self.json, history=history, per_class=self.per_class)

    def _merged(self) -> dict[str, Any]:
        """Of a merged model, which has neither a history nor theta0's own features beside it."""
        from intarsia.evaluation.metrics import evaluate
        from intarsia.report import tables

        model = merged_model(self.pool, self.selection, self.where, self.device)
        if self.source.data is not None:
            stream = self.source.load(0)
        elif self.source.chooses:
            raise InputError("options that choose classes and images go with --data")
        else:
            stream = self.where.recorded(model.streams, self.source.cache)
        found = evaluate(model, stream, history=False)
        if not self.json:
            tables.evaluation(f"{self.pool}: {model.recipe['name']}", found, None)
            _print_classes(found.per_class if self.per_class else None)
        return {"model": str(self.pool), "recipe": model.recipe, **found.record()}


@dataclass(frozen=True)
class Predict:
    """Name the class of image files."""

    model: Positional[Path]
    """Folder of a pool, of which the mean answers unless --keep, --drop, --weights, --answer or --rule says otherwise,
    or of a merged model."""
    images: Positional[tuple[Path, ...]] = ()
    """Image files, or folders, searched with all their subfolders."""
    selection: Inline[Selection] = field(default_factory=Selection)
    top: int = 1
    """How many classes to name for each image, the most probable first."""
    format: Literal["table", "csv", "jsonl"] = "table"
    """table, or a line per answer as soon as it is known: csv (image,rank,class,probability) or jsonl."""
    backbone: str | None = None
    """The backbone, if its weights are not where the pool says: timm/<name>@<weights.safetensors>."""
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Predict; images that cannot be read are named at the end, as an error."""
        from intarsia.backbones.forward import BATCH
        from intarsia.console import shown, table
        from intarsia.progress import silent

        where = Where(backbone=self.backbone)
        images = self.images
        if is_model(self.model):
            model = merged_model(self.model, self.selection, where, self.device)
        else:
            pool = where.pool(self.model, self.device)
            selection, files = self.selection.without_files(pool.learned())
            images, model = (*images, *files), selection.compose(pool)
        if not images:
            raise InputError("predict: expected image files after the pool or model")
        if not 1 <= self.top <= len(model.labels):
            raise InputError(f"--top {self.top}: expected 1 to {len(model.labels)}, the classes of the model")
        paths, rows, bad = found_images(images), list[dict[str, Any]](), dict[str, str]()
        with shown() as progress:
            for path, row in model.read_and_answer(paths, progress if len(paths) > BATCH else silent):
                if isinstance(row, InputError):
                    bad[str(path)] = str(row)
                else:
                    rows.append({"image": str(path), **self._answer(model.labels, row)})
                    self._write(rows[-1], first=len(rows) == 1)
        if not self.json and self.format == "table" and rows:
            cells = [(r["image"], c["class"], f"{c['probability']:.2f}") for r in rows for c in r.get("top", [r])]
            table("", ("image", "class", "probability"), cells)
        result = {"predictions": rows, "unreadable": bad}
        if bad:
            if self.json and rows:
                print(dumps(result, indent=1))
            first = next(iter(bad.values()))
            raise InputError(first if len(paths) == 1 else f"{len(bad)} of {len(paths)} images: {_said(bad)}")
        return result

    def _write(self, row: dict[str, Any], *, first: bool) -> None:
        """A line per image (jsonl), or per answer (csv), for whoever reads on."""
        if self.json or self.format == "table":
            return
        if self.format == "jsonl":
            print(dumps(row), flush=True)
            return
        lines = csv.writer(sys.stdout, lineterminator="\n")
        if first:
            lines.writerow(("image", "rank", "class", "probability"))
        for rank, answer in enumerate(row.get("top", [row]), 1):
            lines.writerow((row["image"], rank, answer["class"], answer["probability"]))

    def _answer(self, labels: Sequence[str], row: Tensor) -> dict[str, Any]:
        best = row.topk(self.top)
        top = [
            {"class": labels[int(i)], "probability": round(float(p), 4)}
            for p, i in zip(best.values, best.indices, strict=True)
        ]
        return {**top[0], **({"top": top} if self.top > 1 else {})}


@dataclass(frozen=True)
class Compose:
    """Merge modules into one ordinary model and write it."""

    pool: Positional[Path]
    """Folder of the pool."""
    out: Path
    """New folder for model.safetensors and model.json."""
    selection: Inline[Selection] = field(default_factory=Selection)
    backbone: str | None = None
    """The backbone, if its weights are not where the pool says: timm/<name>@<weights.safetensors>."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Compose and write."""
        from intarsia.console import facts

        pool = Where(backbone=self.backbone).pool(self.pool, "cpu")
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
    """With negate: how much of the vector to subtract; its share in the mean if not given."""
    out: Path | None = None
    """New folder to write the resulting model to."""
    source: Source = field(default_factory=Source)
    where: Inline[Where] = field(default_factory=Where)
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    json: Json = False

    def run(self) -> dict[str, Any]:
        """Unlearn, measure, write."""
        from intarsia.console import OUT, table
        from intarsia.evaluation.metrics import target_and_control

        pool = self.where.pool(self.pool, self.device)
        model, whole = pool.unlearn(self.task, mode=self.mode, scale=self.scale), _mean_if_whole(pool)
        stream = self.where.stream(self.source, pool, tuple(model.classes if whole is None else whole.classes))
        before = (None, None) if whole is None else target_and_control(whole, stream, self.task)
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


def evaluated(
    pool: Pool,
    model: ComposedModel,
    stream: TaskStream,
    as_json: bool,
    *,
    history: bool = True,
    per_class: bool = False,
) -> dict[str, Any]:
    """Measure a composition beside the frozen head over the same tasks, and print it."""
    from intarsia.console import shown
    from intarsia.evaluation.metrics import evaluate
    from intarsia.report import tables

    with shown() as progress:
        found = evaluate(model, stream, history=history, progress=progress)
        frozen = evaluate(pool.frozen(tuple(model.classes)), stream)
    if not as_json:
        tables.evaluation(f"{pool.path}: {model.recipe['name']}", found, frozen)
        _print_classes(found.per_class if per_class else None)
    return {
        "pool": str(pool.path),
        "recipe": model.recipe,
        **found.record(),
        "frozen_head_accuracy": frozen.final_accuracy,
        "frozen_head_task_il_accuracy": frozen.task_il_accuracy,
    }


def _mean_if_whole(pool: Pool) -> ComposedModel | None:
    """The mean of all modules; None, and a word why, where one is damaged: it may be the one to unlearn."""
    from intarsia.console import ERR

    try:
        return pool.mean()
    except InputError as error:
        ERR.print(f"the mean of all modules is not measured: {error}")
        return None


def _print_classes(classes: Mapping[str, float] | None) -> None:
    from intarsia.console import table

    if classes is not None:
        table("", ("class", "accuracy %"), list(classes.items()))


def _said(bad: Mapping[str, str], most: int = 5) -> str:
    """What is wrong with each of some images, the first ones of many."""
    more = f" and {len(bad) - most} more" if len(bad) > most else ""
    return " ".join([*bad.values()][:most]) + more
