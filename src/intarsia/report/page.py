"""One page about a pool or a comparison: what was run, tables, figures, a card a task. No network is needed to read it.

The page is made of parts; a part is measured here and drawn by ``figures``.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from intarsia.backbones.preprocessing import Preprocessing, unit
from intarsia.data.stream import Task, TaskStream
from intarsia.evaluation.editing import Editable, edit_each
from intarsia.evaluation.landscape import loss_paths
from intarsia.evaluation.metrics import Evaluation, evaluate, matching_tasks
from intarsia.evaluation.theorem import diagnose
from intarsia.merging.model import ComposedModel
from intarsia.pool import Pool
from intarsia.progress import Progress, silent
from intarsia.report import figures
from intarsia.report.tables import theorem
from intarsia.store.files import read_json, reading
from intarsia.study.summary import COLUMNS, LEGEND, cells

SAMPLES = 6


CONFUSED = 3


GONE = "classes that are gone count as 0"


STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
.words td { white-space: normal; }
@media (max-width: 40rem) { table { font-size: .75rem; } th, td { padding: .2rem .3rem; } }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { font-size: .85rem; opacity: .8; } .cards { display: grid; gap: 1rem; }
@media (min-width: 44rem) { .cards { grid-template-columns: 1fr 1fr; } }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .8rem; min-width: 0; overflow-wrap: anywhere; }
.card h3 { margin: 0 0 .4rem; } .card p { margin: .3rem 0; font-size: .9rem; }
.samples { display: flex; gap: 3px; } .samples img { width: 15%; image-rendering: pixelated; border-radius: 3px; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .2rem 1rem; font-size: .9rem; }
dt { opacity: .75; } dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
"""


@dataclass(frozen=True)
class Confusion:
    """Images of one class taken for another: how many of how many."""

    true: str
    taken_for: str
    count: int
    of: int


def report_pool(pool: Pool, stream: TaskStream, *, edited: bool = False, progress: Progress = silent) -> str:
    """The page of a pool: accuracy of its mean, the theorem on it, its tasks.

    Args:
        pool: with at least one module.
        stream: holds the pool's tasks.
        edited: also specialize to each task, unlearn each, and measure.
        progress: told how far the work is.

    Raises:
        InputError: the pool is empty, or the stream does not fit it.
    """
    model = pool.mean()
    found, frozen = evaluate(model, stream, progress=progress), evaluate(pool.frozen(), stream)
    diagnosis = diagnose(pool, stream, progress=progress)
    paths = loss_paths(pool, stream, progress=progress)
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
        "Seconds a task.": figures.times({pool.path.name: costs}),
    }
    sections = []
    if edited:
        rows = edit_each(Editable.of_pool(pool, model), stream, pool.tasks, progress=progress)
        drawn[f"Every task specialized to and unlearned, one point a task; {GONE}."] = figures.editing({"": rows})
        sections = [("Specialization and unlearning", _edits(rows))]
    tasks = matching_tasks(model.classes, stream)
    confusions = confused(model, tasks)
    sections = [
        ("Run", _facts(_about(pool, stream))),
        ("Accuracy", _accuracy(found, frozen)),
        ("Theorem", _facts(theorem(diagnosis))),
        *sections,
        ("Figures", "".join(_figure(figure, caption) for caption, figure in drawn.items())),
        ("Tasks", f'<div class="cards">{"".join(_card(pool, task, confusions) for task in tasks)}</div>'),
        ("Files", _files(pool)),
    ]
    return page(f"Pool {pool.path.name}", sections)


def report_comparison(folder: Path) -> str:
    """The page of a comparison that ``compare`` wrote.

    Raises:
        InputError: a file of it is missing or damaged.
    """
    path = folder / "comparison.json"
    with reading(path):
        record = read_json(path)
        rows, bench = record["rows"], record["bench"]
        names = [row["method"] for row in rows]
        runs = {name: read_json(folder / f"{name}-0.json") for name in names}
        curves = {name: run["incremental_accuracy"] for name, run in runs.items()}
        tasks = len(next(iter(runs.values()))["tasks"])
        costs = {name: [seconds_a_task(row, tasks)] for name, row in zip(names, rows, strict=True)}
        stream = {key: value for key, value in bench["source"].items() if value and value != "natural"}
        table = _table(("method", *COLUMNS), [cells(row) for row in rows])
        abouts = _table(("method", "what it is"), [(row["method"], row["about"]) for row in rows], kind="words")
        versions = next(iter(runs.values()))["versions"]
        machines = record.get("machines", ["not noted"])
    drawn = {
        "Accuracy on the classes seen so far, seed 0.": figures.accuracy_by_task(curves),
        "Seconds a task, in set-up and in training.": figures.times(costs),
    }
    edited = {name: run["edits"] for name, run in runs.items() if run.get("edits")}
    if edited:
        what = f"Every task of {', '.join(edited)} specialized to and unlearned, one point a task, seed 0; {GONE}."
        drawn[what] = figures.editing(edited)
    told = {"stream": stream or "sketches", "backbone": bench["backbone"], "epochs": bench["epochs"]}
    told |= {"batch": bench["batch_size"], "seeds": rows[0]["seeds"], "versions": versions}
    told["machine"] = "; ".join(machines)
    if bench["validation"]:
        told["measured on"] = f"{bench['validation']:g} of the training images, held out"
    sections = [
        ("Run", _facts(told)),
        ("Table", f"{table}<p>{escape(LEGEND)}</p>"),
        ("Methods", abouts),
        ("Figures", "".join(_figure(figure, caption) for caption, figure in drawn.items())),
    ]
    return page(f"Comparison {folder.name}", sections)


