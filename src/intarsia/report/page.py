"""One page about a pool or a comparison: what was run, tables, figures, a card per task.

No network is needed to read it. What is measured here, and drawn by ``figures``, fills the templates beside this file;
they escape all text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from intarsia.data.stream import Task, TaskStream
from intarsia.evaluation.answers import Answers, Logits, logits
from intarsia.evaluation.editing import Editable, edit_each
from intarsia.evaluation.kept import Keep, fresh, under
from intarsia.evaluation.landscape import loss_paths
from intarsia.evaluation.metrics import Evaluation, evaluate, matching_tasks
from intarsia.evaluation.theorem import DRAWN, diagnose
from intarsia.merging.model import ComposedModel
from intarsia.pool import Pool
from intarsia.progress import Progress, silent
from intarsia.report import figures
from intarsia.report.comparison import read_comparison
from intarsia.report.pictures import encoded, samples
from intarsia.report.tables import theorem
from intarsia.study.summary import COLUMNS, LEGEND

CONFUSED = 3


GONE = "classes that are gone count as 0"


@dataclass(frozen=True)
class Confusion:
    """Images of one class taken for another: how many of how many."""

    true: str
    taken_for: str
    count: int
    of: int


def report_pool(
    pool: Pool,
    stream: TaskStream,
    *,
    edited: bool = False,
    per_task: int = 200,
    progress: Progress = silent,
    keep: Keep = fresh,
) -> str:
    """The page of a pool: accuracy of its mean, the theorem on it, its tasks.

    Args:
        pool: with at least one module.
        stream: holds the pool's tasks.
        edited: also specialize to each task, unlearn each, and measure.
        per_task: training images drawn from each task for the theorem; fifty at most for the lines.
        progress: told how far the work is.
        keep: where what is measured is kept as it is known.

    Raises:
        InputError: the pool is empty, or the stream does not fit it.
    """
    model, answers = pool.mean(), Answers()
    found = evaluate(model, stream, progress=progress, answers=answers, keep=under(keep, "mean"))
    frozen = evaluate(pool.frozen(), stream, answers=answers, keep=under(keep, "frozen"))
    tasks = matching_tasks(model.classes, stream)
    confusions = confused(model, tasks, answers, keep)
    diagnosis = diagnose(pool, stream, per_task=per_task, progress=progress, keep=keep)
    paths = loss_paths(pool, stream, per_task=min(per_task, DRAWN), progress=progress, keep=keep)
    costs = [(line["set_up_seconds"], line["training_seconds"]) for line in pool.logged().values()]
    drawn = {
        "Accuracy on every task after every task.": figures.accuracy_matrix(found),
        "Accuracy on the classes seen so far.": figures.accuracy_by_task(
            {"mean of the modules": found.incremental_accuracy, "frozen backbone, at the end": [frozen.final_accuracy]}
        ),
        "Cosines between the task vectors, and with the composed one.": figures.alignment({"": diagnosis}),
        **{
            f"Loss along a line of weights, {path.name}; dashed and dotted: second order at theta0.": figures.losses(
                {"": [path]}
            )
            for path in paths
        },
        "Seconds per task.": figures.times({pool.path.name: costs}),
    }
    edits = None
    if edited:
        rows = edit_each(
            Editable.of_pool(pool, model), stream, pool.tasks, progress=progress, answers=answers, keep=keep
        )
        drawn[f"Every task specialized to and unlearned, one point per task; {GONE}."] = figures.editing({"": rows})
        edits = _edits(rows)
    return _page(
        "pool.html",
        title=f"Pool {pool.path.name}",
        about=_texts(_about(pool, stream)),
        measures=_measures(found, frozen),
        by_task=_by_task(found, frozen),
        theorem=theorem(diagnosis),
        edits=edits,
        figures=_pictures(drawn),
        cards=[_card(pool, task, confusions[task.name]) for task in tasks],
        files=[
            (name, "?" if seen.size is None else f"{seen.size:,}", seen.sha256)
            for name, seen in sorted(pool.index.files.items())
        ],
    )


def report_comparison(folder: Path) -> str:
    """The page of a comparison that ``compare`` wrote.

    Raises:
        InputError: a file of it is missing or damaged.
    """
    found = read_comparison(folder)
    drawn = {
        "Accuracy on the classes seen so far, seed 0.": figures.accuracy_by_task(found.curves),
        "Seconds per task, in set-up and in training.": figures.times(found.seconds),
    }
    edited = {name: run["edits"] for name, run in found.runs.items() if run.get("edits")}
    if edited:
        what = f"Every task of {', '.join(edited)} specialized to and unlearned, one point per task, seed 0; {GONE}."
        drawn[what] = figures.editing(edited)
    return _page(
        "comparison.html",
        title=f"Comparison {folder.name}",
        about=_texts(found.about),
        head=("method", *COLUMNS),
        rows=found.table,
        legend=LEGEND,
        methods=found.methods,
        figures=_pictures(drawn),
    )


def confused(
    model: ComposedModel, tasks: Sequence[Task], answers: Logits = logits, keep: Keep = fresh
) -> dict[str, list[Confusion]]:
    """Task -> the classes of it that are most often taken for another, the worst first."""
    labels, first, found = model.labels, 0, dict[str, list[Confusion]]()
    for task in tasks:
        taken = torch.tensor(keep(f"answers on {task.name}", lambda task=task: answers(model, task).argmax(1).tolist()))
        pairs: list[Confusion] = []
        for c, name in enumerate(task.classes):
            own = taken[task.test.labels == c]
            counts = torch.bincount(own, minlength=len(labels))
            counts[first + c] = 0
            worst = int(counts.argmax())
            if counts[worst]:
                pairs.append(Confusion(name, labels[worst], int(counts[worst]), len(own)))
        found[task.name] = sorted(pairs, key=lambda p: -p.count / p.of)[:CONFUSED]
        first += len(task.classes)
    return found


def _page(template: str, **values: Any) -> str:
    """A page of one of the templates, with all text in it escaped."""
    loader = PackageLoader("intarsia.report")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return pages.get_template(template).render(**values)


def _about(pool: Pool, stream: TaskStream) -> dict[str, Any]:
    first = pool.card(pool.tasks[0])
    origins = dict.fromkeys(_origin(pool.card(task).stream) for task in pool.tasks)
    return {
        "backbone": f"{pool.index.backbone['name']}, {pool.index.backbone['hash'][:16]}",
        "adapter": str(pool.adapter),
        "learned from": "; ".join(origins),
        "measured on": _origin(stream.source()) if stream.origin else "the same",
        "tasks": len(pool.tasks),
        "classes": sum(map(len, pool.classes.values())),
        "versions": first.versions,
        "machine": ", ".join({line["machine"]: None for line in pool.logged().values()}),
        "settings": pool.index.settings,
    }


def _origin(stream: Mapping[str, Any]) -> str:
    """A stream's name, and what it was loaded with and changed by."""
    asked = {key: value for key, value in (stream.get("load") or {}).items() if value not in (None, "fixed")}
    made = [f"{key} {value}" for key, value in asked.items() if key not in ("spec", "seed")]
    return ", ".join([stream.get("name", "-"), *made, *map(str, stream.get("changes", []))])


