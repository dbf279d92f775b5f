"""Two workers against one: the same tasks by Ray, and by torchrun, alternating; and with workers killed; medians.

    python benchmarks/performance/scaling.py --json

Ray's start is not counted, the workers' loading of backbone and stream is; of torchrun's processes, what their logs say
of each task. Give it a quiet machine of two cores, for a quarter of an hour.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar
from unittest.mock import patch

import torch
import tyro
from rich.console import Console
from torch import Tensor

from intarsia import ITA, Backbone, LoRA, Pool, TaskStream, Training, learn
from intarsia.engines.ray import Ray, RayCluster
from intarsia.engines.worker import Job
from intarsia.store.files import read_json
from intarsia.store.index import INDEX


@dataclass(frozen=True)
class Deadly(LoRA):
    """LoRA whose process is killed where it is attached, as often as a folder has files."""

    folder: str = ""

    def initial(self, name: str, theta0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """As LoRA's, if one lives to see it."""
        for file in Path(self.folder).iterdir():
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().initial(name, theta0, generator)


@dataclass(frozen=True)
class Scaling:
    """Measure how much sooner two workers are done than one."""

    data: str = "chalk"
    """The stream."""
    tasks: int = 8
    """Its first tasks."""
    max_per_class: int = 30
    """Training and test images of each class."""
    epochs: int = 2
    """Passes over a task's images."""
    rounds: int = 3
    """Runs of each kind."""
    kills: int = 5
    """Workers that are killed."""
    torchrun: bool = True
    """Measure its processes too."""
    json: bool = False
    """Print JSON instead of lines."""


class Watched(RayCluster):
    """Ray's workers, whose seconds are noted: of every call, and of the driver after each result."""

    seconds: ClassVar[list["Watched"]] = []
    """Of every run."""

    def __init__(self, ray: Any, job: Job, needs: dict[str, float]) -> None:
        super().__init__(ray, job, needs)
        self.worker: dict[str, list[float]] = {}
        self.driver: dict[str, float] = {}
        self._began: dict[Any, tuple[str, float]] = {}
        self._last = ("start", time.perf_counter())
        self.seconds.append(self)

    def call(self, method: str, *arguments: Any) -> Any:
        """Note when it began."""
        reference = super().call(method, *arguments)
        self._began[reference] = (method, time.perf_counter())
        return reference

    def wait(self, references: Sequence[Any]) -> Any:
        """Note how long the driver was at work since the last result, and how long the call took."""
        self.pause()
        found = super().wait(references)
        method, began = self._began.pop(found)
        self._last = (method, time.perf_counter())
        self.worker.setdefault(method, []).append(self._last[1] - began)
        return found

    def pause(self) -> None:
        """The driver has done what there was to do with the last result."""
        method, since = self._last
        self.driver[method] = self.driver.get(method, 0.0) + time.perf_counter() - since

    def record(self) -> dict[str, Any]:
        """Seconds of every call, in the order in which they ended, and of the driver in all, after each method."""
        worker = {method: [round(second, 4) for second in found] for method, found in self.worker.items()}
        return {"worker": worker, "driver": {method: round(second, 4) for method, second in self.driver.items()}}


def files(pool: Path) -> dict[str, Any]:
    """Name -> hash of every file of a pool."""
    return read_json(pool / INDEX)["files"]


def measure(asked: Scaling, folder: Path) -> dict[str, Any]:
    """All figures."""
    import ray  # noqa: PLC0415  an extra

    torch.set_num_threads(1)
    theta0, stream = Backbone.load(), TaskStream.load(asked.data, max_per_class=asked.max_per_class)
    stream = stream.subset(range(asked.tasks))
    training = Training(epochs=asked.epochs, fisher_over="others")

    def run(name: str, engine: Ray | None, adapter: LoRA | None = None) -> tuple[Path, float]:
        out, began = folder / name, time.perf_counter()
        adapter = adapter or LoRA(16)
        learn(theta0, stream, out=out, adapter=adapter, regularizer=ITA(0.1), training=training, engine=engine)
        return out, time.perf_counter() - began

    one, alone = run("one", None)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
    try:
        equal = files(run("warm", Ray())[0]) == files(one)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for number in range(asked.rounds):
            for workers, took in seconds.items():
                with patch("intarsia.engines.ray.RayCluster", Watched):
                    out, second = run(f"{workers}-{number}", Ray(workers=workers))
                Watched.seconds[-1].pause()
                took.append(second)
                equal = equal and files(out) == files(one)
        kills = folder / "kills"
        kills.mkdir()
        for number in range(asked.kills):
            (kills / str(number)).touch()
        survived = run("killed", Ray(), Deadly(16, folder=str(kills)))[0] if asked.kills else one
        left = len(list(kills.iterdir()))
    finally:
        ray.shutdown()
    there = files(survived)
    lost = [name for name, seen in files(one).items() if there.get(name) != seen]
    found: dict[str, Any] = {"ray_equal": equal, "ray_speedup_2": round(median(seconds[1]) / median(seconds[2]), 3)}
    found |= {"killed_workers": asked.kills - left}
    found |= {"lost": len({name.split("/")[1] for name in lost if name.startswith("modules/")})}
    beside: dict[int, list[float]] = {}
    if asked.torchrun:
        apart, beside = together(asked, folder, [task.name for task in stream])
        found |= {"ddp_max_difference": apart, "ddp_speedup_2": round(median(beside[1]) / median(beside[2]), 3)}
    found["seconds"] = {"one process": round(alone, 2), **rounded("ray", seconds), **rounded("torchrun", beside)}
    found["phases"] = {"tasks": asked.tasks, "of_one_worker": [run.record() for run in Watched.seconds[::2]]}
    return found


def rounded(what: str, seconds: Mapping[int, list[float]]) -> dict[str, list[float]]:
    """Seconds of each run, by the number of workers."""
    return {f"{what} {number}": [round(second, 2) for second in found] for number, found in seconds.items()}


def together(asked: Scaling, folder: Path, tasks: Sequence[str]) -> tuple[float, dict[int, list[float]]]:
    """Of one and two processes on every module: how far task vectors are apart at most, and seconds of each run."""
    flags = ["--data", asked.data, "--only", *tasks, "--max-per-class", str(asked.max_per_class)]
    flags += ["--epochs", str(asked.epochs), "--run.no-evaluate", "--device", "cpu"]
    seconds: dict[int, list[float]] = {1: [], 2: []}
    pools: dict[int, Pool] = {}
    for number in range(asked.rounds):
        for count, took in seconds.items():
            out = folder / f"torchrun-{count}-{number}"
            start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            command = [*start, "-m", "intarsia", "learn", *flags, "--out", str(out)]
            alone = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, env=alone, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            pools[count] = Pool.open(out)
            logged = pools[count].logged().values()
            took.append(sum(task["set_up_seconds"] + task["training_seconds"] for task in logged))
    one, two = ([pools[count].vector(task) for task in tasks] for count in (1, 2))
    apart = [float((a[name] - b[name]).abs().max()) for a, b in zip(one, two, strict=True) for name in a]
    return max(apart), seconds


def main() -> None:
    """Run it."""
    asked = tyro.cli(Scaling, description=__doc__)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):  # Ray prints what it says of workers
        found = measure(asked, Path(folder))
    if asked.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        Console().print(f"{name}: {value}")


if __name__ == "__main__":
    main()