def seconds_a_task(measured: Mapping[str, Any], tasks: int) -> tuple[float, float]:
    """In set-up and in training, of a comparison's run or row over so many tasks."""
    return 60 * measured["set_up_minutes"] / tasks, 60 * measured["training_minutes"] / tasks


def confused(model: ComposedModel, tasks: Sequence[Task]) -> dict[str, list[Confusion]]:
    """Task -> the classes of it that are most often taken for another, the worst first."""
    labels, first, found = model.labels, 0, dict[str, list[Confusion]]()
    for task in tasks:
        taken = model.logits(task.test.tensor(model.preprocessing)).argmax(1)
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


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """An HTML page of sections (heading, HTML)."""
    body = "".join(f"<section><h2>{escape(heading)}</h2>{html}</section>" for heading, html in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def _about(pool: Pool, stream: TaskStream) -> dict[str, Any]:
    first = pool.card(pool.tasks[0])
    origins = dict.fromkeys(_origin(pool.card(task).stream) for task in pool.tasks)
    told: dict[str, Any] = {
        "backbone": f"{pool.index.backbone['name']}, {pool.index.backbone['hash'][:16]}",
        "adapter": str(pool.adapter),
        "learned from": "; ".join(origins),
        "measured on": _origin(stream.source()) if stream.origin else "the same",
        "tasks": len(pool.tasks),
        "classes": sum(map(len, pool.classes.values())),
        "versions": first.versions,
        "machine": ", ".join({line["machine"]: None for line in pool.logged().values()}),
    }
    return told | {"settings": pool.index.settings}


def _origin(stream: Mapping[str, Any]) -> str:
    """A stream's name, and what it was loaded with and changed by."""
    asked = {key: value for key, value in (stream.get("load") or {}).items() if value not in (None, "natural")}
    made = [f"{key} {value}" for key, value in asked.items() if key not in ("spec", "seed")]
    return ", ".join([stream.get("name", "-"), *made, *map(str, stream.get("changes", []))])


def _accuracy(found: Evaluation, frozen: Evaluation) -> str:
    told = {
        "final accuracy, class-incremental": f"{found.final_accuracy:.1f} %",
        "final forgetting": "-" if found.final_forgetting is None else f"{found.final_forgetting:.1f}",
        "within the image's own task": f"{found.task_il_accuracy:.1f} %",
        "frozen backbone, best heads": f"{frozen.final_accuracy:.1f} %",
        "test images": found.images,
    }
    rows = [
        (task, "-" if learned is None else f"{learned:.1f}", f"{now:.1f}", f"{frozen.per_task[task]:.1f}")
        for (task, now), learned in zip(found.per_task.items(), found.when_learned, strict=True)
    ]
    return _facts(told) + _table(("task", "when learned %", "now %", "frozen %"), rows)


def _edits(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row a task: accuracy on it / on the others."""
    hows = list(dict.fromkeys(row["how"] for row in rows))
    cell = {(row["target"], row["how"]): row for row in rows}

    def text(row: Mapping[str, Any]) -> str:
        sides = (row["target_accuracy"], row["control_accuracy"])
        return " / ".join("-" if side is None else f"{side:.1f}" for side in sides)

    lines = [(t, *(text(cell[t, how]) for how in hows)) for t in dict.fromkeys(row["target"] for row in rows)]
    told = "Accuracy in percent on the task / on the others; all classes compete that the model answers with."
    return _table(("task", *hows), lines) + f"<p>{told}</p>"


def _card(pool: Pool, task: Task, confusions: Mapping[str, Sequence[Confusion]]) -> str:
    card = pool.card(task.name)
    ways = {way: ", ".join(tasks) or "no other task" for way, tasks in asdict(card.influenced_by).items()}
    worst = [f"{c.true} for {c.taken_for} ({c.count} of {c.of})" for c in confusions[task.name]]
    samples = "".join(_sample(task, c, pool.backbone.preprocessing) for c in range(min(SAMPLES, len(task.classes))))
    parts = {
        "classes": ", ".join(card.classes),
        "images": card.images,
        "|tau| / |theta0|": f"{100 * card.measures['relative_norm']:.2f} %",
        "most often taken": "; ".join(worst) or "none is confused",
        **{f"influenced by the {way} of": names for way, names in ways.items()},
    }
    lines = "".join(f"<p><b>{escape(k)}</b> {escape(str(v))}</p>" for k, v in parts.items())
    return f'<div class="card"><h3>{escape(task.name)}</h3><div class="samples">{samples}</div>{lines}</div>'


def _sample(task: Task, c: int, preprocessing: Preprocessing) -> str:
    """The first test image of a class."""
    images, first = task.test.tensor(preprocessing), int((task.test.labels == c).nonzero()[0])
    pixels: Tensor = (unit(images[first]) * 255).round().to(torch.uint8).permute(1, 2, 0)
    image = Image.fromarray(pixels.squeeze(2).numpy() if pixels.shape[2] == 1 else pixels.numpy())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _image(buffer.getvalue(), task.classes[c])


def _figure(figure: Figure, caption: str) -> str:
    return f"<figure>{_image(figures.png(figure), caption)}<figcaption>{escape(caption)}</figcaption></figure>"


def _image(png: bytes, what: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<img alt="{escape(what)}" title="{escape(what)}" src="{source}">'


def _files(pool: Pool) -> str:
    rows = [
        (name, "?" if seen.size is None else f"{seen.size:,}", seen.sha256)
        for name, seen in sorted(pool.index.files.items())
    ]
    return _table(("file", "bytes", "SHA-256"), rows)


def _facts(values: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)

    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text(value))}</dd>" for name, value in values.items())
    return f"<dl>{lines}</dl>"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], kind: str = "numbers") -> str:
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'
