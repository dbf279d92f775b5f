"""Measurements that are kept as they are made: a run that is stopped goes on where it was, one asked again is read."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from intarsia.data.fingerprint import fingerprint
from intarsia.data.stream import TaskStream
from intarsia.errors import InputError
from intarsia.machine import code
from intarsia.pool import Pool
from intarsia.store.files import read_json, write_json, writing

Measured = TypeVar("Measured")
Keep = Callable[[str, Callable[[], Any]], Any]
"""(name, how to measure) -> what was measured, as JSON has it: now, or before under that name."""


def fresh(name: str, measure: Callable[[], Measured]) -> Measured:
    """Measured now, and not kept."""
    return measure()


def under(keep: Keep, of: str) -> Keep:
    """The same, for a part: its names are ``<of>: <name>``."""
    return lambda name, measure: keep(f"{of}: {name}", measure)


class Kept:
    """What was measured of one pool on one stream, in a JSON file; written anew with every measurement.

    Args:
        path: of the file. One that is damaged, or of another pool, stream or code, is begun anew.
        pool: what is measured.
        stream: on what.
    """

    def __init__(self, path: Path, pool: Pool, stream: TaskStream) -> None:
        self._path = path
        self._of = identity(pool, stream)
        self._rows: dict[str, Any] = {}
        with suppress(InputError):
            record = read_json(path)
            if isinstance(record, Mapping) and record.get("of") == self._of:
                self._rows = dict(record.get("rows", {}))

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """What is kept under the name; measured, and kept, if nothing is.

        Raises:
            InputError: the file cannot be written.
        """
        if name not in self._rows:
            self._rows[name] = measure()
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json({"of": self._of, "rows": self._rows}, self._path)
        return self._rows[name]


def identity(pool: Pool, stream: TaskStream) -> dict[str, Any]:
    """Everything that decides about what is measured of a pool: its files, its backbone, the images, the code."""
    files = "".join(f"{name} {seen.sha256}\n" for name, seen in sorted(pool.index.files.items()))
    return {
        "pool": hashlib.sha256(files.encode()).hexdigest(),
        "tasks": list(pool.tasks),
        "backbone": pool.backbone.hash,
        "images": fingerprint(stream, pool.backbone.preprocessing),
        "device": pool.backbone.device.type,
        "code": code()["sources"],
    }
