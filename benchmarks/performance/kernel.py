"""The Fisher's sum of squares on a card: the Triton kernel against products and squares by torch, time and memory.

python benchmarks/performance/kernel.py --json
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from intarsia.curvature import triton_squares as kernels
from intarsia.curvature.squares import add_squares_by_products
from intarsia.machine import machine
from watch import Told

SHAPES = ((64, 65, 192, 576), (64, 65, 192, 768), (64, 197, 768, 2304), (64, 197, 768, 3072), (64, 197, 3072, 768))
"""Images, tokens, in, out: layers of the built-in backbone and of ViT-B/16."""
WARM_UP, REPEATS = 3, 20
CHUNK = 1 << 28
"""Numbers of per-image gradient held at once by torch."""


@dataclass(frozen=True)
class Kernel:
    """How to print."""

    json: bool = False
    """Print JSON instead of a table."""
    rows: Path | None = None
    """Add every row, as it is known, to this file, a line of JSON each."""


def measured(add: Callable[[Tensor, Tensor, Tensor], None], *tensors: Tensor) -> tuple[float, float]:
    """Median milliseconds, and MiB beside what was there."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    add(*tensors)
    memory = (torch.cuda.max_memory_allocated() - before) / 2**20
    times: list[float] = []
    for repeat in range(WARM_UP + REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        add(*tensors)
        end.record()
        torch.cuda.synchronize()
        if repeat >= WARM_UP:
            times.append(start.elapsed_time(end))
    return statistics.median(times), memory


def rows(told: Told) -> list[dict[str, Any]]:
    """A row per shape."""
    found: list[dict[str, Any]] = []
    for shape in SHAPES:
        images, tokens, width, outputs = shape
        a, g = (torch.randn(images, tokens, n, device="cuda") for n in (width, outputs))
        into = torch.zeros(outputs, width, device="cuda")
        row: dict[str, Any] = {"shape": shape}
        for name, add in (("kernel", kernels.add_squares), ("torch", partial(add_squares_by_products, chunk=CHUNK))):
            row[f"{name}_ms"], row[f"{name}_mib"] = measured(add, into, a, g)
        found.append(row)
        told.row(row)
    return found


def main(chosen: Kernel) -> None:
    """Measure and print."""
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is here: the kernel runs on one only")
    found = {"machine": machine(torch.device("cuda")), "torch": torch.__version__, "rows": rows(Told(chosen.rows))}
    if chosen.json:
        print(json.dumps(found))
        return
    print(f"{found['machine']}, torch {found['torch']}")
    for row in found["rows"]:
        print(
            row["shape"],
            *(f"{name} {row[f'{name}_ms']:.3f} ms {row[f'{name}_mib']:.0f} MiB" for name in ("kernel", "torch")),
        )


if __name__ == "__main__":
    main(tyro.cli(Kernel, description=__doc__))
