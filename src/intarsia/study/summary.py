"""A comparison's table: its columns, and its rows as text."""

from collections.abc import Mapping, Sequence
from typing import Any

ACCURACIES = ("final_accuracy", "final_forgetting", "task_il_accuracy", "average_incremental_accuracy")


COLUMNS = ("FA %", "FF", "Task-IL %", "average %", "minutes", "MiB", "kept", "images")


LEGEND = (
    "FA: final accuracy over all classes; FF: forgetting; average: over the models after each task; minutes: set-up + "
    "training; MiB: peak memory; kept: numbers a task, beside theta0; images: old ones kept. Mean and standard "
    "deviation over seeds."
)


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as text: the method, then ``COLUMNS``."""

    def accuracy(name: str) -> str:
        value, spread = row[name], row["spread"][name]
        if value is None:
            return "-"
        return f"{value:.1f}" if spread is None else f"{value:.1f}±{spread:.1f}"

    kept = row["numbers_per_task"]
    return [
        row["method"],
        *map(accuracy, ACCURACIES),
        "+".join(f"{m:.1f}" if m < 10 else f"{m:.0f}" for m in (row["set_up_minutes"], row["training_minutes"])),
        f"{row['memory_mib']:.0f}",
        f"{kept / 1e6:.2f} M" if kept >= 1e5 else f"{kept:,.0f}",
        f"{row['images_kept']:.0f}",
    ]


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as Markdown."""
    head = ["method", *COLUMNS]
    lines = [head, ["---"] * len(head), *(cells(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
