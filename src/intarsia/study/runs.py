"""The runs of a comparison, each in a process of its own that does not outlive the one which started it."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, TypeVar

import torch

from intarsia.console import shown
from intarsia.errors import DivergenceError, InputError
from intarsia.evaluation.editing import edit_each
from intarsia.evaluation.metrics import Scores
from intarsia.machine import code, machine, peak_memory
from intarsia.progress import Progress, silent
from intarsia.study.bench import Bench
from intarsia.study.folder import Folder
from intarsia.study.methods import METHODS
from intarsia.training.settings import Settings

DIE_WITH_PARENT = 1
"""Of Linux's ``prctl``: PR_SET_PDEATHSIG."""
WAKES = 0.5
"""Seconds between two looks for a signal."""
Found = TypeVar("Found")


def training_of(bench: Bench, name: str, seed: int) -> Settings:
    """A method's settings, with the comparison's budget."""
    own = METHODS[name].settings
    budget = {"epochs": bench.epochs, "batch_size": bench.batch_size, "precision": bench.precision}
    return replace(own, lr=bench.rates.get(name, own.lr), seed=seed, **budget)


@dataclass(frozen=True)
class Runs:
    """Runs, each in a process of its own.

    Args:
        bench: stream, backbone and budget.
        folder: where their records are.
        made: seed -> what decides about a run's numbers beside its settings (``bench.made_with``).
        say: told what is run.
        bars: whether a run may draw progress bars.
        edits: whether the modules of seed 0 are edited.
    """

    bench: Bench
    folder: Folder
    made: dict[int, dict[str, Any]]
    say: Callable[[str], None]
    bars: bool
    edits: bool = True
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _stopped: Event = field(default_factory=Event)
    _starting: Lock = field(default_factory=Lock)

    def settings(self, name: str, seed: int) -> dict[str, Any]:
        """What a run is set to, as its record has it."""
        method, training = METHODS[name], training_of(self.bench, name, seed)
        return {"bench": self.bench.record(), "training": training.record(), "options": method.options}

    def found(self, name: str, seed: int) -> dict[str, Any] | None:
        """The record of the run, if it is there and was made with all that decides about its numbers."""
        return self.folder.find(name, seed, self.settings(name, seed), self.made[seed])

    def once(self, name: str, seed: int) -> dict[str, Any]:
        """A run; or its record, if it is there."""
        told = f"{name}, seed {seed}" + (
            f", learning rate {self.bench.rates[name]:g}" if name in self.bench.rates else ""
        )
        if (record := self.found(name, seed)) is not None:
            self.say(f"{told}: there already")
            return record
        self.say(told)
        into = self.folder.make_room(name, seed)
        record = {"method": name, "seed": seed, "settings": self.settings(name, seed), "made": self.made[seed]}
        record |= {"code": code(), **self._run(name, seed, into)}
        if "error" in record:
            kind = DivergenceError if record["diverged"] else InputError
            raise kind(f"{name}, seed {seed}: {record['error']}")
        self.folder.keep(record)
        return record

    def stop(self) -> None:
        """End the processes that run, and start no more."""
        with self._starting:
            self._stopped.set()
            for process in self._processes:
                process.terminate()

    def _run(self, name: str, seed: int, into: Path) -> dict[str, Any]:
        job = {"bench": self.bench.record(), "name": name, "seed": seed, "folder": str(into), "parent": os.getpid()}
        job |= {"edits": self.edits}
        command = [sys.executable, "-c", "from intarsia.study.runs import child; child()"]
        with tempfile.TemporaryFile("w+") as complaints:
            with self._starting:
                if self._stopped.is_set():
                    raise KeyboardInterrupt
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=None if self.bars else complaints,
                    text=True,
                )
                self._processes.append(process)
            with process:
                assert process.stdin is not None and process.stdout is not None
                with suppress(BrokenPipeError):  # it has ended already; its code says why
                    process.stdin.write(json.dumps(job) + "\n")
                    process.stdin.flush()
                out = process.stdout.read()  # its standard input stays open: when that ends, the run does too
                code_of = process.wait()
                with suppress(BrokenPipeError):
                    process.stdin.close()
            complaints.seek(0)
            complaint = complaints.read()
        if code_of < 0:
            raise InputError(
                f"{name}, seed {seed}: its process was killed by signal {-code_of}, perhaps for its memory: "
                "use fewer --jobs or a smaller --batch-size"
            )
        if code_of:
            raise RuntimeError(f"{name}, seed {seed}: its process ended with {code_of}\n{complaint}")
        return json.loads(out)


def together(runs: Runs, work: Sequence[Callable[[], Found]], jobs: int) -> list[Found]:
    """What runs give, so many at once, in order; if one fails, the others are ended and no more are started.

    Raises:
        Exception: what the first of them raises.
    """
    with ThreadPoolExecutor(jobs) as workers:
        try:
            return [_result(future) for future in [workers.submit(one) for one in work]]
        except BaseException as stop:
            workers.shutdown(wait=False, cancel_futures=True)
            runs.stop()
            if isinstance(stop, KeyboardInterrupt):
                stop.args = (f"runs that ended are in {runs.folder.path}; the same command goes on from there",)
            raise


def _result(future: "Future[Found]") -> Found:
    """Of a run, in short waits: a signal that comes just before one, or to another thread, does not end it."""
    while not future.done():
        wait([future], WAKES)
    return future.result()


def child() -> None:
    """One run: a job as a line of JSON on standard input, what was measured as JSON on standard output.

    It ends when its parent does, however that is ended: by the system where it is Linux, and anywhere by watching
    standard input, which the parent holds open.
    """
    job = json.loads(sys.stdin.readline())
    _end_with(job["parent"])
    bench = Bench.from_record(job["bench"])
    try:
        with shown() as progress:
            found = measure(
                bench, job["name"], job["seed"], Path(job["folder"]), progress, edits=job.get("edits", True)
            )
    except InputError as error:
        found = {"error": str(error), "diverged": isinstance(error, DivergenceError)}
    print(json.dumps(found))


def _end_with(parent: int) -> None:
    """Let this process end when its parent does."""
    if sys.platform == "linux" and (prctl := getattr(ctypes.CDLL(None), "prctl", None)):
        prctl(DIE_WITH_PARENT, int(signal.SIGKILL))
        if os.getppid() != parent:  # it was gone before that was asked for
            os._exit(1)

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):  # beside Python's own buffer, whose lock would be held at the end
            pass
        os._exit(1)

    Thread(target=watch, daemon=True).start()


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
