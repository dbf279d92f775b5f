"""What workers have given back, kept in a run's folder until the run is over: a driver that dies loses none of it.

.run/engine/<number>-<what>   SHA-256, and the bytes: features, fisher, tune or place of a task, by its number
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from intarsia.store.files import write, writing
from intarsia.training.checkpoint import STAGED

DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Staging:
    """Results by task and step.

    Args:
        folder: where they are; None: nowhere.
    """

    folder: Path | None

    @classmethod
    def of(cls, run: Path | None) -> "Staging":
        """Of a run's folder."""
        return cls(None if run is None else run / STAGED)

    def keep(self, number: int, what: str, data: bytes) -> None:
        """Keep a result.

        Raises:
            InputError: it cannot be written.
        """
        if self.folder is not None:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            write(hashlib.sha256(data).digest() + data, self._path(self.folder, number, what))

    def find(self, number: int, what: str) -> bytes | None:
        """A result that was kept; None where there is none, or where it is damaged: then it is made again."""
        if self.folder is None:
            return None
        try:
            whole = self._path(self.folder, number, what).read_bytes()
        except OSError:
            return None
        data = whole[DIGEST:]
        return data if hashlib.sha256(data).digest() == whole[:DIGEST] else None

    @staticmethod
    def _path(folder: Path, number: int, what: str) -> Path:
        return folder / f"{number:06d}-{what}"
