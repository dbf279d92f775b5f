"""Splits: which classes make a task, and which images of a class are held out.

Orders and held-out images are drawn by hashing the seed with the position: the same on every machine and version, and
one class's part does not depend on which other classes there are.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from intarsia.errors import InputError
from intarsia.labels import check_name, listed, normal
from intarsia.strict_json import LARGEST_JSON, parse_json

Order = Literal["fixed", "shuffled"]


Split = Mapping[str, Sequence[str]]
Groups = Sequence[Sequence[str]]
"""Names of tasks that become known together, in order of arrival."""
GROUPS = '[["birds", "cars"], ["music"], ...]'


def grouped(
    name: str,
    classes: Sequence[str],
    themes: Split | None = None,
    *,
    tasks: int | None = None,
    split: Split | None = None,
    order: Order = "fixed",
    seed: int = 0,
    first: int = 1,
) -> Split:
    """Make tasks of classes.

    Args:
        name: Of what has the classes; also of the one task if nothing else is said.
        classes: All of them, in their natural order.
        themes: Named tasks which hold if neither `tasks` nor `split` is given.
        tasks: Cut the classes into so many tasks.
        split: Named tasks; classes in none of them are not used.
        order: `shuffled` draws the order of the classes, or that of the named tasks.
        seed: Of that order.
        first: Number of the first of so many `tasks`.

    Returns:
        Split: task -> classes.

    Raises:
        InputError: Of a class or an order that there is not, of a task that is empty, of a class in two tasks.
    """
    if tasks is not None and split is not None:
        raise InputError(f"A number of tasks ({tasks}) and a split are both given: expected one of the two.")
    if order not in ("fixed", "shuffled"):
        raise InputError(f"There is no order {order!r}: expected 'fixed' or 'shuffled'.")
    named = themes if split is None and tasks is None else split
    if named is not None:
        named = _normal(named)
        _check_split(named, name, classes)
        keys = list(named)
        return {keys[i]: named[keys[i]] for i in _arranged(len(keys), order, seed)}
    classes = [classes[i] for i in _arranged(len(classes), order, seed)]
    return {name: classes} if tasks is None else _cut(classes, tasks, first)


def read_split(path: Path) -> Split:
    """Read a split from a JSON file, an object {task: [class, ...], ...}.

    Raises:
        InputError: It cannot be read, is not JSON, or has a task twice.
    """
    return _read(path, "split", "{task: [class, ...], ...}")


def read_arrivals(path: Path) -> Groups:
    """Read which tasks become known together from a JSON file, an array of groups [[task, ...], ...] in their order.

    Raises:
        InputError: It cannot be read, is not JSON, or is no such array.
    """
    found = _read(path, "arrivals", GROUPS)
    if not isinstance(found, list) or not all(isinstance(group, list) for group in found):
        raise InputError(f"The arrivals '{path}' are {_short(found)}: expected groups of tasks, {GROUPS}.")
    return found


def check_arrivals(groups: Groups, tasks: Sequence[str], name: str) -> None:
    """Check that every task of a stream arrives, once.

    Args:
        groups: Tasks that become known together, in order of arrival.
        tasks: Of the stream.
        name: Of the stream.

    Raises:
        InputError: There is no group, one is empty, or a task is not the stream's, comes twice or not at all.
    """
    found: dict[str, int] = {}
    for number, group in enumerate(groups, start=1):
        if not group:
            raise InputError(f"Group {number} of the arrivals is empty: expected one task or more. Leave it out.")
        for task in group:
            if task not in tasks:
                raise InputError(
                    f"Task {task!r} in group {number} of the arrivals is none of {name!r}, which has {listed(tasks)}."
                )
            if task in found:
                raise InputError(
                    f"Task {task!r} arrives in group {found[task]} and in group {number}: expected once. Leave one out."
                )
            found[task] = number
    if missing := [task for task in tasks if task not in found]:
        raise InputError(
            f"Tasks of {name!r} are in no group of the arrivals: {listed(missing)}. Add them, or choose the others "
            "with --only."
        )


def _read(path: Path, what: str, expected: str) -> Any:
    """JSON of a file."""
    try:
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise InputError(f"The {what} '{path}' has {size:,} bytes: expected at most {LARGEST_JSON:,}.")
        return parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"The {what} '{path}' cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"The {what} '{path}' is not JSON ({error}): expected {expected}.") from error


def _short(found: Any) -> str:
    text = repr(found)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_tasks(tasks: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Check the names and classes of a stream's tasks.

    A task's name becomes a folder's, and some systems take `A` and `a` for the same.

    Args:
        tasks: Of each task its name and its classes.

    Raises:
        InputError: A name that cannot be used or is used twice; a task without classes; a class in two tasks.
    """
    seen: dict[str, str] = {}
    for task, _ in tasks:
        if (other := seen.get(task.casefold())) == task:
            raise InputError(f"Two tasks are named {task!r}: expected a name of its own for each.")
        if other is not None:
            raise InputError(
                f"Tasks {other!r} and {task!r} differ in capitals only, and would be one folder on some systems. "
                "Rename one of them."
            )
        seen[task.casefold()] = task
    for task, kinds in tasks:
        check_name("Task", task)
        for kind in kinds:
            check_name("Class", kind)
    _check_disjoint(dict(tasks))


