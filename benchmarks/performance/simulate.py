"""How far learning on Ray carries: a driver and its workers simulated in discrete events, from constants measured here.

    python benchmarks/performance/simulate.py --json
    python benchmarks/performance/simulate.py --figure docs/workers.png
    python benchmarks/performance/scaling.py --no-torchrun --json > scaling.json
    python benchmarks/performance/simulate.py --held scaling.json

What is simulated is ``engines.parallel``: calls for earlier tasks first, one driver that takes results in the order in
which they end, adds up in the order of the tasks and writes the pool. Bytes are of the real objects of a ViT-B/16,
the driver's seconds are of the real functions on them, a worker's are multiples of a forward pass
(docs/performance.md). How many images a worker passes in a second is an assumption.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from statistics import mean, median
from typing import Any

import tyro
from picture import picture
from rich.console import Console
from simulated_costs import Costs, Planned, Setting, constants

NEAR = 0.15
"""How far a simulated time may be from a measured one."""
ROOM = 1000
"""GB of a disk."""


@dataclass(frozen=True)
class Simulate:
    """What is simulated."""

    tasks: tuple[int, ...] = (10, 100, 1000, 10000)
    """Of the streams."""
    workers: tuple[int, ...] = (1, 3, 10, 30, 100, 300, 1000)
    """At once."""
    classes: int = 10
    """Of a task."""
    images: int = 5000
    """Of a task, to train."""
    epochs: int = 5
    """Passes over them."""
    images_per_second: float = 1000.0
    """Of a worker's forward passes: an assumption, for a card in bf16."""
    gigabits: float = 25.0
    """Per second, of the driver's network."""
    per_machine: int = 8
    """Workers that share what was sent to their machine."""
    spread: float = 0.1
    """Standard deviation of the logarithm of a call's seconds."""
    seeds: int = 3
    """Simulations of each; their median is told."""
    held: Path | None = None
    """What scaling.py printed: simulate its runs of one and of two workers, and compare."""
    figure: Path | None = None
    """Write a picture here (PNG)."""
    json: bool = False
    """Print JSON instead of lines."""


@dataclass
class Run:
    """One simulated run.

    Args:
        seconds: from the first call to the last file.
        working: of all workers together, in calls.
        driver: by kind.
        link: of the driver's network, outwards.
    """

    seconds: float = 0.0
    working: float = 0.0
    driver: dict[str, float] = field(default_factory=dict)
    link: float = 0.0


class Simulation:
    """A driver and workers.

    Args:
        costs: of everything.
        tasks: of the stream.
        workers: at once.
        seed: of the spread.
        spread: standard deviation of the logarithm of a call's seconds.
    """

    def __init__(self, costs: Costs, tasks: int, workers: int, seed: int = 0, spread: float = 0.0) -> None:
        self._costs, self._tasks, self._spread = costs, tasks, spread
        self._drawn, self._run = random.Random(seed), Run()
        self._warm, self._cold, self._link = 0, workers, 0.0  # those that have loaded work first, as Ray has it
        self._waiting: list[tuple[int, int, str]] = []
        self._running: list[tuple[float, int, str]] = []
        self._there: set[tuple[str, int]] = set()
        self._done: dict[str, int] = dict.fromkeys(("heads", "added", "total", "written"), 0)

    def run(self) -> Run:
        """Simulate it."""
        self._spend("start", 0)
        for task in range(1, self._tasks + 1):
            self._ask("features", task)
        while self._done["written"] < self._tasks:
            end, task, method = heappop(self._running)
            self._run.seconds = max(self._run.seconds, end)
            self._warm += 1
            self._start()  # before the driver looks at what was given, as ``Calls.next``
            self._spend(method, task)
            self._there.add((method, task))
            self._advance()
        return self._run

    def _advance(self) -> None:
        while self._next("heads", "features"):
            self._ask("fisher", self._done["heads"])
        while self._next("added", "fisher"):
            if self._done["added"] == self._tasks:
                self._spend("together", self._tasks)
                for task in range(1, self._tasks + 1):
                    self._ask("tune", task)
        while self._next("total", "tune"):
            if self._done["total"] > 1:
                self._ask("place", self._done["total"])
        while self._next("written", "place" if self._done["written"] else "tune"):
            pass

    def _next(self, step: str, method: str) -> bool:
        """Do a step for the next task, if the result that it needs is there."""
        task = self._done[step] + 1
        if (method, task) not in self._there:
            return False
        self._spend(step, task)
        self._done[step] = task
        return True

    def _spend(self, step: str, task: int) -> None:
        for kind, seconds in self._costs.driver(step, task).items():
            self._run.seconds += seconds
            self._run.driver[kind] = self._run.driver.get(kind, 0.0) + seconds

    def _ask(self, method: str, task: int) -> None:
        heappush(self._waiting, (task, len(self._waiting), method))
        self._start()

    def _start(self) -> None:
        while self._waiting and (self._warm or self._cold):
            task, _, method = heappop(self._waiting)
            seconds = self._costs.worker(method, task) * self._drawn.lognormvariate(0, self._spread)
            if self._warm:
                self._warm -= 1
            else:
                seconds, self._cold = seconds + self._costs.loading(), self._cold - 1
            sent = self._costs.sent(method, task)
            self._link = max(self._link, self._run.seconds) + sent if sent else self._link
            self._run.working, self._run.link = self._run.working + seconds, self._run.link + sent
            heappush(self._running, (max(self._run.seconds, self._link if sent else 0.0) + seconds, task, method))


