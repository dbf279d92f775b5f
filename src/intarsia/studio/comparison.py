"""The page of a comparison: a table that can be sorted, accuracy against tasks, and times."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from markupsafe import Markup

from intarsia.report import figures
from intarsia.report.comparison import read_comparison
from intarsia.report.pictures import encoded
from intarsia.store.files import reading
from intarsia.studio import draw
from intarsia.study.folder import TABLE
from intarsia.study.summary import ACCURACIES, COLUMNS, LEGEND


def comparison(folder: Path) -> gr.Blocks:
    """The page of a folder that ``compare`` wrote; nothing is measured.

    Raises:
        InputError: a file of it is missing or damaged.
    """
    found = read_comparison(folder)
    with reading(folder / TABLE):
        values = [_values(row) for row in found.rows]
    drawn = {
        "Accuracy on the classes seen so far, in percent, seed 0.": figures.accuracy_by_task(found.curves),
        "Seconds per task, in set-up and in training.": figures.times(found.seconds),
    }
    shown = Markup("").join(_figure(caption, figures.png(figure)) for caption, figure in drawn.items())
    with gr.Blocks(title=f"intarsia studio: {folder.name}", analytics_enabled=False) as blocks:
        gr.HTML(
            Markup('<h1>{}</h1><p class="about">{} methods, {} tasks.</p>').format(
                folder.name, len(found.rows), found.tasks
            ),
            elem_id="head",
        )
        gr.HTML(
            draw.sortable("Press a heading to sort by it.", ("method", *COLUMNS), found.table, values), elem_id="table"
        )
        gr.HTML(draw.note(LEGEND))
        gr.HTML(shown)
        with gr.Accordion("What the methods are", open=False):
            gr.HTML(draw.table("Methods compared.", ("method", "what it is"), found.methods, "words"))
    return blocks


def _values(row: Mapping[str, Any]) -> list[Any]:
    """What the cells of a row are sorted by."""
    minutes = row["set_up_minutes"] + row["training_minutes"]
    accuracies = [row[name] for name in ACCURACIES]
    return [row["method"], *accuracies, minutes, row["memory_mib"], row["numbers_per_task"], row["images_kept"]]


def _figure(caption: str, png: bytes) -> Markup:
    return Markup(
        '<figure class="drawn"><img alt="{0}" src="data:image/png;base64,{1}"><figcaption>{0}</figcaption></figure>'
    ).format(caption, encoded(png))
