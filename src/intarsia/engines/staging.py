"""What workers have given back, kept in a run's folder until the run is over: a driver that dies loses none of it.

.run/engine/<number>-<what>          features, fisher, tune or place of a task, by its number
.run/engine/sha256-<number>-<what>   its hash
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from intarsia.store.files import write, writing
from intarsia.training.checkpoint import STAGED


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
            path, digest = self._paths(self.folder, number, what)
            write(write(data, path).sha256.encode(), digest)  # the hash is taken once: a Fisher is large

    def find(self, number: int, what: str) -> bytes | None:
        """A result that was kept; None where there is none, or where it is damaged: then it is made again."""
        if self.folder is None:
            return None
        path, digest = self._paths(self.folder, number, what)
        try:
            data, told = path.read_bytes(), digest.read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest().encode() == told else None

    @staticmethod
    def _paths(folder: Path, number: int, what: str) -> tuple[Path, Path]:
        """Of a result, and of its hash."""
        name = f"{number:06d}-{what}"
        return folder / name, folder / f"sha256-{name}"
