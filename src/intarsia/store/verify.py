"""Verification of a pool: every file against its hash and its meaning; what is damaged, and what is lost with it.

A damaged file of a module costs that module. What is carried from task to task (the running Fisher, the newest
reference heads) is needed to learn further tasks, and for little else. ``repair`` drops the damaged modules: the others
stay usable. Classes learned later were looked up in means that had what was lost in them: from then on the heads of all
are carried from theta0 (see ``Pool.anchors_hold``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from intarsia.errors import InputError
from intarsia.heads.head import Head
from intarsia.progress import Progress, silent
from intarsia.store.files import parse_tensors, reading, save, write
from intarsia.store.index import FISHER, MODULE_FILES, Index
from intarsia.store.lock import one_writer
from intarsia.store.module import Module
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
                data = store.read(name)
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

    ``pool.json`` is replaced in one step, after everything it names is there: until then the pool is as it was.

    Args:
        store: the pool.
        damaged: what ``verify`` found in it.

    Returns:
        The new ``pool.json``.

    Raises:
        InputError: what is damaged is no module, or nothing would be left; nothing was changed.
    """
    before, path = store.index, store.path
    dropped = {damage.task for damage in damaged if damage.task and not damage.file.endswith(f"/{FISHER}")}
    kept = tuple(task for task in before.tasks if task not in dropped)
    for damage in damaged:
        if damage.task is None:
            raise InputError(
                f"{path / damage.file} is part of no module, so that dropping one does not mend it: restore it. Until "
                f"then this is lost: {damage.lost}"
            )
    if not kept:
        raise InputError(f"{path}: every module is damaged, and nothing would be left without them: restore the files")
    with one_writer(path):
        if Index.read(path) != before:
            raise InputError(f"{path} has changed since it was verified: verify it again")
        lost = (*before.lost, *(task for task in before.tasks if task in dropped))
        after = replace(before, tasks=kept, lost=lost, repairs=before.repairs + 1)
        names = [f"modules/{task}/{name}" for task in kept for name in (*MODULE_FILES, FISHER)]
        broken = {damage.file for damage in damaged}
        files = {name: before.files[name] for name in names if name in before.files and name not in broken}
        for count, head in enumerate(_references(store, kept), start=1):
            name = after.running("reference", count)
            files[name] = save(head.tensors(), path / name)
        name = after.running("fisher", len(kept))
        files[name] = write(store.read(before.running("fisher", len(before.tasks))), path / name)
        after = replace(after, files=files)
        after.write(path)
        store.discard(*(name for name in before.files if name not in files), *(f"modules/{task}" for task in dropped))
    return after


def remedy(damaged: Sequence[Damage]) -> str:
    """The first of what is wrong, and what to do, in words."""
    names = ", ".join({damage.lost: None for damage in damaged if damage.task})
    return f"{damaged[0].found}{f'. --repair drops {names}' if names else ''}"


def _references(store: Store, kept: Sequence[str]) -> Iterator[Head]:
    """The reference heads after each task that is kept, without the rows of those that are not.

    How many classes a task has is read off the heads themselves: its card may be what is damaged.
    """
    sizes: list[int] = []
    for count, task in enumerate(store.tasks, start=1):
        head = store.reference(count)
        assert head is not None
        sizes.append(len(head) - sum(sizes))
        if task in kept:
            rows = zip(store.tasks[:count], head.split(sizes), strict=True)
            yield Head.join([part for name, part in rows if name in kept])


def _damage(index: Index, name: str, found: str) -> Damage:
    """A damaged file, and what is lost with it."""
    folder, _, rest = name.partition("/")
    if folder == "modules":
        task, _, file = rest.partition("/")
        return Damage(name, found, f"the {'Fisher' if file == FISHER else 'module'} of {task!r}", task)
    if name == index.running("fisher", len(index.tasks)):
        return Damage(name, found, "learning further tasks: their regularizer")
    if name == index.running("reference", len(index.tasks)):
        return Damage(name, found, "learning further tasks, and heads='aligned'")
    return Damage(name, found, "heads='aligned' in the accuracy after earlier tasks")
