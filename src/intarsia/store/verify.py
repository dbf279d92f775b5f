"""Verification of a pool: every file against its hash and its meaning; what is damaged, and what is lost with it.

A damaged file of a module costs that module: compositions without it work on. What is carried from task to task (the
running Fisher, the reference heads) is needed to learn further tasks, and by no composition. ``repair`` drops the
damaged modules. Classes learned later were looked up in means that had what was lost in them: from then on the heads of
all are carried from theta0 (see ``Pool.prototypes_hold``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from intarsia.errors import InputError
from intarsia.progress import Progress, silent
from intarsia.store.files import parse_tensors, reading
from intarsia.store.index import FISHER, Index
from intarsia.store.module import Module
from intarsia.store.rewrite import without
from intarsia.store.store import Store


@dataclass(frozen=True)
class Damage:
    """A file that is not what it was.

    Args:
        file: as ``pool.json`` calls it.
        found: what is wrong with it.
        lost: what cannot be done without it.
        task: whose module it is part of; None for what is carried from task to task.
    """

    file: str
    found: str
    lost: str
    task: str | None = None


def verify(store: Store, progress: Progress = silent) -> list[Damage]:
    """Read every file of a pool; once; returns what is damaged: of the pool as a whole, then task by task.

    Args:
        store: the pool.
        progress: told how many of all files were read.
    """
    index, damaged, done = store.index, list[Damage](), 0
    whose = {name: name.split("/")[1] if name.startswith("modules/") else None for name in index.files}
    for task in (None, *store.tasks):
        held: dict[str, bytes] = {}
        names = [name for name in index.files if whose[name] == task]
        for name in names:
            done += 1
            progress("files", done, len(index.files))
            try:
                data = store.read(name, again=True)
                with reading(store.path / name):
                    if name.endswith(".safetensors"):
                        parse_tensors(data)
            except InputError as error:
                damaged.append(_damage(index, name, str(error)))
            else:
                held[name.rpartition("/")[2]] = data
        if task is not None and len(held) == len(names):
            try:
                with reading(store.path / f"modules/{task}/"):
                    Module.from_files(held.__getitem__, task)
            except InputError as error:
                damaged.append(_damage(index, f"modules/{task}/", str(error)))
    return damaged


def unnamed(store: Store) -> list[str]:
    """Modules in the folder that its ``pool.json`` does not name: of a run that was stopped, or of a newer one."""
    folders = sorted(path.name for path in store.path.glob("modules/*") if not path.name.startswith("."))
    return [name for name in folders if name not in store.tasks]


def repair(store: Store, damaged: Sequence[Damage]) -> Index:
    """Drop the modules that are damaged; those of other tasks are not touched.

    Args:
        store: the pool.
        damaged: what ``verify`` found in it.

    Returns:
        The new ``pool.json``.

    Raises:
        InputError: what is damaged is no module, or nothing would be left; nothing was changed.
    """
    for damage in damaged:
        if damage.task is None:
            raise InputError(
                f"{store.path / damage.file} is part of no module, so that dropping one does not mend it: restore it. "
                f"Until then this is lost: {damage.lost}"
            )
    dropped = {damage.task for damage in damaged if damage.task and not damage.file.endswith(f"/{FISHER}")}
    if dropped.issuperset(store.tasks):
        raise InputError(
            f"{store.path}: every module is damaged, and nothing would be left without them: restore the files"
        )
    return without(store, dropped, {damage.file for damage in damaged})


def remedy(damaged: Sequence[Damage]) -> str:
    """The first of what is wrong, and what to do, in words."""
    names = ", ".join({damage.lost: None for damage in damaged if damage.task})
    return f"{damaged[0].found}{f'. --repair drops {names}' if names else ''}"


def _damage(index: Index, name: str, found: str) -> Damage:
    """A damaged file, and what is lost with it."""
    folder, _, rest = name.partition("/")
    if folder == "modules":
        task, _, file = rest.partition("/")
        return Damage(name, found, f"the {'Fisher' if file == FISHER else 'module'} of {task!r}", task)
    lost = "regularizer" if name == index.running("fisher", len(index.tasks)) else "initial heads"
    return Damage(name, found, f"learning further tasks: their {lost}")
