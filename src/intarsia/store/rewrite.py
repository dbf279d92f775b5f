"""Changes of a pool that is there: modules removed for good, classes renamed.

``pool.json`` is replaced in one step, after everything it names is there: until then the pool is as it was. What it no
longer names goes last.
"""

from collections.abc import Collection
from dataclasses import replace

from intarsia.errors import InputError
from intarsia.labels import check_name, check_task, listed
from intarsia.store.files import write
from intarsia.store.index import CARRIED, FISHER, MODULE_FILES, Index
from intarsia.store.lock import RUN, one_writer
from intarsia.store.store import Store, save_heads


def without(store: Store, dropped: Collection[str], broken: Collection[str] = ()) -> Index:
    """Write a pool again without some of its modules; those of other tasks are not touched.

    Args:
        store: the pool.
        dropped: tasks.
        broken: files, as ``pool.json`` calls them, that go too: Fishers that modules kept.

    Returns:
        The new ``pool.json``.

    Raises:
        InputError: nothing would be left, the pool has changed since it was opened, or what is carried from task to
            task is damaged; nothing was changed.
    """
    before, path = store.index, store.path
    stay = tuple(task for task in before.tasks if task not in dropped)
    if not stay:
        raise InputError(f"{path}: nothing would be left without {listed(before.tasks)}: remove the folder instead")
    with one_writer(path):
        _check_as_opened(store)
        lost = (*before.lost, *(task for task in before.tasks if task in dropped))
        renamed = {task: names for task, names in before.renamed.items() if task in stay}
        after = replace(before, tasks=stay, lost=lost, repairs=before.repairs + 1, renamed=renamed)
        names = [f"modules/{task}/{name}" for task in stay for name in (*MODULE_FILES, FISHER)]
        files = {name: before.files[name] for name in names if name in before.files and name not in broken}
        heads = store.references()
        fisher, reference = (after.running(name, len(stay)) for name in CARRIED)
        files[reference] = save_heads({task: heads[task] for task in stay}, path / reference)
        files[fisher] = write(store.read(before.running("fisher", len(before.tasks))), path / fisher)
        after = replace(after, files=files)
        after.write(path)
        store.discard(*(name for name in before.files if name not in files), *(f"modules/{task}" for task in dropped))
    return after


def remove(store: Store, task: str) -> Index:
    """Delete a module for good: its vector, head, statistics and card.

    What other modules saw of it while they were learned stays in them (``Pool.influenced_by``), and the running Fisher,
    which regularizes tasks learned later, is a sum that it is part of.

    Raises:
        InputError: the pool has no such task, nothing would be left, a run is not finished, or see ``without``.
    """
    check_task(task, store.tasks)
    if (store.path / RUN / "run.json").exists():
        raise InputError(
            f"{store.path} has a run that was stopped: finish it with `intarsia learn --resume --out {store.path}`, or "
            f"give it up by removing {store.path / RUN}; then remove {task!r}"
        )
    return without(store, [task])


def rename(store: Store, old: str, new: str) -> Index:
    """Give a class another name: what models answer, and what is listed.

    Its images are found under the name it was learned by, which ``pool.json`` keeps beside today's; no module is
    written again.

    Raises:
        InputError: the pool has no such class, or has one of the new name; or the name is no good.
    """
    check_name("Class", new)
    owner = {name: task for task, names in store.classes.items() for name in names}
    if old not in owner:
        raise InputError(f"unknown class {old!r}: the pool has {listed(owner)}")
    if new in owner:
        raise InputError(f"class {new!r} is in the pool already, in task {owner[new]!r}: expected a new name")
    with one_writer(store.path):
        _check_as_opened(store)
        task = owner[old]
        names = dict(store.index.renamed.get(task, {}))
        learned = next((name for name, today in names.items() if today == old), old)
        names.pop(learned, None)
        if new != learned:
            names[learned] = new
        after = replace(store.index, renamed={t: n for t, n in {**store.index.renamed, task: names}.items() if n})
        after.write(store.path)
    return after


def _check_as_opened(store: Store) -> None:
    if Index.read(store.path) != store.index:
        raise InputError(f"{store.path} has changed since it was opened: open it again")
