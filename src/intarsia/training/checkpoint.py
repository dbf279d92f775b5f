"""A checkpoint: what a run needs to go on from its last epoch border, and end as if it had never been stopped.

    .run/run.json            what was asked for: settings, adapter, backbone, stream, and the tasks there were before
    .run/epoch.safetensors   of the task being learned: adapter parameters, head, optimizer, generator, after an epoch
    .run/fisher.safetensors  the running Fisher the run began with, where all tasks' Fishers are taken first
    .run/reference.safetensors  the reference heads it began with, likewise
    .run/engine/             what workers have given back, of a run that has some (``engines.staging``)

Nothing random is carried from task to task, and steps 1 to 4 of a task are a function of its images, its place and what
the pool holds: they are done again, and come out the same to the bit. What can not be had again is training.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from intarsia.adapters.attachment import Attachment
from intarsia.curvature.protocol import Curvature
from intarsia.errors import InputError
from intarsia.heads.head import Head
from intarsia.heads.trained_head import RegularizedHead
from intarsia.numerics import digest
from intarsia.progress import Timings
from intarsia.store.files import load, parse_metadata, parse_tensors, read, read_json, reading, save, write_json
from intarsia.store.index import INDEX
from intarsia.store.lock import RUN
from intarsia.store.store import parse_fisher, save_fisher
from intarsia.strict_json import parse_json

ASKED, EPOCH, FISHER, REFERENCE = "run.json", "epoch.safetensors", "fisher.safetensors", "reference.safetensors"
STAGED = "engine"
TRAINING = "training"
"""The phase of a task whose seconds are kept."""


@dataclass(frozen=True)
class Trained:
    """What changes while a task is trained.

    Args:
        adapter: its parameters.
        head: of the task's classes.
        optimizer: of both.
        generator: of the images' order and augmentation.
        losses: sum over the images of each epoch.
        timings: of the task; its phase ``TRAINING`` is running.
    """

    adapter: Attachment
    head: RegularizedHead
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    losses: list[float]
    timings: Timings

    def tensors(self) -> dict[str, Tensor]:
        """All of it but losses and seconds."""
        moments = {
            f"optimizer.{index}.{name}": value
            for index, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        parameters = {f"parameter.{name}": value for name, value in self.adapter.state().items()}
        head = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        return {**moments, **parameters, **head, "generator": self.generator.get_state()}

    def restore(self, tensors: Mapping[str, Tensor], losses: list[float], seconds: float) -> None:
        """The inverse of ``tensors``; training took so many seconds until then."""
        self.adapter.load(_under("parameter", tensors))
        self.head.load_state_dict(_under("head", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        of: list[Tensor] = [p.detach() for group in self.optimizer.param_groups for p in group["params"]]
        for name, value in _under("optimizer", tensors).items():
            index, _, what = name.partition(".")
            like = of[int(index)]  # a fused kernel takes no other strides than the parameter's
            moved = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
            moments.setdefault(int(index), {})[what] = moved
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.generator.set_state(tensors["generator"])
        self.losses[:] = losses
        self.timings.seconds[TRAINING] = seconds


@dataclass(frozen=True)
class Checkpoint:
    """The unfinished run of a pool.

    Args:
        folder: ``<pool>/.run``.
        each_epoch: keep what training needs at every epoch border; else a run goes on from its last whole task.
        writes: else it is only read.
    """

    folder: Path
    each_epoch: bool = True
    writes: bool = True

    @classmethod
    def of(cls, pool: Path) -> "Checkpoint":
        """Of the pool in a folder."""
        return cls(pool / RUN)

    @property
    def exists(self) -> bool:
        """There is a run to go on with."""
        return (self.folder / ASKED).is_file()

    @property
    def trained(self) -> bool:
        """Some of a task's training is kept, or what workers have given back."""
        return (self.folder / EPOCH).is_file() or (self.folder / STAGED).is_dir()

    def refuse(self) -> None:
        """Refuse to begin where a run was stopped.

        Raises:
            InputError: one was.
        """
        if self.exists:
            pool = self.folder.parent
            raise InputError(
                f"{pool} has a run stopped {self.where()}: `intarsia learn --resume --out {pool}` goes on, "
                f"removing {self.folder} gives it up"
            )

    def begin(self, asked: Mapping[str, Any], fisher: Curvature | None, reference: Head | None) -> None:
        """Note what a new run was asked for.

        Args:
            asked: as JSON.
            fisher: the running Fisher it begins with, if the run needs that to the end.
            reference: the reference heads it begins with, likewise.
        """
        self.end()
        if fisher is not None:
            save_fisher(fisher, self.folder / FISHER)
        if reference is not None:
            save(reference.tensors(), self.folder / REFERENCE)
        write_json(asked, self.folder / ASKED)

    def resume(self, asked: Mapping[str, Any]) -> None:
        """Refuse to go on with another run than the one that was stopped.

        Raises:
            InputError: there is none, or naming what differs.
        """
        before, now = self.asked(), json.loads(json.dumps(asked))
        for what in ("settings", "adapter", "backbone", "stream", "keep_fishers"):
            if before[what] != now[what]:
                raise InputError(
                    f"{self.folder.parent}: the run that was stopped differs in its {what}: "
                    f"{_difference(before[what], now[what])}. Resume it as it was; to give it up, remove {self.folder}"
                )

    def asked(self) -> dict[str, Any]:
        """What the run was asked for.

        Raises:
            InputError: there is none, or its record is damaged.
        """
        if not self.exists:
            raise InputError(f"{self.folder.parent} has no unfinished run: leave --resume out")
        record = read_json(self.folder / ASKED)
        with reading(self.folder / ASKED):
            if missing := {"settings", "adapter", "backbone", "stream", "keep_fishers", "before"} - record.keys():
                raise ValueError(f"nothing is said of {', '.join(sorted(missing))}")
        return record

    def fisher(self) -> Curvature | None:
        """The running Fisher the run began with, if it was kept."""
        path = self.folder / FISHER
        if not path.exists():
            return None
        data = read(path)
        with reading(path):
            return parse_fisher(data)

    def reference(self) -> Head | None:
        """The reference heads the run began with, if they were kept."""
        path = self.folder / REFERENCE
        return Head.from_tensors(load(path)) if path.exists() else None

    def save(self, task: str, epochs: int, trained: Trained) -> None:
        """What was trained of a task after so many epochs, in place of what was before.

        Raises:
            InputError: it cannot be written.
        """
        if self.each_epoch and self.writes:
            tensors = trained.tensors()
            about = {
                "task": task,
                "epochs": epochs,
                "losses": trained.losses,
                "seconds": trained.timings.so_far(TRAINING),
                "digest": digest(tensors),
            }
            save(tensors, self.folder / EPOCH, {"about": json.dumps(about)}, exact=True)

    def restore(self, task: str, trained: Trained) -> int:
        """Bring back what was trained of a task; returns after how many epochs (0: nothing was).

        Raises:
            InputError: the file is damaged.
        """
        path = self.folder / EPOCH
        if not path.exists():
            return 0
        data = read(path)
        try:
            about = parse_json(parse_metadata(data)["about"])
            if about["task"] != task:
                return 0
            tensors = parse_tensors(data)
            if digest(tensors) != about["digest"]:
                raise ValueError("its bytes have changed")
            trained.restore(tensors, about["losses"], float(about.get("seconds", 0.0)))
            return int(about["epochs"])
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{path} is damaged ({error}): remove it, and task {task!r} begins anew") from error

    def where(self) -> str:
        """The task and epoch at the last border, or what workers have given back, in words."""
        if (self.folder / STAGED).is_dir():
            return f"with {len(list((self.folder / STAGED).glob('[0-9]*')))} results of its workers kept"
        try:
            about = self._about()
            return f"in task {about['task']!r} after epoch {about['epochs']}"
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return "before the first epoch of a task"

    def losses(self) -> list[float]:
        """Mean loss over the images in each epoch of the task being learned; none where no epoch is done."""
        try:
            about = self._about()
            counts = {task["name"]: task["train"] for task in self.asked()["stream"]["tasks"]}
            return [loss / counts[about["task"]] for loss in about["losses"][: about["epochs"]]]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, InputError):
            return []

    def _about(self) -> dict[str, Any]:
        """What is noted beside the tensors of the last epoch; these are not read."""
        with safe_open(self.folder / EPOCH, "pt") as file:
            return parse_json(file.metadata()["about"].encode())

    def end(self) -> None:
        """The run is over: there is nothing to go on with. What says that there was one goes last."""
        shutil.rmtree(self.folder / STAGED, ignore_errors=True)
        for path in (*self.folder.glob(".*.new"), *(self.folder / name for name in (EPOCH, FISHER, REFERENCE, ASKED))):
            path.unlink(missing_ok=True)


@contextmanager
def stopping(pool: Path) -> Iterator[None]:
    """Where the block is interrupted, say what of a pool's run is saved and how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        checkpoint = Checkpoint.of(pool)
        if checkpoint.exists:
            count = len(read_json(pool / INDEX)["tasks"]) if (pool / INDEX).exists() else 0
            stop.args = (
                f"{count} tasks are in {pool}; the run was stopped {checkpoint.where()}: go on with `intarsia learn "
                f"--resume --out {pool}`",
            )
        raise


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is named ``<prefix>.<name>``, by name."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _difference(before: Any, now: Any) -> str:
    """Where two records first differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in (*before, *now):
            if before.get(key) != now.get(key):
                return f"{key} {before.get(key)!r}, not {now.get(key)!r}"
    return f"{before!r}, not {now!r}"