@dataclass(frozen=True)
class Measured:
    """Costs of runs of scaling.py with one worker, whose calls end in the order of the tasks.

    Args:
        runs: their ``phases``.
    """

    runs: Sequence[Mapping[str, Any]]

    def _seconds(self, method: str) -> list[float]:
        return [mean(found) for found in zip(*(run["worker"][method] for run in self.runs), strict=True)]

    def loading(self) -> float:
        """How much longer the first call is than the others."""
        first, *others = self._seconds("features")
        return first - mean(others)

    def worker(self, method: str, task: int) -> float:
        """As measured."""
        return (
            self._seconds(method)[task - 1 - (method == "place")]
            - (method == "features" and task == 1) * self.loading()
        )

    def sent(self, method: str, task: int) -> float:
        """Within one machine there is no link."""
        return 0.0

    def driver(self, step: str, task: int) -> dict[str, float]:
        """As measured after each method's results, with all that they set off."""
        found = [run["driver"].get(step, 0.0) / len(run["worker"].get(step, [0])) for run in self.runs]
        return {"driver": mean(found)}


def held(path: Path) -> dict[str, Any]:
    """Simulated seconds beside the measured ones, of one worker and of two."""
    told = json.loads(path.read_text())
    costs, found = Measured(told["phases"]["of_one_worker"]), dict[str, Any]()
    for workers in (1, 2):
        measured = median(told["seconds"][f"ray {workers}"])
        simulated = Simulation(costs, told["phases"]["tasks"], workers).run().seconds
        found[f"workers {workers}"] = {
            "measured": round(measured, 2),
            "simulated": round(simulated, 2),
            "off": round(simulated / measured - 1, 3),
        }
    return {**found, "within": all(abs(row["off"]) <= NEAR for row in found.values())}


def table(asked: Simulate) -> dict[str, Any]:
    """Every number of tasks with every number of workers."""
    setting = Setting(
        asked.classes, asked.images, asked.epochs, asked.images_per_second, asked.gigabits, asked.per_machine
    )
    size, cost = constants(setting)
    rows: list[dict[str, Any]] = []
    for tasks in asked.tasks:
        planned = Planned(setting, size, cost, tasks)
        alone = middle(planned, tasks, 1, asked).seconds
        for workers in asked.workers:
            rows.append(row(middle(planned, tasks, workers, asked), tasks, workers, alone))
    kept = {"staged": size.fisher + size.module + size.features, "in Ray's store": size.fisher, "pool": size.module}
    return {
        "setting": asdict(setting),
        "bytes": asdict(size),
        "constants": {name: round(seconds, 5) for name, seconds in asdict(cost).items()},
        "kept_per_task": kept,
        "tasks_per_terabyte": int(ROOM * 1e9 / sum(kept.values())),
        "rows": rows,
    }


def middle(costs: Costs, tasks: int, workers: int, asked: Simulate) -> Run:
    """Of the runs with each seed, the one of median length."""
    runs = [Simulation(costs, tasks, workers, seed, asked.spread).run() for seed in range(asked.seeds)]
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def row(run: Run, tasks: int, workers: int, alone: float) -> dict[str, Any]:
    """What is told of a run: shares are of its seconds; ``most`` names what is busiest; one worker needs ``alone``."""
    shares = {kind: seconds / run.seconds for kind, seconds in run.driver.items()}
    busy = {
        "workers": run.working / workers / run.seconds,
        "driver": sum(shares.values()),
        "link": run.link / run.seconds,
    }
    return {
        "tasks": tasks,
        "workers": workers,
        "hours": round(run.seconds / 3600, 3),
        "speedup": round(alone / run.seconds, 2),
        "busy": {what: round(share, 3) for what, share in busy.items()},
        "driver_seconds_per_task": {kind: round(seconds / tasks, 3) for kind, seconds in run.driver.items()},
        "most": max(busy, key=lambda what: busy[what]),
    }


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """How much faster more workers are, and the driver's seconds per task."""
    counts = list(dict.fromkeys(found["tasks"] for found in rows))
    with picture(path, ncols=2, figsize=(9, 3.4)) as (_, (left, right)):
        for tasks in counts:
            own = [found for found in rows if found["tasks"] == tasks]
            left.plot([r["workers"] for r in own], [r["speedup"] for r in own], marker=".", label=f"{tasks:,} tasks")
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_xlabel("workers")
        left.set_ylabel("times as fast as one worker")
        left.legend(fontsize="small", frameon=False)
        last = [[found for found in rows if found["tasks"] == tasks][-1]["driver_seconds_per_task"] for tasks in counts]
        below = [0.0] * len(counts)
        for kind in dict.fromkeys(kind for found in last for kind in found):
            each = [found.get(kind, 0.0) for found in last]
            right.bar([f"{tasks:,}" for tasks in counts], each, bottom=below, label=kind)
            below = [low + high for low, high in zip(below, each, strict=True)]
        right.set_xlabel("tasks")
        right.set_ylabel("driver, seconds per task")
        right.legend(fontsize="small", frameon=False)


def main() -> None:
    """Simulate, print, draw."""
    asked = tyro.cli(Simulate, description=__doc__)
    found = table(asked) if asked.held is None else held(asked.held)
    if asked.figure is not None and asked.held is None:
        draw(found["rows"], asked.figure)
    if asked.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        for line in value if name == "rows" else [value]:
            Console().print(f"{name}: {line}", soft_wrap=True)


if __name__ == "__main__":
    main()
