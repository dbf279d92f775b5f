"""Methods side by side: the same stream, backbone and budget, a process for every run, a table at the end.

A run that is in the comparison's folder already, made with the same settings, is not made again.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from threading import Event, Lock
from typing import Any

import torch
from tyro.conf import OmitArgPrefixes

from intarsia.backbones.backbone import Backbone
from intarsia.backbones.builtin import BUILTIN
from intarsia.backbones.names import TARGETS
from intarsia.console import shown
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.evaluation.editing import edit_each
from intarsia.evaluation.metrics import Scores
from intarsia.machine import machine, on_device, peak_memory
from intarsia.store.files import read_json, reading, write, write_json
from intarsia.store.index import INDEX
from intarsia.study.choice import Source
from intarsia.study.methods import METHODS, STANDARD, Method
from intarsia.study.summary import ACCURACIES, markdown
from intarsia.training.settings import Settings

MEASURES = (
    *ACCURACIES,
    "set_up_minutes",
    "training_minutes",
    "memory_mib",
    "numbers_per_task",
    "images_kept",
)


WAKES = 0.5
"""Seconds between two looks for a signal."""


@dataclass(frozen=True)
class Bench:
    """What all methods have in common: stream, backbone, budget."""

    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    backbone: str = BUILTIN
    """vit_sketch (built in), timm/<name> or timm/<name>@<weights.safetensors>."""
    targets: tuple[str, ...] = TARGETS
    """Patterns of the linear layers whose weights are tuned."""
    epochs: int = 4
    """Passes over each task's images."""
    batch_size: int = 32
    """Images a step."""
    device: str = "auto"
    """cpu, cuda, mps, or the best there is."""
    threads: int | None = None
    """Threads of torch in each run; its own choice if not given."""
    validation: float = 0.0
    """Measure on this part of the training images, held out, and never on test images; 0 for the test images."""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return json.loads(json.dumps(asdict(self), default=str))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Bench":
        """The inverse of ``record``."""
        source = dict(record["source"])
        split = source.pop("split")
        known = Source(**{**source, "only": tuple(source["only"])}, split=None if split is None else Path(split))
        return cls(**{**record, "source": known, "targets": tuple(record["targets"])})

    def theta0(self) -> Backbone:
        """The backbone, on its device."""
        return Backbone.load(self.backbone, targets=self.targets).to(on_device(self.device))

    def stream(self, seed: int) -> TaskStream:
        """The stream of a seed."""
        stream = self.source.load("sketches", seed)
        return stream.validation(self.validation, 0) if self.validation else stream


