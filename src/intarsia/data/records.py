"""Streams loaded again, as a card or a checkpoint says."""

from collections.abc import Mapping
from typing import Any

from intarsia.data.stream import TaskStream
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
        if "joined" in change:
            stream = stream.joined(change["joined"])
    return stream
