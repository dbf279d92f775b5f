"""The sources that a stream can be loaded from: one file and one line here each.

A spec is ``<kind>`` or ``<kind>:<where>``. Another package can add a kind of its own to ``SOURCES``.
"""

from collections.abc import Callable

from intarsia.data.sources.builtin import open_builtin
from intarsia.data.sources.csv_file import open_csv
from intarsia.data.sources.folder import open_folder
from intarsia.data.sources.hub import open_hub
from intarsia.data.sources.source import Asked, Source
from intarsia.errors import InputError

Opener = Callable[[str, Asked], Source]
"""What stands behind the colon, and what is asked of it -> source."""
SOURCES: dict[str, Opener] = {
    "sketches": lambda _, asked: open_builtin("sketches", asked),
    "chalk": lambda _, asked: open_builtin("chalk", asked),
    "folder": open_folder,
    "csv": open_csv,
    "hf": open_hub,
}
SHOWN = {
    "folder": "folder:<dir>",
    "csv": "csv:<file>",
    "hf": "hf:<name or dir>[@revision][?config=<name>][:<image>,<label> column]",
}
"""How a spec is shown that does not stand alone."""


def open_source(spec: str, asked: Asked) -> Source:
    """The source that ``TaskStream.load`` is told of.

    Raises:
        InputError: there is none of that name, or a test fraction is missing or too much.
    """
    kind, _, where = spec.partition(":")
    if kind not in SOURCES or (kind in SHOWN) != bool(where):
        known = ", ".join(SHOWN.get(name, name) for name in SOURCES)
        raise InputError(f"There is no stream {spec!r}: expected one of {known}.")
    return SOURCES[kind](where, asked)