def compare(
    bench: Bench,
    methods: Sequence[str] = STANDARD,
    *,
    seeds: int = 1,
    out: str | Path,
    jobs: int = 1,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Run every method for every seed and summarise.

    Args:
        bench: stream, backbone and budget.
        methods: of ``METHODS``.
        seeds: runs of each, with seeds 0, 1, ...
        out: folder of the comparison; runs that are in it are not made again.
        jobs: runs at once; give each its share of the cores with ``bench.threads``.
        say: told what is run.

    Returns:
        A row a method, in the order asked for: means over seeds, and the standard deviations under ``spread``.

    Raises:
        InputError: an unknown method, one named twice, a count below one, a pool in the folder, or what the
            methods raise.
    """
    for place, name in enumerate(methods):
        if name not in METHODS or name in methods[:place]:
            raise InputError(f"method {name!r}: expected some of {', '.join(METHODS)}, each once")
    if not methods:
        raise InputError(f"no method is named: expected some of {', '.join(METHODS)} (--methods)")
    threads = 1 if bench.threads is None else bench.threads
    counts = {"seeds": seeds, "jobs": jobs, "threads": threads, "epochs": bench.epochs, "batch-size": bench.batch_size}
    for option, count in counts.items():
        if count < 1:
            raise InputError(f"--{option} {count}: expected 1 or more")
    folder = Path(out)
    if (folder / INDEX).exists():
        raise InputError(f"{folder} holds a pool: name another folder for the comparison with --out")
    bench.stream(0)  # what is wrong with it, or with the backbone, is said before anything runs
    bench.theta0()
    started = _Runs(bench, folder, say, bars=jobs == 1)
    with ThreadPoolExecutor(jobs) as workers:
        try:
            waiting = [workers.submit(started.once, number, name) for number in range(seeds) for name in methods]
            runs = [_result(future) for future in waiting]
        except BaseException as stop:
            workers.shutdown(wait=False, cancel_futures=True)
            started.stop()
            if isinstance(stop, KeyboardInterrupt):
                stop.args = (f"runs that ended are in {folder}; the same command goes on from there",)
            raise
    rows = [summary(name, runs[place :: len(methods)]) for place, name in enumerate(methods)]
    machines = list(dict.fromkeys(run.get("machine", "not noted") for run in runs))
    write_json({"bench": bench.record(), "machines": machines, "rows": rows}, folder / "comparison.json")
    write(markdown(rows).encode(), folder / "comparison.md")
    return rows


def summary(method: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of a method's runs, and their standard deviations; None where a measure does not exist."""
    means: dict[str, Any] = {}
    spread: dict[str, Any] = {}
    for name in MEASURES:
        values = [run[name] for run in runs]
        known = None not in values
        means[name] = mean(values) if known else None
        spread[name] = stdev(values) if known and len(values) > 1 else None
    return {"method": method, "about": METHODS[method].about, "seeds": len(runs), **means, "spread": spread}


def _result(future: Future[dict[str, Any]]) -> dict[str, Any]:
    """Of a run, in short waits: a signal that comes just before one, or to another thread, does not end it."""
    while not future.done():
        wait([future], WAKES)
    return future.result()


@dataclass(frozen=True)
class _Runs:
    """Runs, each in a process of its own.

    Args:
        bench: stream, backbone and budget.
        folder: where their records are.
        say: told what is run.
        bars: whether a run may draw progress bars.
    """

    bench: Bench
    folder: Path
    say: Callable[[str], None]
    bars: bool
    _processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _stopped: Event = field(default_factory=Event)
    _starting: Lock = field(default_factory=Lock)

    def once(self, seed: int, name: str) -> dict[str, Any]:
        """A run; or its record, if it is there."""
        method = METHODS[name]
        settings = {
            "bench": self.bench.record(),
            "training": _training(self.bench, method, seed).record(),
            "options": method.options,
        }
        path = self.folder / f"{name}-{seed}.json"
        if path.is_file():
            record = read_json(path)
            with reading(path):
                if record["settings"] == settings:
                    self.say(f"{name}, seed {seed}: there already")
                    return record
        self.say(f"{name}, seed {seed}")
        record = {"method": name, "seed": seed, "settings": settings, **self._run(name, seed)}
        if "error" in record:
            raise InputError(f"{name}, seed {seed}: {record['error']}")
        write_json(record, path)
        return record

    def stop(self) -> None:
        """End the processes that run, and start no more."""
        with self._starting:
            self._stopped.set()
            for process in self._processes:
                process.terminate()

    def _run(self, name: str, seed: int) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        job = {"bench": self.bench.record(), "name": name, "seed": seed, "folder": str(self.folder / f"{name}-{seed}")}
        command = [sys.executable, "-c", "from intarsia.study.compare import child; child()"]
        errors = None if self.bars else subprocess.PIPE
        with self._starting:
            if self._stopped.is_set():
                raise KeyboardInterrupt
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
            self._processes.append(process)
        with process:
            out, complaint = process.communicate(json.dumps(job))
        if process.returncode < 0:
            raise InputError(
                f"{name}, seed {seed}: its process was killed by signal {-process.returncode}, perhaps for its memory: "
                "use fewer --jobs or a smaller --batch-size"
            )
        if process.returncode:
            raise RuntimeError(f"{name}, seed {seed}: its process ended with {process.returncode}\n{complaint or ''}")
        return json.loads(out)


def child() -> None:
    """One run: a job as JSON on standard input, what was measured as JSON on standard output."""
    job = json.load(sys.stdin)
    try:
        found = measure(Bench.from_record(job["bench"]), job["name"], job["seed"], Path(job["folder"]))
    except InputError as error:
        found = {"error": str(error)}
    print(json.dumps(found))


def measure(bench: Bench, name: str, seed: int, folder: Path) -> dict[str, Any]:
    """Learn the stream with one method in this process, and measure it after every task.

    With seed 0 the modules of a method that has some are also specialized to and unlearned, each (``editing``).

    Args:
        bench: stream, backbone and budget.
        name: of ``METHODS``.
        seed: of everything random.
        folder: for what the method writes.
    """
    if bench.threads is not None:
        torch.set_num_threads(bench.threads)
    method, stream = METHODS[name], bench.stream(seed)
    theta0 = bench.theta0()
    scores, set_up, training, stage = Scores(stream), 0.0, 0.0, None
    edited: list[dict[str, Any]] = []
    with shown([task.name for task in stream]) as progress:
        settings = _training(bench, method, seed)
        for stage in method.baseline.train(theta0, stream, settings, folder=folder, progress=progress):
            scores.add(stage.model)
            set_up, training = set_up + stage.set_up_seconds, training + stage.training_seconds
            if stage.modules is not None and seed == 0:
                names = [task.name for task in stream]
                edited = edit_each(stage.modules, stream, names, progress=progress)
    assert stage is not None
    found = scores.evaluation()
    return {
        **found.record(),
        "set_up_minutes": set_up / 60,
        "training_minutes": training / 60,
        "memory_mib": peak_memory(),
        "numbers_per_task": stage.stored / len(stream),
        "images_kept": stage.images,
        "edits": edited,
        "backbone": theta0.hash,
        "versions": {package: version(package) for package in ("intarsia", "torch", "timm")},
        "machine": machine(theta0.device),
    }


def _training(bench: Bench, method: Method, seed: int) -> Settings:
    return replace(method.settings, epochs=bench.epochs, batch_size=bench.batch_size, seed=seed)
