"""What the folder of a comparison says, for whatever shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intarsia.data.choices import DEFAULT_STREAM
from intarsia.store.files import read_json, reading
from intarsia.study.folder import TABLE
from intarsia.study.summary import cells


@dataclass(frozen=True)
class Compared:
    """A comparison that was read; what is by name is by method.

    Args:
        about: what was compared, and what with.
        rows: the table's, as ``compare`` returns them.
        table: the same as text, by ``COLUMNS``.
        runs: the records of seed 0.
        curves: accuracy on the classes seen so far after each task, seed 0.
        seconds: one pair, per task, in set-up and in training.
        tasks: their number.
        methods: each with what it is.
    """

    about: dict[str, Any]
    rows: list[dict[str, Any]]
    table: list[list[str]]
    runs: dict[str, dict[str, Any]]
    curves: dict[str, list[float]]
    seconds: dict[str, list[tuple[float, float]]]
    tasks: int
    methods: list[tuple[str, str]]


def read_comparison(folder: Path) -> Compared:
    """Read what ``compare`` wrote; nothing is measured.

    Raises:
        InputError: a file of it is missing or damaged.
    """
    path = folder / TABLE
    with reading(path):
        record = read_json(path)
        rows = record["rows"]
        runs = {row["method"]: read_json(folder / f"{row['method']}-0.json") for row in rows}
        first = next(iter(runs.values()))
        tasks = len(first["tasks"])
        return Compared(
            about=_about(record, first["versions"]),
            rows=rows,
            table=[cells(row) for row in rows],
            runs=runs,
            curves={name: run["incremental_accuracy"] for name, run in runs.items()},
            seconds={row["method"]: [seconds_per_task(row, tasks)] for row in rows},
            tasks=tasks,
            methods=[(row["method"], row["about"]) for row in rows],
        )


def seconds_per_task(measured: Mapping[str, Any], tasks: int) -> tuple[float, float]:
    """In set-up and in training, of a comparison's run or row over so many tasks."""
    return 60 * measured["set_up_minutes"] / tasks, 60 * measured["training_minutes"] / tasks


def _about(record: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
    """What was compared, and what with."""
    bench = record["bench"]
    source = {key: value for key, value in bench["source"].items() if value and value != "fixed"}
    told = {"stream": {"data": DEFAULT_STREAM, **source}, "backbone": bench["backbone"], "epochs": bench["epochs"]}
    told |= {"batch": bench["batch_size"], "seeds": record["rows"][0]["seeds"], "versions": versions}
    told |= {"code": record["code"]} if "code" in record else {}
    told["machine"] = "; ".join(record.get("machines", ["not noted"]))
    if bench["validation"]:
        told["measured on"] = f"{bench['validation']:g} of the training images, held out"
    return told
