"""The runs of a comparison: their records, and what one measures."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from intarsia.errors import DivergenceError, InputError
from intarsia.evaluation.editing import edit_each
from intarsia.evaluation.metrics import Scores
from intarsia.machine import code, machine, peak_memory
from intarsia.progress import Progress, silent
from intarsia.study.bench import Bench
from intarsia.study.folder import Folder
from intarsia.study.methods import METHODS
from intarsia.training.settings import Settings

WAKES = 0.5
"""Seconds between two looks for a signal."""


class Cells(Protocol):
    """Where runs are made: see ``cells``. It is called by several threads at once."""

    def run(self, bench: Bench, name: str, seed: int, into: Path, *, edits: bool) -> dict[str, Any]:
        """What ``attempt`` gives for a method and a seed; what the method writes goes ``into``.

        Raises:
            InputError: its process has died.
            KeyboardInterrupt: runs were stopped.
        """
        ...

    def stop(self) -> None:
        """End the runs that are under way, and start no more."""
        ...


def training_of(bench: Bench, name: str, seed: int) -> Settings:
    """A method's settings, with the comparison's budget."""
    own = METHODS[name].settings
    budget = {"epochs": bench.epochs, "batch_size": bench.batch_size, "precision": bench.precision}
    return replace(own, lr=bench.rates.get(name, own.lr), seed=seed, **budget)


@dataclass(frozen=True)
class Runs:
    """Runs that are kept.

    Args:
        bench: stream, backbone and budget.
        folder: where their records are.
        made: seed -> what decides about a run's numbers beside its settings (``bench.made_with``).
        say: told what is run.
        edits: whether the modules of seed 0 are edited.
    """

    bench: Bench
    folder: Folder
    made: dict[int, dict[str, Any]]
    say: Callable[[str], None]
    edits: bool = True

    def settings(self, name: str, seed: int) -> dict[str, Any]:
        """What a run is set to, as its record has it."""
        method, training = METHODS[name], training_of(self.bench, name, seed)
        return {"bench": self.bench.record(), "training": training.record(), "options": method.options}

    def found(self, name: str, seed: int) -> dict[str, Any] | None:
        """The record of the run, if it is there and was made with all that decides about its numbers."""
        return self.folder.find(name, seed, self.settings(name, seed), self.made[seed])

    def named(self, name: str, seed: int) -> str:
        """A run in words."""
        rate = f", learning rate {self.bench.rates[name]:g}" if name in self.bench.rates else ""
        return f"{name}, seed {seed}{rate}"

    def make(self, name: str, seed: int, cells: Cells) -> dict[str, Any]:
        """A run's record, made and kept; an earlier one is set aside, and one that was stopped goes on if it can.

        Raises:
            InputError: what the method raised, or its process has died.
            DivergenceError: the method diverges.
        """
        self.say(self.named(name, seed))
        asked = {"settings": self.settings(name, seed), "made": self.made[seed]}
        into = self.folder.make_room(name, seed, **asked)
        record: dict[str, Any] = {"method": name, "seed": seed, **asked}
        if into.exists():
            self.say(f"{self.named(name, seed)}: goes on where it was stopped; minutes and memory are of what is left")
            record["resumed"] = True
        record |= {"code": code(), **cells.run(self.bench, name, seed, into, edits=self.edits)}
        if "error" in record:
            kind = DivergenceError if record["diverged"] else InputError
            raise kind(f"{name}, seed {seed}: {record['error']}")
        self.folder.keep(record)
        return record

    def tried(self, name: str, seed: int, cells: Cells) -> dict[str, Any]:
        """The same; of a run that diverges a record without an accuracy, which is not kept."""
        try:
            return self.make(name, seed, cells)
        except DivergenceError:
            return {"final_accuracy": None}


Asked = tuple[Runs, str, int]
"""A run: among which, of what method, with which seed."""
Make = Callable[[Runs, str, int, Cells], dict[str, Any]]


def records(asked: Sequence[Asked], cells: Callable[[], Cells], jobs: int | None, make: Make) -> list[dict[str, Any]]:
    """Of runs, in order: those that are there, and the others made, so many at once.

    Args:
        asked: which.
        cells: where they are made; called only if there are some to make.
        jobs: at once; all if None.
        make: ``Runs.make`` or ``Runs.tried``.

    Raises:
        Exception: what the first that fails raises; the others are ended, and no more are started.
    """
    there = {one: record for one in range(len(asked)) if (record := asked[one][0].found(*asked[one][1:])) is not None}
    for runs, name, seed in (asked[one] for one in there):
        runs.say(f"{runs.named(name, seed)}: there already")
    if missing := [one for one in range(len(asked)) if one not in there]:
        at = cells()
        with ThreadPoolExecutor(jobs or len(missing)) as workers:
            try:
                waiting = {one: workers.submit(make, *asked[one], at) for one in missing}
                there |= {one: _result(future) for one, future in waiting.items()}
            except BaseException:
                workers.shutdown(wait=False, cancel_futures=True)
                at.stop()
                raise
    return [there[one] for one in range(len(asked))]


def _result(future: "Future[dict[str, Any]]") -> dict[str, Any]:
    """Of a run, in short waits: a signal that comes just before one, or to another thread, does not end it."""
    while not future.done():
        wait([future], WAKES)
    return future.result()


def attempt(
    bench: Bench, name: str, seed: int, folder: Path, progress: Progress = silent, *, edits: bool = True
) -> dict[str, Any]:
    """As ``measure``; of bad input its ``error``, and whether the method ``diverged``."""
    try:
        return measure(bench, name, seed, folder, progress, edits=edits)
    except InputError as error:
        return {"error": str(error), "diverged": isinstance(error, DivergenceError)}


def measure(
    bench: Bench, name: str, seed: int, folder: Path, progress: Progress = silent, *, edits: bool = True
) -> dict[str, Any]:
    """Learn the stream with one method in this process, and measure it after every task.

    With seed 0 the modules of a method that has some are also specialized to and unlearned, each (``editing``).

    Args:
        bench: stream, backbone and budget.
        name: of ``METHODS``.
        seed: of everything random.
        folder: for what the method writes.
        progress: told how far the work is.
        edits: whether modules are edited at all.
    """
    if bench.threads is not None:
        torch.set_num_threads(bench.threads)
    started, method, stream, theta0 = time.perf_counter(), METHODS[name], bench.stream(seed), bench.theta0()
    scores, set_up, training, stage = Scores(stream), 0.0, 0.0, None
    edited: list[dict[str, Any]] = []
    settings = training_of(bench, name, seed)
    for stage in method.baseline.train(theta0, stream, settings, folder=folder, progress=progress):
        scores.add(stage.model)
        set_up, training = set_up + stage.set_up_seconds, training + stage.training_seconds
        if stage.modules is not None and seed == 0 and edits:
            names = [task.name for task in stream]
            edited = edit_each(stage.modules, stream, names, progress=progress, answers=scores.answers)
    assert stage is not None
    return {
        **scores.evaluation().record(),
        "set_up_minutes": set_up / 60,
        "training_minutes": training / 60,
        "minutes": (time.perf_counter() - started) / 60,
        "memory_mib": peak_memory(),
        "numbers_per_task": stage.stored / len(stream),
        "images_kept": stage.images,
        "edits": edited,
        "backbone": theta0.hash,
        "versions": {package: version(package) for package in ("intarsia", "torch", "timm")},
        "machine": machine(theta0.device),
    }
