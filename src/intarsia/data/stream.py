"""Images -> tasks: which images are to train and which to test, and which classes make a task.

A `TaskStream` is a sequence of `Task`s with disjoint classes, made of a built-in data set, a folder or arrays.

Convention: labels are positions in the task's own `classes`; images are uint8 `(N, C, R, R)`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from intarsia.backbones.locations import absolute
from intarsia.backbones.preprocessing import Preprocessing
from intarsia.data.augmentation import check_augmentation
from intarsia.data.choices import DEFAULT_STREAM, Augmentation
from intarsia.data.image_set import ImageSet, Labelled, checked
from intarsia.data.pixels import Storage
from intarsia.data.sources.arrays import of_arrays
from intarsia.data.sources.source import Asked, Side
from intarsia.data.sources.table import open_source
from intarsia.data.sources.tasks import Task, tasks_of
from intarsia.data.splits import Groups, Order, Split, check_arrivals, check_tasks, grouped, hold_out, read_split
from intarsia.errors import InputError
from intarsia.labels import listed, normal
from intarsia.progress import Progress, silent


@dataclass(frozen=True, eq=False)
class TaskStream(Sequence[Task]):
    """Tasks with disjoint classes, in the order in which they are learned.

    Example:
        >>> [task.name for task in TaskStream.load("sketches")][:3]
        ['animals', 'vehicles', 'food']
    """

    name: str
    tasks: tuple[Task, ...]
    augmentation: Augmentation = "none"
    """How training images are to be changed at random (`intarsia.augmentation.augment`)."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """How the stream was made: the part of `record` that the tasks themselves do not tell."""
    notes: tuple[str, ...] = ()
    """What was left out of the source, or taken in another way than it stands, in words."""
    arrivals: tuple[tuple[str, ...], ...] = ()
    """Names of tasks that become known together, in order of arrival; all at once if empty."""

    def __post_init__(self) -> None:
        check_tasks([(task.name, task.classes) for task in self.tasks])

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, which: int | str) -> Task: ...
    @overload
    def __getitem__(self, which: slice) -> tuple[Task, ...]: ...
    def __getitem__(self, which: int | str | slice) -> Task | tuple[Task, ...]:
        """A task by its position or its name."""
        if not isinstance(which, str):
            return self.tasks[which]
        for task in self.tasks:
            if task.name == which:
                return task
        raise InputError(f"There is no task {which!r}: the tasks of {self.name!r} are {listed(t.name for t in self)}.")

    def __contains__(self, which: object) -> bool:
        return any(which in (task, task.name) for task in self.tasks)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of all tasks, in order."""
        return tuple(kind for task in self.tasks for kind in task.classes)

    def groups(self) -> list[tuple[Task, ...]]:
        """The tasks that become known together, group by group."""
        arrived = {name: number for number, group in enumerate(self.arrivals) for name in group}
        return [tuple(group) for _, group in groupby(self.tasks, key=lambda task: arrived.get(task.name))]

    def record(self) -> dict[str, Any]:
        """How the stream was made and what it holds; fit for JSON.

        `TaskStream.load(**record["load"])` makes it again where it was loaded and not changed since; `records.reloaded`
        makes it again though classes were added to its source, or removed that it has not.
        """
        tasks = [
            {"name": task.name, "classes": list(task.classes), "train": len(task.train), "test": len(task.test)}
            for task in self.tasks
        ]
        return {"name": self.name, **self.origin, "augmentation": self.augmentation, "tasks": tasks}

    def source(self, *tasks: str) -> dict[str, Any]:
        """Where the images of some tasks came from (all if none is named), as JSON.

        It does not depend on the stream's other tasks: `record` without them, and without which of them were chosen.
        """
        changes = [change for change in self.origin.get("changes", []) if not change.keys() & {"subset", "arrivals"}]
        found = {"name": self.name, **self.origin, "changes": changes, "augmentation": self.augmentation}
        if "split" in found and not any("joined" in change for change in changes):
            found["split"] = {
                task.name: found["split"][task.name] for task in self.tasks if not tasks or task.name in tasks
            }
        return found

    @classmethod
    def load(
        cls,
        spec: str = DEFAULT_STREAM,
        *,
        tasks: int | None = None,
        split: str | Path | Split | None = None,
        order: Order = "fixed",
        seed: int = 0,
        test_fraction: float | None = None,
        max_per_class: int | None = None,
        augment: Augmentation | None = None,
        skip_broken: bool | None = None,
        bits: int | None = None,
        cache: str | Path | None = None,
        first_task: int | None = None,
    ) -> "TaskStream":
        """Load a stream.

        Args:
            spec: `chalk` (the default) or `sketches`, built in; `folder:<dir>`, `csv:<file>`, or `hf:<name or dir>`
                with `[@revision][?config=<name>][:<image column>,<label column>]`; see docs/data.md.
            tasks: Cut the classes into so many tasks of equal size, the first ones larger by one where that does not
                divide. Without it and without `split`: the ten themes of the built-in data sets, one task of all
                classes for a folder.
            split: The tasks by name: a mapping task -> classes, or a JSON file with one. Other classes are not used.
            order: Classes by name (built in: by theme), or in an order drawn with the seed. Named tasks stay whole.
            seed: Of that order and of the test images of a test fraction.
            test_fraction: For a folder without `train` and `test`: the part of each class that is held out to test.
            max_per_class: Use the first so many training images, and test images, of each class.
            augment: How training images are changed at random; as the source says if None.
            skip_broken: Leave out images that cannot be read; `notes` names them. Else `decode` stops at the first.
            bits: Of grey values of more than 8 bits; if None, as many as hold the largest of all training images.
            cache: Where decoded images are kept (`pixels.Storage`): auto, off, or a folder.
            first_task: Number of the first of so many `tasks`, from 1.

        Raises:
            InputError: A source, task or class that there is not or that there is twice; too few images; an image
                outside of a class. Whether a file can be read, `decode` tells.
        """
        if max_per_class is not None and max_per_class < 1:
            raise InputError(f"max_per_class is {max_per_class}: expected at least 1.")
        if bits is not None and not 8 <= bits <= 31:
            raise InputError(f"bits is {bits}: expected 8 to 31, of a grey value.")
        split = read_split(Path(split)) if isinstance(split, str | Path) else split
        source = open_source(spec, Asked(test_fraction, seed, bool(skip_broken)))
        groups = grouped(
            source.name,
            source.classes,
            source.themes,
            tasks=tasks,
            split=split,
            order=order,
            seed=seed,
            first=first_task or 1,
        )
        made = tasks_of(source, groups, max_per_class, Storage("auto" if cache is None else cache), bits)
        named = None if split is None else {task: list(kinds) for task, kinds in split.items()}
        load = {"spec": absolute(spec), "tasks": tasks, "split": named, "order": order, "seed": seed}
        load |= {"test_fraction": test_fraction, "max_per_class": max_per_class, "augment": augment}
        load |= {"skip_broken": skip_broken, "bits": made[0].train.bits, "first_task": first_task}
        origin = {"load": load, "split": {task.name: list(task.classes) for task in made}}
        kind = source.augmentation if augment is None else check_augmentation(augment)
        return cls(source.name, tuple(made), kind, origin, tuple(source.notes))

    @classmethod
    def from_arrays(
        cls,
        train: tuple[Tensor | np.ndarray, Tensor | np.ndarray],
        test: tuple[Tensor | np.ndarray, Tensor | np.ndarray],
        classes: Sequence[str],
        *,
        tasks: int | None = None,
        split: Split | None = None,
        order: Order = "fixed",
        seed: int = 0,
        name: str = "arrays",
        augmentation: Augmentation = "none",
    ) -> "TaskStream":
        """Make a stream of images in memory.

        Args:
            train: Images uint8 (N, H, W) or (N, C, H, W), and their labels (N,), positions in `classes`.
            test: The same to test.
            classes: The name of each label.
            tasks: As for `load`; without it and `split` one task.
            split: As for `load`.
            order: As for `load`.
            seed: As for `load`.
            name: Of the stream.
            augmentation: Of training images.
        """
        parts: dict[Side, Labelled] = {
            "train": checked(*train, classes, "training"),
            "test": checked(*test, classes, "test"),
        }
        source = of_arrays(name, tuple(classes), None, augmentation, parts)
        groups = grouped(name, source.classes, tasks=tasks, split=split, order=order, seed=seed)
        return cls(name, tuple(tasks_of(source, groups, None, Storage(), None)), augmentation, {"load": None})

    def decode(self, preprocessing: Preprocessing, progress: Progress = silent) -> None:
        """Decode all images now, so that a broken file is found before anything is written.

        Args:
            preprocessing: Of the backbone.
            progress: Told how many of all images are decoded.
        """
        sets = [images for task in self.tasks for images in (task.train, task.test)]
        total, done = sum(map(len, sets)), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress("decoding", done, total)

        for images in sets:
            images.check(preprocessing, advance)

    def keep_in(self, cache: str | Path) -> None:
        """Keep images that are decoded from now on there; as for `load`."""
        storage = Storage(cache)
        for task in self.tasks:
            for images in (task.train, task.test):
                images.use(storage)

    def subset(self, which: Iterable[int | str]) -> "TaskStream":
        """The stream of some tasks, by name or position, in the given order.

        Raises:
            InputError: There is no such task, or it is asked for twice, or none is.
        """
        chosen = []
        for each in which:
            try:
                chosen.append(self[normal(each) if isinstance(each, str) else each])
            except IndexError as error:
                raise InputError(f"There is no task {each}: {self.name!r} has {len(self)} tasks, from 0.") from error
        return self._changed(chosen, subset=[task.name for task in chosen])

    def arriving(self, groups: Groups) -> "TaskStream":
        """The stream whose tasks become known group by group, in that order.

        Raises:
            InputError: One is empty, or a task is not the stream's, comes twice or not at all.
        """
        named = tuple(tuple(normal(task) if isinstance(task, str) else task for task in group) for group in groups)
        check_arrivals(named, [task.name for task in self], self.name)
        changed = self._changed([self[task] for group in named for task in group], arrivals=list(map(list, named)))
        return replace(changed, arrivals=named)

    def joined(self, name: str = "all") -> "TaskStream":
        """The same images as one task of all classes, in the same order: what nothing is incremental about."""
        first = torch.tensor([0, *(len(task.classes) for task in self)]).cumsum(0).tolist()

        def side(sets: Sequence[ImageSet]) -> ImageSet:
            return ImageSet.join(sets, torch.cat([s.labels + n for s, n in zip(sets, first, strict=False)]))

        task = Task(name, self.classes, side([t.train for t in self]), side([t.test for t in self]))
        return self._changed([task], joined=name)

    def renamed(self, names: Mapping[str, str]) -> "TaskStream":
        """The same images under other class names; those that ``names`` does not have stay."""
        tasks = [replace(t, classes=tuple(names.get(kind, kind) for kind in t.classes)) for t in self.tasks]
        return self._changed(tasks, renamed=dict(names))

    def validation(self, fraction: float, seed: int) -> "TaskStream":
        """The stream with its test images replaced by a part of the training images, for choosing hyper-parameters.

        Args:
            fraction: Part of each class's training images that is held out; the rest is left to train.
            seed: Of which ones.

        Raises:
            InputError: The fraction is not between 0 and 1, or a class has fewer than three training images.
        """
        made = []
        for task in self.tasks:
            kept, held = [], []
            for label, kind in enumerate(task.classes):
                index = (task.train.labels == label).nonzero().squeeze(1)
                train, test = hold_out(len(index), fraction, f"validation/{seed}/{kind}", kind)
                kept.append(index[train])
                held.append(index[test])
            parts = (task.train.select(torch.cat(index).sort().values) for index in (kept, held))
            made.append(Task(task.name, task.classes, *parts))
        return self._changed(made, validation={"fraction": fraction, "seed": seed})

    def _changed(self, tasks: Sequence[Task], **change: Any) -> "TaskStream":
        changes = [*self.origin.get("changes", []), change]
        return replace(self, tasks=tuple(tasks), origin={**self.origin, "changes": changes})
