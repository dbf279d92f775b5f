"""The page of a comparison: a table that can be sorted, accuracy against tasks, and times."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from intarsia.report import figures
from intarsia.report.page import seconds_per_task
from intarsia.store.files import read_json, reading
from intarsia.studio import draw
from intarsia.study.folder import TABLE
from intarsia.study.summary import ACCURACIES, COLUMNS, LEGEND, cells


def comparison(folder: Path) -> gr.Blocks:
    """The page of a folder that ``compare`` wrote; nothing is measured.

    Raises:
        InputError: a file of it is missing or damaged.
    """
    path = folder / TABLE
    with reading(path):
        rows = read_json(path)["rows"]
        runs = {row["method"]: read_json(folder / f"{row['method']}-0.json") for row in rows}
        curves = {name: run["incremental_accuracy"] for name, run in runs.items()}
        tasks = len(next(iter(runs.values()))["tasks"])
        costs = {row["method"]: [seconds_per_task(row, tasks)] for row in rows}
        table, values = [cells(row) for row in rows], [_values(row) for row in rows]
        methods = [(row["method"], row["about"]) for row in rows]
    drawn = {
        "Accuracy on the classes seen so far, in percent, seed 0.": figures.accuracy_by_task(curves),
        "Seconds per task, in set-up and in training.": figures.times(costs),
    }
    shown = Markup("").join(_figure(caption, figures.png(figure)) for caption, figure in drawn.items())
    with gr.Blocks(title=f"intarsia studio: {folder.name}", analytics_enabled=False) as blocks:
        gr.HTML(
            Markup('<h1>{}</h1><p class="about">{} methods, {} tasks.</p>').format(folder.name, len(rows), tasks),
            elem_id="head",
        )
        gr.HTML(draw.sortable("Press a heading to sort by it.", ("method", *COLUMNS), table, values), elem_id="table")
        gr.HTML(draw.note(LEGEND))
        gr.HTML(shown)
        with gr.Accordion("What the methods are", open=False):
            gr.HTML(draw.table("Methods compared.", ("method", "what it is"), methods, "words"))
    return blocks


def _values(row: Mapping[str, Any]) -> list[Any]:
    """What the cells of a row are sorted by."""
    minutes = row["set_up_minutes"] + row["training_minutes"]
    accuracies = [row[name] for name in ACCURACIES]
    return [row["method"], *accuracies, minutes, row["memory_mib"], row["numbers_per_task"], row["images_kept"]]


def _figure(caption: str, png: bytes) -> Markup:
    source = base64.b64encode(png).decode()
    return Markup(
        '<figure class="drawn"><img alt="{0}" src="data:image/png;base64,{1}"><figcaption>{0}</figcaption></figure>'
    ).format(caption, source)
