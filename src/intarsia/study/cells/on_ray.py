"""Runs of a comparison on Ray, each in a worker that ends with it."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock
from typing import Any

from intarsia.backbones.torchvision_guard import import_torchvision
from intarsia.engines.ray import Ray
from intarsia.engines.session import TRIES, WAKES, library, result_of
from intarsia.errors import InputError
from intarsia.study.bench import Bench
from intarsia.study.folder import BENCH
from intarsia.study.runs import attempt


def on_ray(bench: Bench, engine: Ray) -> tuple[Bench, Ray]:
    """A bench and an engine that agree: a thread for each worker if nothing is said, on a GPU if it is given one.

    Raises:
        InputError: Ray is not installed.
    """
    library()
    engine = replace(engine, threads=bench.threads or engine.threads)
    device = "cuda" if engine.gpus_per_worker else "cpu"
    return replace(bench, threads=engine.threads, device=device if bench.device == "auto" else bench.device), engine


@dataclass(frozen=True)
class RayCells:
    """Workers of Ray.

    Args:
        ray: the library, initialized.
        needs: of each run, as Ray's options.
    """

    ray: Any
    needs: dict[str, float]
    _running: list[Any] = field(default_factory=list)
    _stopped: Event = field(default_factory=Event)
    _starting: Lock = field(default_factory=Lock)

    def run(self, bench: Bench, name: str, seed: int, into: Path, *, edits: bool) -> dict[str, Any]:
        """See ``Cells``. A run whose worker died is tried again, and goes on if it can."""
        call = self.ray.remote(max_calls=1, max_retries=TRIES, **self.needs)(cell)  # 1: memory is measured of a process
        with self._starting:
            if self._stopped.is_set():
                raise KeyboardInterrupt
            reference = call.remote(bench.absolute().record(), name, seed, str(into.resolve()), edits)
            self._running.append(reference)
        while not self.ray.wait([reference], timeout=WAKES)[0]:
            if self._stopped.is_set():
                raise KeyboardInterrupt
        try:
            return result_of(self.ray, reference)
        except InputError as error:
            raise InputError(f"{name}, seed {seed}: {error}") from error

    def stop(self) -> None:
        """See ``Cells``."""
        with self._starting:
            self._stopped.set()
            for reference in self._running:
                self.ray.cancel(reference, force=True)


def cell(record: dict[str, Any], name: str, seed: int, into: str, edits: bool) -> dict[str, Any]:
    """One run in a worker; bad input is given back, and not raised: Ray would dress it in its traceback.

    Args:
        record: of the bench, its paths absolute.
        name: of the method.
        seed: of everything random.
        into: folder for what the method writes.
        edits: whether the modules of seed 0 are edited.
    """
    import_torchvision()  # before a network of timm is read
    if not ((folder := Path(into).parent) / BENCH).is_file():
        told = f"a worker does not see {folder}: name a folder that all machines share with --out"
        return {"error": told, "diverged": False}
    return attempt(Bench.from_record(record), name, seed, Path(into), edits=edits)