def hold_out(count: int, fraction: float, key: str, kind: str) -> tuple[list[int], list[int]]:
    """Choose which images of a class are held out, by their positions.

    Args:
        count: How many images the class has.
        fraction: Part of them to hold out: at least one is, and at least two are kept.
        key: The choice is a function of this text.
        kind: The class, for the message of an error.

    Returns:
        tuple: Positions to keep and positions to hold out, each in order.

    Raises:
        InputError: The fraction is not between 0 and 1, or there are fewer than three images.
    """
    _check_divisible(count, fraction, kind)
    return _divided(_shuffled(count, key), round(count * fraction))


def held_out_by_hash(hashes: Sequence[str], fraction: float, key: str, kind: str) -> tuple[list[int], list[int]]:
    """Choose which images of a class are held out, each by what is in it.

    Whether an image is held out does not depend on the others: images that are added or removed later move none from
    one side to the other, and equal images are on the same side. (Of a class so small that chance would hold out none,
    or leave fewer than two, the nearest is taken.)

    Args:
        hashes: Of the images' files.
        fraction: Probability of an image to be held out.
        key: The choice is a function of this text.
        kind: The class, for the message of an error.

    Returns:
        tuple: Positions to keep and positions to hold out, each in order.

    Raises:
        InputError: The fraction is not between 0 and 1, or there are fewer than three images.
    """
    _check_divisible(count := len(hashes), fraction, kind)
    drawn = [int.from_bytes(sha256(f"{key}/{found}".encode()).digest()[:8]) / 2**64 for found in hashes]
    order = sorted(range(count), key=lambda index: drawn[index])
    return _divided(order, sum(value < fraction for value in drawn))


def _divided(order: Sequence[int], wanted: int) -> tuple[list[int], list[int]]:
    """Positions to keep and to hold out, each in order: the first so many are held; at least one, and two are kept."""
    held = min(max(1, wanted), len(order) - 2)
    return sorted(order[held:]), sorted(order[:held])


def _check_divisible(count: int, fraction: float, kind: str) -> None:
    if not 0 < fraction < 1:
        options = "--source.test-fraction, --validation"
        raise InputError(f"Fraction {fraction} to hold out ({options}): expected more than 0 and less than 1.")
    if count < 3:
        found = f"{count} image" + "s" * (count != 1)
        raise InputError(
            f"Class {kind!r} has {found} to divide: expected at least 3, two to train and one to hold out. "
            "Add some or leave the class out."
        )


def _arranged(count: int, order: Order, seed: int) -> list[int]:
    return _shuffled(count, f"order/{seed}") if order == "shuffled" else list(range(count))


def _cut(classes: Sequence[str], tasks: int, first: int) -> Split:
    """Into so many tasks, the first ones larger by one where that does not divide."""
    if not 1 <= tasks <= len(classes):
        raise InputError(f"{tasks} tasks of {len(classes)} classes: expected 1 to {len(classes)} tasks.")
    size, larger = divmod(len(classes), tasks)
    starts = [task * size + min(task, larger) for task in range(tasks + 1)]
    width = max(2, len(str(first + tasks - 1)))
    return {f"task{first + i:0{width}d}": classes[starts[i] : starts[i + 1]] for i in range(tasks)}


def _normal(split: Split) -> Split:
    """A split whose names are in Unicode's composed form; what is no split is left as it is."""
    if not isinstance(split, Mapping) or not all(isinstance(kinds, list | tuple) for kinds in split.values()):
        return split
    return {
        normal(task) if isinstance(task, str) else task: [normal(k) if isinstance(k, str) else k for k in kinds]
        for task, kinds in split.items()
    }


def _check_split(split: Split, name: str, classes: Sequence[str]) -> None:
    """That it is task -> known classes; what holds of every stream is checked when the stream is made."""
    if not isinstance(split, Mapping):
        raise InputError(f"The split is a {type(split).__name__}: expected an object {{task: [class, ...], ...}}.")
    for task, kinds in split.items():
        named = isinstance(task, str) and isinstance(kinds, list | tuple)
        if not named or not all(isinstance(kind, str) for kind in kinds):
            raise InputError(f"Task {task!r} of the split has {kinds!r}: expected a name with a list of class names.")
        for kind in kinds:
            if kind not in classes:
                known = listed(classes)
                raise InputError(f"Class {kind!r} of task {task!r} is not in {name!r}, whose classes are {known}.")
    _check_disjoint(split)


def _check_disjoint(split: Split) -> None:
    """That there is a task, that none is empty, and that no class is in two."""
    if not split:
        raise InputError("There are no tasks: expected at least one.")
    owner: dict[str, str] = {}
    for task, kinds in split.items():
        if not kinds:
            raise InputError(f"Task {task!r} has no classes: expected at least one. Fill it or leave it out.")
        for kind in kinds:
            if kind in owner:
                raise InputError(f"Class {kind!r} is in task {owner[kind]!r} and in {task!r}: expected in one, once.")
            owner[kind] = task


def _shuffled(count: int, key: str) -> list[int]:
    """An order of `count` things that is a function of the key alone."""
    return sorted(range(count), key=lambda index: sha256(f"{key}/{index}".encode(errors="replace")).digest())
