"""Kill a real ``learn`` again and again, go on, and compare what comes out with a run that was never stopped.

    python benchmarks/robustness/survival.py --kills 20 --seed 0 [--json]
    python benchmarks/robustness/survival.py --kills 200 --rounds 100 --readers 10

Every other kill comes at a random moment, the others at a random step of a write: before a file is opened, written,
flushed, renamed or removed, or with half of it written. After each one the pool is read whole, as any reader would.
``--rounds`` lets two writers start on one pool at once so often, ``--readers`` so many processes read while one writes.
``--cost`` sets so many epochs that end in a checkpoint beside as many that do not.
"""

import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import track

from intarsia import ITA, Backbone, InputError, LoRA, Pool, TaskStream, learn
from intarsia.cli.main import main as command_line
from intarsia.curvature.fisher import DiagonalFisher
from intarsia.heads.head import Head
from intarsia.store.lock import one_writer
from intarsia.store.store import LOG
from intarsia.store.verify import verify
from intarsia.training.checkpoint import Checkpoint, Trained
from intarsia.training.recommended import recommended

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
cases: Any = importlib.import_module("cases")  # the tests' small network
RUN = ["--only", "animals", "food", "--max-per-class", "8", "--epochs", "2", "--run.no-evaluate"]
STEPS = ("open", "write", "fsync", "replace", "rename", "unlink")


@dataclass(frozen=True)
class Survival:
    """How much to try."""

    kills: int = 20
    """How often a run is killed."""
    seed: int = 0
    """Of when."""
    rounds: int = 0
    """How often two writers start at once."""
    readers: int = 0
    """How many processes read while one writes."""
    cost: int = 0
    """Pairs of epochs, one of each with a checkpoint, whose time is compared."""
    threads: int = 0
    """Of torch, in every run; its own choice if 0."""
    json: bool = False
    """Print JSON only."""


