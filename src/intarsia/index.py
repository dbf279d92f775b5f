"""``pool.json``: what a pool was learned with, its tasks in order, and the hash of every file."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from intarsia.adapters import Adapter
from intarsia.backbone import Backbone
from intarsia.config import adapter_record, build_adapter
from intarsia.errors import InputError
from intarsia.storage import reading

FORMAT = 4
INDEX = "pool.json"


@dataclass(frozen=True)
class Index:
    """What ``pool.json`` says.

    Args:
        backbone: name, hash, targets and preprocessing.
        adapter: as ``build_adapter`` takes it.
        settings: of the first run.
        tasks: names, in order.
        files: path in the pool -> SHA-256.
    """

    backbone: Mapping[str, Any]
    adapter: Mapping[str, Any]
    settings: Mapping[str, Any]
    tasks: tuple[str, ...] = ()
    files: Mapping[str, str] | None = None

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
        if not path.is_file():
            raise InputError(
                f"{folder} is not a pool: expected a {INDEX} in it; `intarsia learn --out {folder}` makes one"
            )
        with reading(path):
            record = json.loads(path.read_text())
            found = record.pop("format")
            if found != FORMAT:
                remedy = "learn it again" if isinstance(found, int) and found < FORMAT else "update intarsia"
                raise InputError(f"{folder}: pool format {found}, this version reads format {FORMAT}: {remedy}")
            index = cls(**{**record, "tasks": tuple(record["tasks"])})
            if missing := {"name", "hash", "targets"} - index.backbone.keys():
                raise KeyError(f"backbone without {', '.join(sorted(missing))}")
            build_adapter(**index.adapter)
        return index

    def write(self, folder: Path) -> None:
        """In place of the one before, whole or not at all."""
        beside = folder / f"{INDEX}.new"
        beside.write_text(json.dumps(self.record(), indent=1) + "\n")
        os.replace(beside, folder / INDEX)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "format": FORMAT,
            "backbone": self.backbone,
            "adapter": self.adapter,
            "settings": self.settings,
            "tasks": self.tasks,
            "files": self.files or {},
        }

    def with_task(self, task: str, *, new: Mapping[str, str], gone: str) -> "Index":
        """With one more task and its files, and without a file that they replace."""
        kept = {name: seen for name, seen in (self.files or {}).items() if name != gone}
        return replace(self, tasks=(*self.tasks, task), files={**kept, **new})

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
