"""A comparison's table: its rows, means over seeds, and the same as text."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from intarsia.study.methods import METHODS

ACCURACIES = ("final_accuracy", "final_forgetting", "task_il_accuracy", "average_incremental_accuracy")


MEASURES = (
    *ACCURACIES,
    "set_up_minutes",
    "training_minutes",
    "memory_mib",
    "numbers_per_task",
    "images_kept",
)


COLUMNS = ("FA %", "FF", "Task-IL %", "average %", "minutes", "MiB", "kept", "images")


LEGEND = (
    "FA: final accuracy over all classes; FF: forgetting; average: over the models after each task; minutes: set-up + "
    "training; MiB: peak memory; kept: numbers a task, beside theta0; images: old ones kept. Mean and standard "
    "deviation over seeds."
)


def summary(method: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of a method's runs, and their standard deviations; None where a measure does not exist."""
    means: dict[str, Any] = {}
    spread: dict[str, Any] = {}
    for name in MEASURES:
        values = [run[name] for run in runs]
        known = None not in values
        means[name] = mean(values) if known else None
        spread[name] = stdev(values) if known and len(values) > 1 else None
    return {"method": method, "about": METHODS[method].about, "seeds": len(runs), **means, "spread": spread}


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
