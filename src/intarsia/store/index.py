"""``pool.json``: what a pool was learned with, its tasks in order, and what every file of it holds."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from intarsia.adapters.protocol import Adapter
from intarsia.adapters.records import adapter_record, build_adapter
from intarsia.backbones.backbone import Backbone
from intarsia.backbones.locations import absolute, kept
from intarsia.errors import InputError
from intarsia.labels import check_name
from intarsia.store.files import Seen, read_json, reading, write_json

FORMAT = 7


INDEX = "pool.json"
MERGED = "model.json"
"""What lies in the folder of a merged model, which is no pool."""


MODULE_FILES = (
    "prototypes.safetensors",
    "card.json",
    "drift.safetensors",
    "head.safetensors",
    "statistics.safetensors",
    "vector.safetensors",
)


FISHER = "fisher.safetensors"


CARRIED = ("fisher", "reference")
"""What is carried from task to task, a file each: see ``Index.running``."""


@dataclass(frozen=True)
class Index:
    """What ``pool.json`` says.

    Args:
        backbone: name, hash, targets and preprocessing.
        adapter: as ``build_adapter`` takes it.
        settings: of the first run.
        tasks: names, in order.
        files: path in the pool -> what it held when it was written.
        lost: tasks that were removed, or dropped by ``verify --repair``: others may have been influenced by them.
        repairs: how often tasks were dropped; part of the names of what is carried from task to task.
        renamed: task -> class as it was learned -> its name today.
    """

    backbone: Mapping[str, Any]
    adapter: Mapping[str, Any]
    settings: Mapping[str, Any]
    tasks: tuple[str, ...] = ()
    files: Mapping[str, Seen] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    repairs: int = 0
    renamed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, backbone: Backbone, adapter: Adapter, settings: Mapping[str, Any]) -> "Index":
        """Of a pool without a task."""
        about = {
            "name": backbone.name,
            "hash": backbone.hash,
            "targets": list(backbone.patterns),
            "preprocessing": backbone.preprocessing.record(),
        }
        return cls(about, adapter_record(adapter), dict(settings))

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """Of the pool in a folder.

        Raises:
            InputError: no pool is there, or it is damaged or of another format.
        """
        path = folder / INDEX
        with reading(path):
            there = path.is_file()
        if not there and (folder / MERGED).is_file():
            raise InputError(f"{folder} is a merged model, whose modules cannot be told apart: name the pool it is of")
        if not there:
            raise InputError(
                f"{folder} is not a pool: expected a {INDEX} in it; `intarsia learn --out {folder}` makes one"
            )
        record = read_json(path)
        with reading(path):
            found = record.pop("format")
            if found != FORMAT:
                remedy = "learn it again" if isinstance(found, int) and found < FORMAT else "update intarsia"
                raise InputError(f"{folder}: pool format {found}, this version reads format {FORMAT}: {remedy}")
            index = cls.from_record(record)
            try:
                index.check_names()
            except InputError as error:
                raise ValueError(str(error)) from error
        return index._located(partial(absolute, base=folder))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Index":
        """The inverse of ``record``."""
        files = {name: Seen(**seen) for name, seen in record["files"].items()}
        tasks, lost = (_names(key, record.get(key, [])) for key in ("tasks", "lost"))
        return cls(**{**record, "tasks": tasks, "files": files, "lost": lost})

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": FORMAT,
            "backbone": self.backbone,
            "adapter": self.adapter,
            "settings": self.settings,
            "tasks": self.tasks,
            "files": {name: {"sha256": seen.sha256, "size": seen.size} for name, seen in self.files.items()},
            "lost": self.lost,
            "repairs": self.repairs,
            "renamed": self.renamed,
        }

    def check_names(self) -> None:
        """Refuse what no pool says: nothing it names may lie outside its folder.

        Raises:
            ValueError: naming it.
        """
        if missing := {"name", "hash", "targets"} - self.backbone.keys():
            raise ValueError(f"backbone without {', '.join(sorted(missing))}")
        if not isinstance(self.backbone["name"], str) or not isinstance(self.backbone["hash"], str):
            raise TypeError("the backbone's name or hash is not a text")
        _names("the backbone's targets", self.backbone["targets"])
        for task, names in self.renamed.items():
            for name in (task, *names, *names.values()):
                check_name("Class", name)
        build_adapter(**self.adapter)
        for task in self.tasks:
            check_name("Task", task)
        if len({task.casefold() for task in self.tasks}) < len(self.tasks):
            raise ValueError("a task twice")
        expected = {*self.expected_files()}
        own = {f"modules/{task}/{FISHER}" for task in self.tasks}
        if strange := sorted(self.files.keys() - expected - own):
            raise ValueError(f"{strange[0]!r} is not the name of a file of this pool")
        if absent := sorted(expected - self.files.keys()):
            raise ValueError(f"nothing is said of {absent[0]!r}")
        if any(not re.fullmatch("[0-9a-f]{64}", seen.sha256) for seen in self.files.values()):
            raise ValueError("a hash that is not a SHA-256")

    def expected_files(self) -> list[str]:
        """What a pool of these tasks has on disk; their own Fishers may be there besides."""
        modules = [f"modules/{task}/{name}" for task in self.tasks for name in MODULE_FILES]
        return [*modules, *(self.carried if self.tasks else ())]

    @property
    def carried(self) -> tuple[str, ...]:
        """The files of what is carried from task to task, as it stands: the running Fisher and the reference heads."""
        return tuple(self.running(name, len(self.tasks)) for name in CARRIED)

    def running(self, name: str, tasks: int) -> str:
        """The file of what is carried from task to task, as it stood after so many tasks."""
        again = f"-{self.repairs}" if self.repairs else ""
        return f"{name}-{tasks}{again}.safetensors"

    def write(self, folder: Path) -> None:
        """In place of the one before, whole or not at all.

        Raises:
            InputError: it cannot be written.
        """
        write_json(self._located(partial(kept, folder=folder)).record(), folder / INDEX)

    def _located(self, place: Callable[[str], str]) -> "Index":
        """With the backbone's name put through ``place``: see ``locations``."""
        return replace(self, backbone={**self.backbone, "name": place(self.backbone["name"])})

    def with_task(self, task: str, new: Mapping[str, Seen]) -> "Index":
        """With one more task and its files; what was carried to it is no longer named."""
        stay = {name: seen for name, seen in self.files.items() if name not in self.carried}
        return replace(self, tasks=(*self.tasks, task), files={**stay, **new})

    def check(self, folder: Path, backbone: Backbone) -> None:
        """Refuse another backbone than the pool's.

        Raises:
            InputError: naming both.
        """
        about = self.backbone
        if about["hash"] != backbone.hash:
            raise InputError(
                f"pool {folder} was learned on backbone {about['name']} ({about['hash'][:12]}), "
                f"not on {backbone.name} ({backbone.hash[:12]}): open it with the backbone it was learned on"
            )
        if list(about["targets"]) != list(backbone.patterns):
            raise InputError(
                f"pool {folder} tunes {list(about['targets'])}, the backbone given names {list(backbone.patterns)}: "
                "load it with the pool's targets"
            )


def _names(key: str, values: Sequence[Any]) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{key} is not a list of names")
    return tuple(values)
