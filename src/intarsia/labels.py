"""Names of tasks and classes: which are allowed, and how they stand in a message."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from intarsia.errors import InputError, UnknownTaskError

_UNSEEN = ("Cc", "Cs", "Zl", "Zp")


_TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # right-to-left marks and alike


def check_name(what: str, name: str) -> None:
    """Refuse a name that is no good for a folder, or that does not read as it is written.

    Args:
        what: Of what it is the name, for the message.
        name: Any text.

    Raises:
        InputError: It is empty or too long, starts with a dot, or has a slash, a control character or a sign that turns
            the direction of writing.
    """
    if len(name) > 100 or len(name.encode(errors="replace")) > 250:
        raise InputError(f"{what} name {name[:100]!r}... is too long: expected at most 100 characters (and 250 bytes).")
    odd = [sign for sign in name if sign in "/\\" or unicodedata.category(sign) in _UNSEEN or sign in _TURNING]
    if odd or not name.strip() or name.startswith("."):
        why = f"has {odd[0]!r} in it" if odd else "starts with a dot" if name.strip() else "is empty"
        rule = "printable characters, no slash or backslash, no leading dot"
        raise InputError(f"{what} name {name!r} {why}: expected {rule}. Rename it.")


def check_task(task: str, tasks: Sequence[str]) -> None:
    """Refuse a task that a pool does not have.

    Raises:
        UnknownTaskError: naming those that it has, and one of a similar name.
    """
    if task not in tasks:
        near = get_close_matches(task, tasks, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownTaskError(f"unknown task {task!r}: the pool has {listed(tasks) or 'none yet'}{hint}")


def some_of(tasks: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
    """The tasks chosen, in the pool's order.

    Args:
        tasks: of the pool.
        chosen: in any order.

    Raises:
        InputError: no task is chosen, an unknown one, or one twice.
    """
    for task in chosen:
        check_task(task, tasks)
    if not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"tasks {list(chosen)}: expected one or more of the pool's, each named once")
    return tuple(task for task in tasks if task in chosen)


def listed(names: Iterable[str], most: int = 20) -> str:
    """Names in a message, the first ones of many."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def normal(name: str) -> str:
    """A name in Unicode's composed form (NFC), in which those that look alike are the same."""
    return unicodedata.normalize("NFC", name)


def natural(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """What names are sorted by so that 2 comes before 10."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), "") if number % 2 else (1, 0, part) for number, part in enumerate(parts)), name
