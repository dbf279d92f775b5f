"""The runs of a comparison: their records, and what one measures."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from intarsia.errors import InputError
from intarsia.evaluation.editing import edit_each
from intarsia.evaluation.metrics import Scores
from intarsia.machine import code, machine, peak_memory
from intarsia.progress import Progress, silent
from intarsia.study.bench import Bench
from intarsia.study.folder import Folder
from intarsia.study.methods import METHODS
from intarsia.training.settings import Settings


class Cells(Protocol):
    """Where runs are made: see ``cells``. It is called by several threads at once."""

    def run(self, name: str, seed: int, into: Path) -> dict[str, Any]:
        """What ``measure`` gives for a method and a seed, or its ``error``; what the method writes goes ``into``.

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
    return replace(METHODS[name].settings, epochs=bench.epochs, batch_size=bench.batch_size, seed=seed)


@dataclass(frozen=True)
class Runs:
    """Runs that are kept.

    Args:
        bench: stream, backbone and budget.
        folder: where their records are.
        made: seed -> what decides about a run's numbers beside its settings (``bench.made_with``).
        say: told what is run.
    """

    bench: Bench
    folder: Folder
    made: dict[int, dict[str, Any]]
    say: Callable[[str], None]

    def settings(self, name: str, seed: int) -> dict[str, Any]:
        """What a run is set to, as its record has it."""
        method, training = METHODS[name], training_of(self.bench, name, seed)
        return {"bench": self.bench.record(), "training": training.record(), "options": method.options}

    def found(self, name: str, seed: int) -> dict[str, Any] | None:
        """The record of the run, if it is there and was made with all that decides about its numbers."""
        return self.folder.find(name, seed, self.settings(name, seed), self.made[seed])

    def make(self, name: str, seed: int, cells: Cells) -> dict[str, Any]:
        """A run's record, made anew and kept; an earlier one is set aside.

        Raises:
            InputError: what the method raised, or its process has died.
        """
        self.say(f"{name}, seed {seed}")
        into = self.folder.make_room(name, seed)
        record = {"method": name, "seed": seed, "settings": self.settings(name, seed), "made": self.made[seed]}
        record |= {"code": code(), **cells.run(name, seed, into)}
        if "error" in record:
            raise InputError(f"{name}, seed {seed}: {record['error']}")
        self.folder.keep(record)
        return record


def measure(bench: Bench, name: str, seed: int, folder: Path, progress: Progress = silent) -> dict[str, Any]:
    """Learn the stream with one method in this process, and measure it after every task.

    With seed 0 the modules of a method that has some are also specialized to and unlearned, each (``editing``).

    Args:
        bench: stream, backbone and budget.
        name: of ``METHODS``.
        seed: of everything random.
        folder: for what the method writes.
        progress: told how far the work is.
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
        if stage.modules is not None and seed == 0:
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