def _measures(found: Evaluation, frozen: Evaluation) -> dict[str, Any]:
    return {
        "final accuracy, class-incremental": f"{found.final_accuracy:.1f} %",
        "mean over the classes": f"{found.balanced_accuracy:.1f} %",
        "final forgetting": "-" if found.final_forgetting is None else f"{found.final_forgetting:.1f}",
        "within the image's own task": f"{found.task_il_accuracy:.1f} %",
        "frozen backbone, best heads": f"{frozen.final_accuracy:.1f} %",
        "test images": found.images,
    }


def _by_task(found: Evaluation, frozen: Evaluation) -> list[tuple[str, ...]]:
    return [
        (task, "-" if learned is None else f"{learned:.1f}", f"{now:.1f}", f"{frozen.per_task[task]:.1f}")
        for (task, now), learned in zip(found.per_task.items(), found.when_learned, strict=True)
    ]


def _edits(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row per task: accuracy on it / on the others."""
    hows = list(dict.fromkeys(row["how"] for row in rows))
    cell = {(row["target"], row["how"]): row for row in rows}

    def text(row: Mapping[str, Any]) -> str:
        sides = (row["target_accuracy"], row["control_accuracy"])
        return " / ".join("-" if side is None else f"{side:.1f}" for side in sides)

    targets = dict.fromkeys(row["target"] for row in rows)
    return {"head": ("task", *hows), "rows": [(t, *(text(cell[t, how]) for how in hows)) for t in targets]}


def _card(pool: Pool, task: Task, confusions: Sequence[Confusion]) -> dict[str, Any]:
    card = pool.card(task.name)
    ways = {way: ", ".join(tasks) or "no other task" for way, tasks in asdict(card.influenced_by).items()}
    worst = [f"{c.true} for {c.taken_for} ({c.count} of {c.of})" for c in confusions]
    told = {
        "classes": ", ".join(card.classes),
        "images": card.images,
        "|tau| / |theta0|": f"{100 * card.measures['relative_norm']:.2f} %",
        "most often taken": "; ".join(worst) or "none is confused",
        **{f"influenced by the {way} of": names for way, names in ways.items()},
    }
    return {"name": task.name, "samples": samples(task, pool.backbone.preprocessing), "told": told}


def _pictures(drawn: Mapping[str, Figure]) -> dict[str, str]:
    return {caption: encoded(figures.png(figure)) for caption, figure in drawn.items()}


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Facts as text: a record among them as its names and values."""
    return {
        name: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        for name, value in values.items()
    }
