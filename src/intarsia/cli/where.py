"""What the verbs on a pool read: the pool or merged model, its backbone, its images, from where they are today."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intarsia.cli.options import Selection
from intarsia.errors import InputError
from intarsia.labels import listed
from intarsia.study.choice import Source

if TYPE_CHECKING:
    from intarsia.data.stream import TaskStream
    from intarsia.merging.model import ComposedModel
    from intarsia.pool import Pool


@dataclass(frozen=True)
class Where:
    """Where theta0 and the images are, if not where the pool says."""

    backbone: str | None = None
    """The backbone, if its weights are not where the pool says: timm/<name>@<weights.safetensors>."""
    task_data: tuple[str, ...] = ()
    """Where the images of single tasks are today: task=folder:<dir>. The same images are used as before."""

    def pool(self, path: Path, device: str) -> Pool:
        """A pool whose backbone is on a device.

        Raises:
            InputError: see ``Pool.open``.
        """
        from intarsia.machine import on_device
        from intarsia.pool import Pool

        there = on_device(device)  # the shorter look first
        pool = Pool.open(path, self.backbone)
        pool.backbone.to(there)
        return pool

    def stream(self, source: Source, pool: Pool, tasks: Sequence[str]) -> TaskStream:
        """The images of some tasks of a pool: as named, or where its cards and ``task_data`` say."""
        if source.chooses:
            self._alone(source)
            return pool.relabelled(source.of(pool))
        return self.recorded({task: pool.card(task).stream for task in tasks}, source.cache)

    def recorded(self, sources: Mapping[str, Mapping[str, Any]], cache: str | None = None) -> TaskStream:
        """Tasks loaded again from where they were, or from where ``task_data`` says."""
        from intarsia.data.records import gathered
        from intarsia.store.card import located

        moved: dict[str, str] = {}
        for entry in self.task_data:
            owner = max((task for task in sources if entry.startswith(f"{task}=")), key=len, default=None)
            if owner is None:
                raise InputError(f"--task-data {entry}: expected task=source with a task of {listed(sources)}")
            moved[owner] = entry.removeprefix(f"{owner}=")
        there = {task: located(s, lambda spec, task=task: moved.get(task, spec)) for task, s in sources.items()}
        return gathered(there, cache)

    def _alone(self, source: Source) -> None:
        if source.data is not None and self.task_data:
            raise InputError("--data and --task-data together: expected one of them")


def merged_model(folder: Path, selection: Selection, where: Where, device: str) -> ComposedModel:
    """A merged model, of which nothing can be chosen any more."""
    from intarsia.machine import on_device
    from intarsia.merging.model import ComposedModel

    given = [f"--{f.name}" for f in fields(Selection) if getattr(selection, f.name) != getattr(Selection(), f.name)]
    if where.backbone is not None:
        given.append("--backbone")
    if given:
        raise InputError(
            f"{' and '.join(given)} with {folder}, a composed model, which is fixed: name the pool instead"
        )
    return ComposedModel.load(folder).to(on_device(device))


def found_images(named: Sequence[Path]) -> list[Path]:
    """Image files as named, and those in the folders named and below; hidden ones and other files are left out.

    Raises:
        InputError: a folder has none.
    """
    from intarsia.data.files import is_image

    found: list[Path] = []
    for path in named:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [p for p in sorted(path.rglob("*")) if is_image(p) and not p.name.startswith(".") and p.is_file()]
        if not inside:
            raise InputError(f"{path} has no images in it or below: expected .png, .jpg or alike")
        found += inside
    return found


def is_model(folder: Path) -> bool:
    """Whether a merged model lies there, and no pool."""
    from intarsia.store.index import INDEX, MERGED

    with suppress(PermissionError):  # of which opening the pool says more
        return not (folder / INDEX).exists() and (folder / MERGED).exists()
    return False
