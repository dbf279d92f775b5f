"""Streams loaded again, as a card or a checkpoint says."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from intarsia.data.stream import Task, TaskStream
from intarsia.errors import InputError

CHANGES: Mapping[str, Callable[[TaskStream, Any], TaskStream]] = {
    "subset": lambda stream, names: stream.subset(names),
    "arrivals": lambda stream, groups: stream.arriving(groups),
    "validation": lambda stream, how: stream.validation(**how),
    "joined": lambda stream, name: stream.joined(name),
    "renamed": lambda stream, names: stream.renamed(names),
}
"""What a stream notes when it is changed -> how the change is made again."""


def reloaded(source: Mapping[str, Any]) -> TaskStream:
    """A stream loaded again, from its ``record`` or its ``source``.

    Raises:
        InputError: it was made in Python, is not where it was, or was changed in a way that is not known here.
    """
    if source.get("load") is None:
        raise InputError("the stream was made of arrays in memory, which cannot be loaded again: name its stream")
    changes = [(what, how) for change in source.get("changes", []) for what, how in change.items()]
    for what, _ in changes:
        if what not in CHANGES:
            raise InputError(
                f"the record of stream {source.get('name', source['load'])!r} has a change {what!r}: expected some of "
                f"{', '.join(CHANGES)}. Update intarsia, or name the stream with --data"
            )
    load, split = dict(source["load"]), source.get("split")
    if split is not None:  # the classes as they were then: others may be there today
        load |= {"tasks": None, "order": "fixed", "split": split}
    stream = TaskStream.load(**load)
    stream = replace(stream, origin={**stream.origin, "load": dict(source["load"])})  # as it was asked for
    for what, how in changes:
        stream = CHANGES[what](stream, how)
    return stream


def gathered(sources: Mapping[str, Mapping[str, Any]], cache: str | None = None) -> TaskStream:
    """Tasks loaded again, each from where it was.

    Args:
        sources: task -> the ``source`` of its stream.
        cache: where decoded images are kept, as for ``TaskStream.load``.

    Raises:
        InputError: one was made in Python, or is not where it was.
    """
    tasks: list[Task] = []
    loaded: dict[str, TaskStream] = {}
    for name, source in sources.items():
        if source.get("load") is None:
            raise InputError(
                f"task {name!r} was learned from arrays in memory, which the pool cannot load again: name its stream"
            )
        key = repr(_unsplit(source))
        if key not in loaded:
            loaded[key] = reloaded(_together({t: s for t, s in sources.items() if repr(_unsplit(s)) == key}))
        tasks.append(loaded[key][name])
    names = dict.fromkeys(stream.name for stream in loaded.values())
    stream = TaskStream(" + ".join(names), tuple(tasks))
    stream.keep_in(cache or "auto")
    return stream


def _unsplit(source: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in source.items() if key != "split"}


def _together(sources: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """One source of tasks that differ in their classes alone; other tasks' images need not be there."""
    first = next(iter(sources.values()))
    if first.get("split") is None or any("joined" in change for change in first.get("changes", [])):
        return first
    return {**first, "split": {task: source["split"][task] for task, source in sources.items()}}