def learn_killed_at(step: int) -> None:
    """Be the command line that kills itself before a step of its writes, by number."""
    left = step

    for name in STEPS:
        plain = getattr(os, name)

        def counted(*args: Any, name: str = name, plain: Callable[..., Any] = plain, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "write":
                    plain(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, **kwargs)

        setattr(os, name, counted)
    command_line(sys.argv[3:])


def hashes(pool: Path) -> dict[str, str]:
    """Relative path -> hash of every file of a pool that is part of what it is."""
    return cases.contents(pool, {LOG})


class Trial:
    """Runs that are killed, and what became of them.

    Args:
        folder: for their pools.
        chosen: what to try.
    """

    def __init__(self, folder: Path, chosen: Survival) -> None:
        self.folder, self.chosen = folder, chosen
        self.random = random.Random(chosen.seed)
        self.environment = {**os.environ, **({"OMP_NUM_THREADS": str(chosen.threads)} if chosen.threads else {})}
        started = time.perf_counter()
        self.learn(folder / "whole", RUN).wait()
        self.seconds = time.perf_counter() - started
        self.whole, self.tasks = hashes(folder / "whole"), Pool.open(folder / "whole").tasks
        self.found = {"kills": 0, "lost": 0, "unequal": 0, "unreadable": 0}
        self.at: dict[str, int] = {}
        self.stops: list[str] = []
        self.spent, self.finished = 0.0, 0

    def learn(self, out: Path, arguments: list[str], step: int = 0) -> "subprocess.Popen[bytes]":
        """A process that learns; with ``step`` it kills itself there."""
        start = [sys.executable, __file__, "--killed-at", str(step)] if step else [sys.executable, "-m", "intarsia"]
        command = [*start, "learn", *arguments, "--out", str(out)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.environment)

    def run(self) -> None:
        """Kill as often as asked; a run that comes to its end is compared, and another one started."""
        out, learned = self.folder / "0", 0
        for number in track(range(self.chosen.kills), "kills", console=Console(stderr=True)):
            while not self.killed(out, by_step=number % 2 == 1):
                out, learned = self.compared(out), 0
            learned = self.read(out, learned)
            print(json.dumps({"kill": number + 1, "at": self.stops[-1], **self.found}), file=sys.stderr, flush=True)
        started = time.perf_counter()
        if self.begun(out):
            self.learn(out, ["--resume", "--run.no-evaluate"]).wait()
        self.spent += time.perf_counter() - started
        if out.exists():
            self.compared(out)

    def killed(self, out: Path, by_step: bool) -> bool:
        """Let a run begin or go on, and kill it; False if it came to its end before that."""
        arguments = ["--resume", "--run.no-evaluate"] if self.begun(out) else RUN
        if not self.begun(out):
            shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        process = self.learn(out, arguments, self.random.randint(1, 200) if by_step else 0)
        try:
            process.wait(None if by_step else self.random.uniform(0.3, 1.0) * self.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.spent += time.perf_counter() - started
        if process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"learn ended with {process.returncode}, neither killed nor well: {out}")
        self.found["kills"] += process.returncode != 0
        return process.returncode != 0

    def begun(self, out: Path) -> bool:
        """A run was stopped there, be it after its last module."""
        return Checkpoint.of(out).exists or (out / "pool.json").exists()

    def read(self, out: Path, learned: int) -> int:
        """Read what a kill left; returns how many tasks are learned."""
        where = Checkpoint.of(out).where() if self.begun(out) else "before it began"
        self.at[where] = self.at.get(where, 0) + 1
        self.stops.append(where)
        if not (out / "pool.json").exists():
            self.found["lost"] += learned
            return 0
        try:
            pool = Pool.open(out)
            damaged = verify(pool)
        except InputError:
            self.found["unreadable"] += 1
            return learned
        self.found["unreadable"] += bool(damaged)
        self.found["lost"] += max(0, learned - len(pool.tasks)) + (pool.tasks != self.tasks[: len(pool.tasks)])
        return len(pool.tasks)

    def compared(self, out: Path) -> Path:
        """Compare a run that came to its end with the one never stopped; returns the folder of the next."""
        found = hashes(out)
        if found != self.whole:
            self.found["unequal"] += 1
            names = sorted(name for name in {*found, *self.whole} if found.get(name) != self.whole.get(name))
            print(f"{out} differs in {', '.join(names)}; it was stopped {self.stops}", file=sys.stderr)
            shutil.copytree(out, Path(tempfile.gettempdir()) / "intarsia-unequal" / out.name, dirs_exist_ok=True)
        self.stops.clear()
        self.finished += 1
        return self.folder / str(self.finished)


def _write_rounds(folder: str, number: int, rounds: int, barrier: Barrier, told: Any) -> None:
    """One of two writers: in every round it tries to add a module of its own."""
    theta0, adapter = cases.backbone(), LoRA(1)
    fisher = DiagonalFisher({name: weight.square() for name, weight in theta0.trainable.items()}, 5)
    added, refused = [], 0
    for turn in range(rounds):
        task = f"w{number}r{turn}"
        barrier.wait()
        try:
            with one_writer(Path(folder)):
                there = (Path(folder) / "pool.json").exists()
                pool = Pool.open(folder, theta0) if there else Pool.create(folder, theta0, adapter, {"method": "ita"})
                made = cases.module(task, [f"{task}a"], adapter, theta0, number)
                before = pool.reference()
                pool.add(made, fisher, Head.join([*([before] if before else []), made.reference]))
                added.append(task)
        except InputError:
            refused += 1
    told.put((added, refused))


def two_writers(folder: Path, rounds: int) -> dict[str, Any]:
    """Two processes that write to one pool at once, so many times: what each was told, and what is in the pool."""
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(2), context.Queue()
    writers = [context.Process(target=_write_rounds, args=(str(folder), n, rounds, barrier, told)) for n in range(2)]
    for writer in writers:
        writer.start()
    heard = [told.get() for _ in writers]
    for writer in writers:
        writer.join()
    pool = Pool.open(folder)
    added = {task for tasks, _ in heard for task in tasks}
    damaged = len(verify(pool))
    return {
        "rounds": rounds,
        "added": len(added),
        "refused": sum(refused for _, refused in heard),
        "missing": len(added ^ {*pool.tasks}),
        "damaged": damaged,
    }


def _read_on(folder: str, told: Any, stop: Any) -> None:
    reads = failed = 0
    while not stop.is_set():
        if (Path(folder) / "pool.json").exists():
            try:
                pool = Pool.open(folder)
                for task in pool.tasks:
                    pool.module(task)
                pool.fisher()
                reads += 1
            except InputError:
                failed += 1
    told.put((reads, failed))


def readers_while_one_writes(trial: Trial, readers: int) -> dict[str, Any]:
    """So many processes open the pool and read all of it, over and over, while it is learned."""
    out = trial.folder / "read"
    context = multiprocessing.get_context("spawn")
    told, stop = context.Queue(), context.Event()
    processes = [context.Process(target=_read_on, args=(str(out), told, stop)) for _ in range(readers)]
    for process in processes:
        process.start()
    trial.learn(out, RUN).wait()
    stop.set()
    heard = [told.get() for _ in processes]
    for process in processes:
        process.join()
    return {
        "readers": readers,
        "reads": sum(reads for reads, _ in heard),
        "failed": sum(failed for _, failed in heard),
        "equal": hashes(out) == trial.whole,
    }


def cost(chosen: Survival, folder: Path) -> dict[str, Any]:
    """Seconds of an epoch that ends in a checkpoint over those of one that does not; medians, in one run.

    Of each two epochs of one task a coin says which of them saves. The pairs' quartiles say how far the machine
    itself moves the ratio; ``saving`` is what a checkpoint takes, as a share of the epoch.
    """
    coin, save = random.Random(chosen.seed), Checkpoint.save
    order = [saves for _ in range(chosen.cost) for saves in coin.choice(((True, False), (False, True)))]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    saving: list[float] = []
    clock = [time.perf_counter()]

    def one_of_two(self: Checkpoint, task: str, epochs: int, trained: Trained) -> None:
        started = time.perf_counter()
        if epochs == 1:  # the first epoch is of no pair: it warms up
            clock.append(started)
            return
        if order[epochs - 2]:
            save(self, task, epochs, trained)
            saving.append(time.perf_counter() - started)
        clock.append(time.perf_counter())
        seconds[order[epochs - 2]].append(clock[-1] - clock[-2])

    strength, training = recommended("ita", "lora")
    stream = TaskStream.load("sketches").subset(["animals"])
    Checkpoint.save = one_of_two
    try:
        learn(
            Backbone.load(),
            stream,
            out=folder,
            adapter=LoRA(16),
            regularizer=ITA(strength),
            training=replace(training, epochs=1 + len(order)),
        )
    finally:
        Checkpoint.save = save
    ratios = [saved / plain for saved, plain in zip(seconds[True], seconds[False], strict=True)]
    median = {saves: statistics.median(times) for saves, times in seconds.items()}
    return {
        "pairs": chosen.cost,
        "ratio": median[True] / median[False],
        "quartiles": statistics.quantiles(ratios) if chosen.cost > 1 else ratios,
        "saving": statistics.median(saving) / median[False],
        "seconds": median[False],
    }


def main(chosen: Survival) -> None:
    """Try, and print what was found."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(Path(folder), chosen)
        if chosen.kills:
            trial.run()
        found: dict[str, Any] = {
            **trial.found,
            "finished": trial.finished,
            "seconds_of_a_run": round(trial.seconds, 1),
            "seconds_lost_per_kill": _lost(trial),
            "stopped": trial.at,
        }
        if chosen.rounds:
            found["writers"] = two_writers(Path(folder) / "shared", chosen.rounds)
        if chosen.readers:
            found["readers"] = readers_while_one_writes(trial, chosen.readers)
        if chosen.cost:
            found["cost"] = cost(chosen, Path(folder) / "cost")
    print(json.dumps(found, indent=None if chosen.json else 1))


def _lost(trial: Trial) -> float | None:
    """Seconds more than the runs would have taken, and the share of the one that was cut short, by kill."""
    kills = trial.found["kills"]
    return round((trial.spent - trial.finished * trial.seconds) / kills, 1) if kills else None


if __name__ == "__main__":
    if sys.argv[1:2] == ["--killed-at"]:
        learn_killed_at(int(sys.argv[2]))
    else:
        main(tyro.cli(Survival, description=__doc__))
