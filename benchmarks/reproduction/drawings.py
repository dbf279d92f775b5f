"""The figures of docs/results.md, from the runs of a comparison and of ``results.py strengths``.

    cd benchmarks/reproduction/ledger && python ../drawings.py compare-chalk compare-sketches-cpu strengths-chalk.jsonl
        --curves "accuracy:ITA LoRA=compare-chalk-scaled/ita" "accuracy:LCA=compare-chalk-peers/lca" ..

gap.png, cosines.png and losses.png beside them are ``intarsia diagnose``'s.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import tyro

from intarsia.evaluation.metrics import Evaluation
from intarsia.report import figures
from intarsia.report.comparison import seconds_per_task
from intarsia.study.methods import STANDARD

EDITED = ("ita", "iel", "tmc")


@dataclass(frozen=True)
class Drawings:
    """What to draw."""

    compared: tyro.conf.Positional[Path]
    """Folder with the runs of a comparison, <method>-<seed>.json."""
    timed: tyro.conf.Positional[Path]
    """The same, of runs with nothing beside them: what the times are drawn from."""
    strengths: tyro.conf.Positional[Path]
    """Lines of ``results.py strengths``."""
    curves: tuple[str, ...] = ()
    """Accuracy after each task, mean over the seeds: <figure>:<name>=<folder>/<method>."""
    out: Path = Path(__file__).resolve().parents[2] / "docs" / "figures"
    """Folder for the figures."""


def accuracy_against_strength(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Cell -> (strength, final accuracy)."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in map(json.loads, path.read_text().splitlines()):
        cell = line["run"]["name"].split(" ")[0]
        point = line["run"]["setting"]["strength"], line["result"]["final_accuracy"]
        curves.setdefault(cell, []).append(point)
    return curves


def curves_of(lines: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Figure -> name -> mean over the seeds of the accuracy on classes seen, after each task."""
    found: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        figure, _, rest = line.partition(":")
        name, _, place = rest.partition("=")
        folder, method = Path(place).parent, Path(place).name
        runs = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{method}-[0-9].json"))]
        seen = [run["incremental_accuracy"] for run in runs]
        found.setdefault(figure, {})[name] = [mean(after) for after in zip(*seen, strict=True)]
    return found


def _runs(folder: Path) -> dict[str, dict[str, Any]]:
    return {method: json.loads((folder / f"{method}-0.json").read_text()) for method in STANDARD}


def main(chosen: Drawings) -> None:
    """Draw and write."""
    runs, timed = _runs(chosen.compared), _runs(chosen.timed)
    matrix = {field: runs["iel"][field] for field in Evaluation.__dataclass_fields__ if field in runs["iel"]}
    drawn = {
        "matrix": figures.accuracy_matrix(Evaluation(**matrix)),
        **{name: figures.accuracy_by_task(curves) for name, curves in curves_of(chosen.curves).items()},
        "times": figures.times({m: [seconds_per_task(run, len(run["tasks"]))] for m, run in timed.items()}),
        "editing": figures.editing({m: runs[m]["edits"] for m in EDITED}),
        "strengths": figures.strengths(accuracy_against_strength(chosen.strengths)),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        (chosen.out / f"{name}.png").write_bytes(figures.png(figure))


if __name__ == "__main__":
    main(tyro.cli(Drawings, description=__doc__))
