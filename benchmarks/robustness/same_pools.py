"""Hashes of what a checkout computes: pools by ITA and IEL with each adapter, a comparison, a report's numbers.

Run it before and after a change that must change no number, with the same torch and as many threads, and compare what
it prints:

    python benchmarks/robustness/same_pools.py > before.json
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STREAM = ("--data", "chalk", "--only", "animals", "vehicles", "food", "--max-per-class", "10")
TIMED = ("set_up_minutes", "training_minutes", "memory_mib", "machine", "versions", "numbers_per_task", "settings")
NEWER = ("minutes", "made", "code", "per_class", "balanced_accuracy")
"""Not in the records of earlier checkouts."""


def run(*arguments: str) -> Any:
    """What a verb prints as JSON; it runs on one thread."""
    command = [sys.executable, "-m", "intarsia", *arguments, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return json.loads(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)


def digest(value: Any) -> str:
    """A short hash of anything that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def tensors(pool: Path) -> dict[str, str]:
    """File -> hash of every file of tensors that ``pool.json`` names."""
    files = json.loads((pool / "pool.json").read_text())["files"]
    return {name: about["sha256"] for name, about in files.items() if name.endswith(".safetensors")}


def numbers(page: Path) -> list[str]:
    """All numbers in the text of a report that are not times, sizes or hashes."""
    text = re.sub(r"<img[^>]*>", "", page.read_text())
    text = re.sub(r"<section><h2>(Run|Files)</h2>.*?</section>", "", text, flags=re.S)
    return re.findall(r"-?\d+(?:\.\d+)?", re.sub(r"<style>.*?</style>|<[^>]*>", " ", text, flags=re.S))


def main() -> None:
    """Learn, compare, report, and print the hashes."""
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in ("ita", "iel"):
            for adapter in ("lora", "full", "ia3"):
                name, out = f"{method}-{adapter}", Path(folder) / f"{method}-{adapter}"
                learned = run(
                    "learn", *STREAM, "--method", method, "--adapter", adapter, "--epochs", "2", "--out", str(out)
                )
                found[f"{name} tensors"] = digest(tensors(out))
                found[f"{name} accuracy"] = digest(learned["accuracy_matrix"])
                print(f"{name} done", file=sys.stderr)
        pool = str(Path(folder) / "iel-lora")
        diagnosis = run("diagnose", pool, "--per-task", "20")
        found["diagnosis"] = digest({key: round(v, 9) for key, v in diagnosis.items() if isinstance(v, float)})
        found["unlearning"] = digest(run("unlearn", pool, "vehicles")["after"])
        found["ties"] = digest(run("evaluate", pool, "--rule", "ties")["accuracy_matrix"])
        run("report", pool, "--edits", "--out", f"{folder}/page.html")
        found["report"] = digest(numbers(Path(folder) / "page.html"))
        compared = Path(folder) / "compare"
        run("compare", *STREAM, "--epochs", "1", "--out", str(compared))
        for record in sorted(compared.glob("*-0.json")):
            kept = {k: v for k, v in json.loads(record.read_text()).items() if k not in (*TIMED, *NEWER)}
            found[f"compare {record.stem}"] = digest(kept)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
