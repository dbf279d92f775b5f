"""Markdown tables from the lines that ``benchmarks/reproduction/results.py`` wrote.

python benchmarks/reproduction/tables.py benchmarks/reproduction/results.jsonl
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import tyro


@dataclass(frozen=True)
class Tables:
    """Which lines to print."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Files of results."""


def spread(values: Sequence[float | None]) -> str:
    """Mean ± sample standard deviation; a dash where a value is missing."""
    numbers = [v for v in values if v is not None]
    if not numbers:
        return "–"
    return f"{mean(numbers):.1f}" + (f" ± {stdev(numbers):.1f}" if len(numbers) > 1 else "")


def accuracy_table(lines: Sequence[dict[str, Any]]) -> str:
    """FA, FF, Task-IL and what else the runs have, by name; seeds together."""
    known = {
        "FA": "final_accuracy",
        "FF": "final_forgetting",
        "Task-IL": "task_il_accuracy",
        "average incremental": "average_incremental_accuracy",
        "\\|τ\\|/\\|θ0\\|": "relative_norm",
        "head moved": "head_moved",
        "pairs": "pairs",
        "carried heads": "compensated_heads",
        "own heads": "own_heads",
    }
    columns = {title: key for title, key in known.items() if any(line["result"].get(key) is not None for line in lines)}
    rows = [f"| run | seeds | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for name in dict.fromkeys(line["run"]["name"] for line in lines):
        runs = [line["result"] for line in lines if line["run"]["name"] == name]
        failed = [r["error"] for r in runs if "error" in r]
        cells = [spread([_value(r, key) for r in runs]) for key in columns.values()]
        rows.append(f"| {name} | {len(runs)} | {'not finite' if failed else cells[0]} | {' | '.join(cells[1:])} |")
    return "\n".join(rows)


def editing_table(lines: Sequence[dict[str, Any]]) -> str:
    """Accuracy on the target task and on the others, before and after each edit; seeds together."""
    rows = ["| modules | target | composition | FA_tgt | FA_ctrl |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(line["run"]["name"] for line in lines):
        found = [row for line in lines if line["run"]["name"] == name for row in line["result"]["rows"]]
        for target, how in dict.fromkeys((r["target"], r["how"]) for r in found):
            same = [r for r in found if (r["target"], r["how"]) == (target, how)]
            cells = (spread([r[f"{side}_accuracy"] for r in same]) for side in ("target", "control"))
            rows.append(f"| {name.removesuffix(' editing')} | {target} | {how} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _value(result: dict[str, Any], key: str) -> float | None:
    value = result.get(key)
    return 100 * value if value is not None and key in ("relative_norm", "head_moved") else value


def run(chosen: Tables) -> None:
    """Print a section a stream."""
    lines = [json.loads(line) for path in chosen.files for line in path.read_text().splitlines()]
    for stream in dict.fromkeys(line["run"]["stream"] for line in lines):
        here = [line for line in lines if line["run"]["stream"] == stream]
        edits = [line for line in here if line["run"]["name"].endswith("editing")]
        plain = [line for line in here if not line["run"]["name"].endswith("editing")]
        print(f"## {stream}\n")
        print(
            *[table(part) + "\n" for table, part in ((accuracy_table, plain), (editing_table, edits)) if part], sep="\n"
        )


if __name__ == "__main__":
    run(tyro.cli(Tables))
