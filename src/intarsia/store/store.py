"""A pool's files: read checked, written whole.

    pool.json                  format, backbone, adapter, settings, order of the modules, hash and size of every file
    fisher-<T>.safetensors     running sum of the T tasks' Fishers, and the number of images
    reference-<T>.safetensors  the reference heads of all classes as they stood after the T tasks, by task
    modules/<task>/            vector, head, statistics, drift, prototypes (.safetensors) and card.json
    log.jsonl                  when and how long each task took: not part of what the pool is
    .run/                      while a run is not finished: its lock and its checkpoint

Paths of weights and images are relative to the folder where they lie below or beside it, else absolute (``locations``).

A new task's files are written beside the old ones and ``pool.json``, which names the tasks, is replaced last: a module
is in the pool whole or not at all. Who has opened a pool reads what its ``pool.json`` named then: no task that is added
changes any of it. (The running Fisher and the reference heads of the task before stay for one task more, for whoever
is about to read them.)
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from intarsia.class_stats.statistics import ClassStatistics
from intarsia.curvature import STORED
from intarsia.curvature.protocol import Curvature
from intarsia.errors import InputError
from intarsia.heads.head import Head
from intarsia.labels import check_task
from intarsia.store.card import Card
from intarsia.store.files import Known, Seen, flush, parse_metadata, parse_tensors, read, reading, save, write, writing
from intarsia.store.index import CARRIED, FISHER, INDEX, Index
from intarsia.store.module import Module, Trace
from intarsia.strict_json import parse_json

LOG = "log.jsonl"
Parsed = TypeVar("Parsed")


class Store:
    """The modules in a folder, and what is carried from task to task.

    Args:
        path: the folder.
        index: what its ``pool.json`` says, or will say once there is a module.
    """

    def __init__(self, path: Path, index: Index) -> None:
        self.path = path
        self.index = index
        self._checked: Known = {}

    @cached_property
    def _home(self) -> Path:
        """The folder, whatever links lead there."""
        return self.path.resolve()

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks in the order they were learned."""
        return self.index.tasks

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Task -> its class names."""
        return {task: self.card(task).classes for task in self.tasks}

    def card(self, task: str) -> Card:
        """The card of a task.

        Raises:
            InputError: the pool has no such task, or the file is damaged.
        """
        return self._parsed(self._of_task(task, "card.json"), lambda data: self._found(Card.from_bytes(data, task)))

    def _found(self, card: Card) -> Card:
        """A card as it is written -> with paths and names as they are today."""
        return card.found(self.path, self.index.renamed.get(card.task, {}))

    def module(self, task: str) -> Module:
        """The whole module of a task.

        Raises:
            InputError: the pool has no such task, or a file is damaged.
        """
        with reading(self.path / self._of_task(task, "")):
            module = Module.from_files(lambda name: self.read(self._of_task(task, name)), task)
            return replace(module, card=self._found(module.card))

    def trace(self, task: str) -> Trace:
        """What a composition needs of a module that it neither adds nor answers with; no other file is read.

        Raises:
            InputError: the pool has no such task, or a file is damaged.
        """
        with reading(self.path / self._of_task(task, "")):
            return Trace.from_files(lambda name: self.read(self._of_task(task, name)), task)

    def read(self, name: str, *, again: bool = False) -> bytes:
        """What a file of the pool holds, as it was written.

        Args:
            name: as ``pool.json`` calls it.
            again: hash it, though it was hashed before and its size and time of change are what they were.

        Raises:
            InputError: it is missing, damaged, or lies outside the pool's folder.
        """
        path = self.path / name
        if not path.resolve().is_relative_to(self._home):
            raise InputError(f"{path} leads out of the pool, to {path.resolve()}: put the file itself there")
        if not path.exists() and Index.read(self.path).files.keys() != self.index.files.keys():
            raise InputError(f"{path} is gone: the pool has changed since it was opened; open it again")
        return read(path, self.index.files[name], known=None if again else self._checked)

    def fisher(self, task: str | None = None) -> Curvature | None:
        """The running Fisher of all tasks, or the Fisher of one where it was kept (None where it was not)."""
        name = self.index.running("fisher", len(self.tasks)) if task is None else self._of_task(task, FISHER)
        if name not in self.index.files:
            return None
        return self._parsed(name, parse_fisher)

    def reference(self) -> Head | None:
        """The reference heads of all classes as they stood after the last task, which a further one is learned on.

        None for an empty pool. No composition needs them.
        """
        return Head.join([*self.references().values()]) if self.tasks else None

    def references(self) -> dict[str, Head]:
        """The same, task by task."""

        def parse(data: bytes) -> dict[str, Head]:
            found = parse_tensors(data)
            return {task: Head(found[f"{task}.weight"], found[f"{task}.bias"]) for task in self.tasks}

        return self._parsed(self.index.running("reference", len(self.tasks)), parse)

    def statistics(self, tasks: Iterable[str] | None = None) -> tuple[ClassStatistics, ...]:
        """The class statistics of some tasks, in the order given; of every task as learned if None."""
        names = [self._of_task(task, "statistics.safetensors") for task in (self.tasks if tasks is None else tasks)]
        return tuple(
            self._parsed(name, lambda data: ClassStatistics.from_tensors(parse_tensors(data))) for name in names
        )

    def _parsed(self, name: str, parse: Callable[[bytes], Parsed]) -> Parsed:
        """A file of the pool, and what it says."""
        data = self.read(name)
        with reading(self.path / name):
            return parse(data)

    def logged(self) -> dict[str, dict[str, Any]]:
        """Task -> its line of ``log.jsonl``, of the tasks that have one.

        Raises:
            InputError: the file is damaged.
        """
        path = self.path / LOG
        lines = read(path).splitlines() if path.exists() else []
        with reading(path):
            entries = {entry["task"]: entry for entry in map(parse_json, lines)}
        return {task: entries[task] for task in self.tasks if task in entries}

    # Writing

    def add(self, module: Module, fisher: Curvature, reference: Head, *, own_fisher: Curvature | None = None) -> None:
        """Add a module: it is in the pool whole when this returns, and not at all if it raises.

        Args:
            module: the new one.
            fisher: running sum with this task's.
            reference: reference heads of all classes, this task's included.
            own_fisher: this task's alone, to keep it.

        Raises:
            InputError: a task of that name, or one of its classes, is in the pool already.
        """
        task, count = module.card.task, len(self.tasks)
        self.check_new(task, module.card.classes)
        classes = {**self.classes, task: module.card.classes}
        rows = zip(classes, reference.split([len(names) for names in classes.values()]), strict=True)
        running, aligned = (self.index.running(name, count + 1) for name in CARRIED)
        with writing(self.path):
            try:
                new = self._write_module(module, own_fisher)
                new[running] = save_fisher(fisher, self.path / running)
                new[aligned] = save_heads(dict(rows), self.path / aligned)
                index = self.index.with_task(task, new)
                index.write(self.path)
            except BaseException:
                if not self._named(task):  # else it is in, whatever came after
                    self.discard(f"modules/{task}", running, aligned)
                raise
        self.index = index
        self._discard_old()

    def _write_module(self, module: Module, own_fisher: Curvature | None) -> dict[str, Seen]:
        """The folder of a module, written beside and renamed into place; returns what its files hold."""
        name = f"modules/{module.card.task}"
        folder, fresh = self.path / name, self.path / "modules" / f".{module.card.task}.new"
        self.discard(name, f"modules/{fresh.name}")  # of a run that died before pool.json named it
        try:
            seen = replace(module, card=module.card.kept(self.path)).write(fresh)
            if own_fisher is not None:
                seen[FISHER] = save_fisher(own_fisher, fresh / FISHER)
            fresh.rename(folder)
        except BaseException:
            self.discard(f"modules/{fresh.name}")
            raise
        flush(folder.parent)
        return {f"{name}/{file}": what for file, what in seen.items()}

    def tidy(self) -> None:
        """Remove what a writer that died was writing, or had not yet removed."""
        found = (*self.path.glob(".*.new"), *self.path.glob("modules/.*.new"))
        self.discard(*(path.relative_to(self.path).as_posix() for path in found))
        self._discard_old()

    def _discard_old(self) -> None:
        """All that was carried to earlier tasks, but to the one before, which who has opened the pool may read yet."""
        for name in CARRIED:
            recent = [self.index.running(name, count) for count in (len(self.tasks), len(self.tasks) - 1)]
            self.discard(*(old.name for old in self.path.glob(f"{name}-*.safetensors") if old.name not in recent))

    def _named(self, task: str) -> bool:
        """The ``pool.json`` on the disk has it."""
        return (self.path / INDEX).exists() and task in Index.read(self.path).tasks

    def discard(self, *names: str) -> None:
        """Remove files and folders that ``pool.json`` does not name, if they are there."""
        for path in (self.path / name for name in names):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def log(self, entry: Mapping[str, Any]) -> None:
        """Add a line to ``log.jsonl``."""
        path = self.path / LOG
        before = path.read_bytes() if path.exists() else b""
        with writing(path):
            self.path.mkdir(parents=True, exist_ok=True)
        write(before + json.dumps(entry).encode() + b"\n", path)

    def next_number(self) -> int:
        """The number after the highest of ``task01``, ``task02``, ..., of tasks that are there or were dropped."""
        names = [*self.tasks, *self.index.lost]
        return 1 + max((int(n[4:]) for n in names if n.startswith("task") and n[4:].isdecimal()), default=0)

    def check_new(self, task: str, classes: Sequence[str]) -> None:
        """Refuse a task the pool has, or a class one of its tasks has.

        Raises:
            InputError: naming it.
        """
        if task in self.tasks:
            raise InputError(
                f"task {task!r} is in the pool already: name the new tasks of the stream with --only, or name them "
                "with --split"
            )
        if alike := [other for other in self.tasks if other.casefold() == task.casefold()]:
            raise InputError(
                f"task {task!r} and {alike[0]!r} of the pool differ in capitals only, which is one folder on some "
                "systems: name it otherwise with --split"
            )
        for other, names in self.classes.items():
            for name in classes:
                if name in names:
                    raise InputError(
                        f"class {name!r} of task {task!r} is in the pool already, in task {other!r}, and a class is "
                        f"learned once: leave it out (--split, --only), give its folder another name if it is another "
                        f"class, or drop {other!r} and learn it again with all images"
                    )

    def _of_task(self, task: str, name: str) -> str:
        """A file of a task's module, as ``pool.json`` calls it."""
        check_task(task, self.tasks)
        return f"modules/{task}/{name}"


def save_fisher(fisher: Curvature, path: Path) -> Seen:
    """Write a curvature's sums, and beside them its number of images and its kind: in one text, for equal bytes."""
    return save(fisher.tensors(), path, {"count": f"{fisher.count} {fisher.kind}".removesuffix(" diagonal")})


def save_heads(heads: Mapping[str, Head], path: Path) -> Seen:
    """Write heads by task."""
    return save({f"{task}.{key}": value for task, h in heads.items() for key, value in h.tensors().items()}, path)


def parse_fisher(data: bytes) -> Curvature:
    """The inverse of ``save_fisher``, from the file's bytes."""
    count, _, name = parse_metadata(data)["count"].partition(" ")
    kind = STORED.get(name or "diagonal")
    if kind is None:
        raise ValueError(f"a curvature of kind {name!r}, expected {' or '.join(STORED)}")
    return kind.from_tensors(parse_tensors(data), int(count))
