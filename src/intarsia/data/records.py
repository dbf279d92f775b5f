"""Streams loaded again, as a card or a checkpoint says."""

from collections.abc import Mapping
from typing import Any

from intarsia.data.stream import Task, TaskStream
from intarsia.errors import InputError


def reloaded(source: Mapping[str, Any]) -> TaskStream:
    """A stream loaded again, from its ``record`` or its ``source``.

    Raises:
        InputError: it was made in Python, or is not where it was.
    """
    if source.get("load") is None:
        raise InputError("the stream was made of arrays in memory, which cannot be loaded again: name its stream")
    stream = TaskStream.load(**source["load"])
    for change in source.get("changes", []):
        if "subset" in change:
            stream = stream.subset(change["subset"])
        if "validation" in change:
            stream = stream.validation(**change["validation"])
        if "renamed" in change:
            stream = stream.renamed(change["renamed"])
        if "joined" in change:
            stream = stream.joined(change["joined"])
    return stream


def gathered(sources: Mapping[str, Mapping[str, Any]]) -> TaskStream:
    """Tasks loaded again, each from where it was: task -> the ``source`` of its stream.

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
        key = repr(source)
        loaded[key] = loaded.get(key) or reloaded(source)
        tasks.append(loaded[key][name])
    names = dict.fromkeys(stream.name for stream in loaded.values())
    return TaskStream(" + ".join(names), tuple(tasks))
